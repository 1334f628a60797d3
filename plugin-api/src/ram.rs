//! How much RAM can be had, for sinks that store in it.
//!
//! A full disk fails a write; full RAM wakes the OOM killer, which may choose the target.
//! So room in a tmpfs is not enough: the machine must have the memory, and so must the
//! cgroup that memcr runs in, because pages of a tmpfs are charged to who writes them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longer than the usual file that is read here, bytes: the kernel makes each of them anew for
/// every piece in which it is read.
const USUAL_LEN: usize = 4096;

/// Bytes that this process can take now (`MemAvailable` of proc_meminfo(5), and what each of its
/// memory cgroups has left); `u64::MAX` where nothing tells.
#[must_use]
pub fn available() -> u64 {
    available_within(&read(OWN_CGROUPS).unwrap_or_default())
}

/// The same for this process and the process `pid` alike.
#[must_use]
pub fn available_beside(pid: u32) -> u64 {
    let mut cgroups = read(OWN_CGROUPS).unwrap_or_default();
    let of_pid = read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if of_pid != cgroups {
        cgroups.push_str(&of_pid);
    }
    available_within(&cgroups)
}

const OWN_CGROUPS: &str = "/proc/self/cgroup";

/// `cgroups`: lines of `/proc/PID/cgroup`.
fn available_within(cgroups: &str) -> u64 {
    let meminfo = read("/proc/meminfo").and_then(|text| mem_available(&text));
    let within = cgroup_dirs(cgroups, Path::new("/sys/fs/cgroup"));
    let groups = within.iter().filter_map(|(dir, files)| files.headroom(dir));
    meminfo.into_iter().chain(groups).min().unwrap_or(u64::MAX)
}

/// `MemAvailable` of `/proc/meminfo`, bytes: what can be had without swapping.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The names of what a memory cgroup says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: cached file pages that nobody used of late, free for the taking.
    reclaimable: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};
const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file ",
};

/// The directories of the memory cgroups that a line of `/proc/PID/cgroup` puts it in,
/// innermost first: each may have a limit.
fn cgroup_dirs(cgroups: &str, root: &Path) -> Vec<(PathBuf, Files)> {
    let mut dirs = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (top, files) = match controllers {
            "" => (root.to_owned(), V2),
            list if list.split(',').any(|name| name == "memory") => (root.join("memory"), V1),
            _ => continue,
        };
        let inner = top.join(path.trim_start_matches('/'));
        dirs.extend(
            inner
                .ancestors()
                .take_while(|dir| dir.starts_with(&top))
                .map(|dir| (dir.to_owned(), files)),
        );
    }
    dirs
}

impl Files {
    /// Bytes up to the limit of the group in `dir`; none if it has no limit or no file.
    fn headroom(self, dir: &Path) -> Option<u64> {
        // "max" is no number: no limit.
        let number = |name: &str| read(dir.join(name))?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(self.limit)?, number(self.usage)?);
        let stat = read(dir.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.reclaimable)?.trim().parse().ok());
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable.unwrap_or(0))))
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::with_capacity(USUAL_LEN);
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn this_machine_tells() {
        let meminfo = read("/proc/meminfo").unwrap();
        assert!(available() > 0 && available_beside(std::process::id()) > 0);
        assert!(available() <= mem_available(&meminfo).unwrap() + (1 << 30));
    }

    #[test]
    fn meminfo_is_read_in_kib() {
        assert_eq!(
            mem_available("MemTotal: 9 kB\nMemAvailable:      12 kB\n"),
            Some(12 << 10)
        );
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn every_group_up_to_the_root_counts() {
        let root = Path::new("/cg");
        let of = |text| {
            cgroup_dirs(text, root)
                .into_iter()
                .map(|(dir, files)| (dir.to_str().unwrap().to_owned(), files))
                .collect::<Vec<_>>()
        };
        let dir = |path: &str, files| (path.to_owned(), files);
        assert_eq!(
            of("0::/a/b c\n"),
            [dir("/cg/a/b c", V2), dir("/cg/a", V2), dir("/cg", V2)]
        );
        assert_eq!(
            of("5:cpu:/x\n4:hugetlb,memory:/x\n"),
            [dir("/cg/memory/x", V1), dir("/cg/memory", V1)]
        );
        assert_eq!(of("nonsense\n"), []);
    }

    #[test]
    fn headroom_is_the_limit_less_what_is_really_used() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(V2.headroom(dir.path()), None, "no files, no limit");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(V2.headroom(dir.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(V2.headroom(dir.path()), Some(300));
        write("memory.stat", "active_file 50\ninactive_file 100\n");
        assert_eq!(V2.headroom(dir.path()), Some(400));
        write("memory.current", "1200\n");
        assert_eq!(V2.headroom(dir.path()), Some(0));
    }
}
