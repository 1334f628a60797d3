//! What the machine must have, and installing it where it has not.

use std::path::Path;
use std::process::Command;

use crate::run::{self, Done};

/// Something the machine needs.
struct Need {
    name: &'static str,
    /// Packages as Debian and its children call them.
    packages: &'static [&'static str],
    present: fn() -> bool,
}

/// What building takes: the plugins `lz4` and `zstd` compile C, `encrypt` links OpenSSL.
const TO_BUILD: &[Need] = &[
    Need {
        name: "a C compiler",
        packages: &["gcc", "libc6-dev"],
        present: || run::on_path("cc") || run::on_path("gcc"),
    },
    Need {
        name: "OpenSSL's headers",
        packages: &["libssl-dev", "pkg-config"],
        present: has_openssl,
    },
];

/// What tests use as targets and peers; the fuzzer is C++. Tests that lack one are
/// skipped, and say so.
const TO_TEST: &[Need] = &[
    Need {
        name: "a C++ compiler",
        packages: &["g++"],
        present: || run::on_path("c++") || run::on_path("g++"),
    },
    Need {
        name: "mkfs.ext4",
        packages: &["e2fsprogs"],
        present: || run::on_path("mkfs.ext4") || Path::new("/usr/sbin/mkfs.ext4").exists(),
    },
    Need {
        name: "redis-server",
        packages: &["redis-server"],
        present: || run::on_path("redis-server"),
    },
    Need {
        name: "python3",
        packages: &["python3"],
        present: || run::on_path("python3"),
    },
    Need {
        name: "node",
        packages: &["nodejs"],
        present: || run::on_path("node"),
    },
    // Its test is run from source, which takes more than a runtime.
    Need {
        name: "java",
        packages: &["default-jdk-headless"],
        present: || run::on_path("javac"),
    },
];

/// Installs what building takes.
///
/// # Errors
/// When it cannot be had; the message says what to install by hand.
pub(crate) fn ready_to_build() -> Done {
    install(TO_BUILD)
}

/// Installs what building and testing take. What only tests need may stay missing,
/// unless `MEMCR_TEST_REQUIRE` says otherwise.
///
/// # Errors
/// As [`ready_to_build`].
pub(crate) fn ready_to_test() -> Done {
    ready_to_build()?;
    match install(TO_TEST) {
        Err(message) if std::env::var_os("MEMCR_TEST_REQUIRE").is_none() => {
            eprintln!("xtask: {message}");
            Ok(())
        }
        done => done,
    }
}

fn install(needs: &[Need]) -> Done {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|need| need.packages)
        .copied()
        .collect();
    let installed = apt_get(&["update"]).and_then(|()| {
        apt_get(&[&["install", "-y", "--no-install-recommends"], &packages[..]].concat())
    });
    match (installed, missing.iter().find(|need| !(need.present)())) {
        (Ok(()), None) => Ok(()),
        (result, _) => {
            let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
            let why = result
                .err()
                .map(|why| format!(" ({why})"))
                .unwrap_or_default();
            Err(format!(
                "missing: {}; install the packages {} (or what your system calls them) and run this again{why}",
                names.join(", "),
                packages.join(" "),
            ))
        }
    }
}

fn apt_get(args: &[&str]) -> Done {
    if !run::on_path("apt-get") {
        return Err("there is no apt-get here to install them with".into());
    }
    // Not root: only where sudo asks for no password, this must not wait for a person.
    let mut command = match is_root() {
        true => Command::new("apt-get"),
        false if run::on_path("sudo") => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "apt-get"]);
            sudo
        }
        false => return Err("only root can install them".into()),
    };
    command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null());
    run::visibly(&mut command)
}

fn is_root() -> bool {
    // The owner of /proc/self is our effective uid.
    std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn has_openssl() -> bool {
    let named = ["OPENSSL_DIR", "OPENSSL_INCLUDE_DIR"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    let found = || {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config
            .args(["--exists", "openssl"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    named
        || found()
        || (Path::new("/usr/include/openssl/ssl.h").exists() && run::on_path("pkg-config"))
}
