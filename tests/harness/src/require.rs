//! What tests need from the world, by name.
//!
//! A test whose need is not met is skipped with the reason. `MEMCR_TEST_REQUIRE` turns
//! skips into failures: `all`, or names separated by commas; `-NAME` after `all` takes
//! one out again (for a kernel that was built without a feature).

use crate::{Result, Trouble};
use std::path::Path;

type Probe = fn() -> std::result::Result<(), String>;

const FEATURES: &[(&str, Probe)] = &[
    ("root", root),
    ("thp", || {
        readable("/sys/kernel/mm/transparent_hugepage/enabled")
    }),
    ("userfaultfd", || readable("/dev/userfaultfd")),
    ("hugetlb", hugetlb),
    ("af_xdp", af_xdp),
    ("swap", || root().and_then(|()| program("mkswap"))),
    ("ksm", || {
        root().and_then(|()| readable("/sys/kernel/mm/ksm/run"))
    }),
    ("fincore", || program("fincore")),
    ("mount", root),
    ("zram", || {
        root().and_then(|()| exists("/sys/class/zram-control"))
    }),
    ("mkfs.ext4", || program("mkfs.ext4")),
    ("gcc", || program("gcc")),
    ("redis-server", || program("redis-server")),
    ("python3", || program("python3")),
    ("node", || program("node")),
    ("java", || program("java")),
];

/// Skips the test unless the world has `feature`.
///
/// # Errors
/// `Skipped` with the reason, or `Failed` if `MEMCR_TEST_REQUIRE` demands the feature.
pub fn require(feature: &str) -> Result {
    let Some((_, probe)) = FEATURES.iter().find(|(name, _)| *name == feature) else {
        return Err(Trouble::Failed(format!("no feature is called `{feature}`")));
    };
    probe().map_err(|reason| lacking(feature, &reason))
}

/// The trouble of a test that lacks `feature`: a skip, or a failure if it is demanded.
#[must_use]
pub fn lacking(feature: &str, reason: &str) -> Trouble {
    let demanded = std::env::var("MEMCR_TEST_REQUIRE").unwrap_or_default();
    let what = format!("{feature}: {reason}");
    if demands(&demanded, feature) {
        return Trouble::Failed(format!(
            "required by MEMCR_TEST_REQUIRE={demanded}, but lacking: {what}"
        ));
    }
    Trouble::Skipped(what)
}

fn demands(list: &str, feature: &str) -> bool {
    let words: Vec<&str> = list.split(',').map(str::trim).collect();
    let taken_out = words
        .iter()
        .any(|word| word.strip_prefix('-') == Some(feature));
    !taken_out && (words.contains(&"all") || words.contains(&feature))
}

fn root() -> std::result::Result<(), String> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err("not root".into())
    }
}

fn readable(path: &str) -> std::result::Result<(), String> {
    std::fs::File::open(path)
        .map(drop)
        .map_err(|err| format!("{path}: {err}"))
}

fn exists(path: &str) -> std::result::Result<(), String> {
    std::fs::metadata(path)
        .map(drop)
        .map_err(|err| format!("{path}: {err}"))
}

/// Explicit huge pages: allowed to be allocated on demand, as root may do.
fn hugetlb() -> std::result::Result<(), String> {
    const FILE: &str = "/proc/sys/vm/nr_overcommit_hugepages";
    let now = std::fs::read_to_string(FILE).map_err(|err| format!("{FILE}: {err}"))?;
    if now.trim() != "0" {
        return Ok(());
    }
    std::fs::write(FILE, "16").map_err(|err| format!("{FILE}: {err}"))
}

fn af_xdp() -> std::result::Result<(), String> {
    root()?;
    let protocols = std::fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let has_xdp = protocols.lines().any(|line| line.starts_with("XDP "));
    has_xdp
        .then_some(())
        .ok_or_else(|| "not in /proc/net/protocols".into())
}

fn program(name: &str) -> std::result::Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| Path::new(&dir).join(name).is_file());
    if found {
        Ok(())
    } else {
        Err(format!("no program `{name}` in PATH"))
    }
}

#[cfg(test)]
mod tests {
    use super::demands;

    #[test]
    fn demands_are_read_as_documented() {
        assert!(!demands("", "thp"));
        assert!(demands("all", "thp"));
        assert!(demands("root, thp", "thp"));
        assert!(!demands("all,-thp", "thp"));
        assert!(demands("all,-thp", "root"));
    }
}
