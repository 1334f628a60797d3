//! Building, and putting what was built together as an installation has it.
//!
//! ```text
//!   PREFIX/bin/memcr, bin/memcr-client, bin/victim
//!   PREFIX/bin/memcr-faults                         for tests: memcr with its fault points
//!   PREFIX/lib/memcr/stages/libmemcr_stage_*.so     0755: others' write permission is refused
//!   PREFIX/lib/libmemcrclient.so, .a                the client library for C …
//!   PREFIX/lib/pkgconfig/libmemcrclient.pc          … with this prefix filled in
//!   PREFIX/include/libmemcrclient.h
//!   PREFIX/share/memcr/pipeline.toml
//!   PREFIX/share/man/man1/memcr.1, memcr-client.1   printed by the programs themselves
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{self, Done};

/// A cargo profile, and the directory of `target` in which its prefix lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    prefix: &'static str,
}

/// What users get.
pub(crate) const RELEASE: Profile = Profile {
    name: "release",
    prefix: "memcr",
};
/// What tests run: fast code with its checks, built without the long link.
pub(crate) const CI: Profile = Profile {
    name: "ci",
    prefix: "memcr-ci",
};

/// What cargo has built.
pub(crate) struct Built {
    profile: Profile,
    target: PathBuf,
    /// memcr with its fault points, if it was asked for.
    faults: Option<PathBuf>,
}

/// An installation.
pub(crate) struct Prefix(PathBuf);

/// Where the client library for C is.
const C_LIBRARY: &str = "memcr/client/c";

/// Builds memcr, its clients, all plugins and the victims, and with `tests` all test programs.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build(profile: Profile, tests: bool) -> Done<Built> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--profile", profile.name]);
    if tests {
        cargo.args(["--workspace", "--bins", "--lib"]);
    } else {
        for package in ["memcr", "memcr-client", "memcrclient", "memcr-victims"] {
            cargo.args(["--package", package]);
        }
        for plugin in plugins()? {
            cargo.args(["--package", &format!("memcr-stage-{plugin}")]);
        }
    }
    let target = target_dir()?;
    // First, for both programs have one name: what stays there in the end is memcr proper.
    let faults = tests.then(|| memcr_with_faults(profile, &target));
    let faults = faults.transpose()?;
    run::visibly(&mut cargo)?;
    Ok(Built {
        profile,
        target,
        faults,
    })
}

/// Builds memcr with its fault points into the same directory, so that only this one
/// crate is compiled twice, and takes the program aside.
fn memcr_with_faults(profile: Profile, target: &Path) -> Done<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--profile", profile.name, "--workspace"]);
    run::visibly(cargo.args(["--bin", "memcr", "--features", "memcr/fault-points"]))?;
    let dir = target.join(profile.name);
    let aside = dir.join("memcr-faults");
    put(&dir.join("memcr"), &aside, 0o755)?;
    Ok(aside)
}

impl Built {
    /// Where cargo put it.
    pub(crate) fn dir(&self) -> PathBuf {
        self.target.join(self.profile.name)
    }

    /// Puts it together.
    ///
    /// # Errors
    /// When a file is missing or cannot be written.
    pub(crate) fn stage(&self) -> Done<Prefix> {
        let prefix = Prefix(self.target.join(self.profile.prefix));
        // What a former build left must not be found beside what this one made.
        if prefix.0.exists() {
            fs::remove_dir_all(&prefix.0)
                .map_err(|error| format!("{}: {error}", prefix.0.display()))?;
        }
        for program in ["memcr", "memcr-client", "victim"] {
            put(
                &self.dir().join(program),
                &prefix.0.join("bin").join(program),
                0o755,
            )?;
        }
        if let Some(faults) = &self.faults {
            put(faults, &prefix.0.join("bin/memcr-faults"), 0o755)?;
        }
        for plugin in plugins()? {
            let file = format!("libmemcr_stage_{plugin}.so");
            put(&self.dir().join(&file), &prefix.stages().join(&file), 0o755)?;
        }
        put(
            &run::root().join("pipeline.toml"),
            &prefix.0.join("share/memcr/pipeline.toml"),
            0o644,
        )?;
        self.stage_c_library(&prefix.0)?;
        stage_man_pages(&prefix.0)?;
        Ok(prefix)
    }

    /// What a C program needs to ask the daemon, and what tells its compiler where it is.
    fn stage_c_library(&self, prefix: &Path) -> Done {
        for (file, mode) in [("libmemcrclient.so", 0o755), ("libmemcrclient.a", 0o644)] {
            put(&self.dir().join(file), &prefix.join("lib").join(file), mode)?;
        }
        let sources = run::root().join(C_LIBRARY);
        let header = "include/libmemcrclient.h";
        put(&sources.join(header), &prefix.join(header), 0o644)?;
        let template = sources.join("libmemcrclient.pc.in");
        let text = fs::read_to_string(&template)
            .map_err(|error| format!("{}: {error}", template.display()))?;
        let text = text
            .replace("@PREFIX@", &prefix.to_string_lossy())
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"));
        write(&prefix.join("lib/pkgconfig/libmemcrclient.pc"), &text)
    }
}

/// The pages that the programs print of themselves.
fn stage_man_pages(prefix: &Path) -> Done {
    for (program, word) in [("memcr", "man"), ("memcr-client", "--man")] {
        let page = run::output(Command::new(prefix.join("bin").join(program)).arg(word))?;
        write(&prefix.join(format!("share/man/man1/{program}.1")), &page)?;
    }
    Ok(())
}

impl Prefix {
    pub(crate) fn memcr(&self) -> PathBuf {
        self.0.join("bin/memcr")
    }

    pub(crate) fn victim(&self) -> PathBuf {
        self.0.join("bin/victim")
    }

    pub(crate) fn stages(&self) -> PathBuf {
        self.0.join("lib/memcr/stages")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// The names of the plugins: the directories of `plugins`.
fn plugins() -> Done<Vec<String>> {
    let dir = run::root().join("plugins");
    let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let packages = entries
        .flatten()
        .filter(|entry| entry.path().join("Cargo.toml").is_file());
    let mut names: Vec<String> = packages
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    // As `ls` has them: the order on disk changes from clone to clone.
    names.sort();
    Ok(names)
}

fn put(from: &Path, to: &Path, mode: u32) -> Done {
    let fail = |error: std::io::Error| {
        format!("cannot put {} to {}: {error}", from.display(), to.display())
    };
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    fs::copy(from, to).map_err(fail)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(fail)
}

fn write(to: &Path, text: &str) -> Done {
    let fail = |error: std::io::Error| format!("cannot write {}: {error}", to.display());
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).map_err(fail)?;
    fs::write(to, text).map_err(fail)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o644)).map_err(fail)
}

/// Where cargo builds, which the user may have configured.
fn target_dir() -> Done<PathBuf> {
    let metadata = run::output(run::cargo().args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]))?;
    // One field of a JSON object on one line: not worth a parser that takes longer to
    // build than this program.
    let field = metadata
        .split("\"target_directory\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    field
        .map(PathBuf::from)
        .ok_or_else(|| "cargo metadata names no target directory".into())
}
