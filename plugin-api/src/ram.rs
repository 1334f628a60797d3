//! How much RAM can be had, for sinks that store in it.
//!
//! A full disk fails a write; full RAM wakes the OOM killer, which may choose the target.
//! So room in a tmpfs is not enough: the machine must have the memory, and so must the
//! cgroup that memcr runs in, because pages of a tmpfs are charged to who writes them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longer than the usual file that is read here, bytes: the kernel makes each of them anew for
/// every piece in which it is read.
const USUAL_LEN: usize = 4096;

/// Bytes that this process can take now (`MemAvailable` of proc_meminfo(5), and what each of its
/// memory cgroups has left); `u64::MAX` where nothing tells.
#[must_use]
pub fn available() -> u64 {
    available_within(&read_bytes(OWN_CGROUPS).unwrap_or_default())
}

/// The same for this process and the process `pid` alike.
#[must_use]
pub fn available_beside(pid: u32) -> u64 {
    let mut cgroups = read_bytes(OWN_CGROUPS).unwrap_or_default();
    let of_pid = read_bytes(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if of_pid != cgroups {
        cgroups.extend(of_pid);
    }
    available_within(&cgroups)
}

/// Bytes that the process `pid` can be given now at the most, at the price of all the page cache
/// and swap that there is for it; `u64::MAX` where nothing tells. More wakes the OOM killer.
#[must_use]
pub fn obtainable_by(pid: u32) -> u64 {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let swap = mem_field(&meminfo, "SwapFree:").unwrap_or(0);
    let machine = mem_available(&meminfo).map(|bytes| bytes.saturating_add(swap));
    let cgroups = read_bytes(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let within = cgroup_dirs(&cgroups, Path::new("/sys/fs/cgroup"));
    let groups = within
        .iter()
        .filter_map(|(dir, files)| files.room(dir, swap));
    machine.into_iter().chain(groups).min().unwrap_or(u64::MAX)
}

const OWN_CGROUPS: &str = "/proc/self/cgroup";

/// `cgroups`: lines of `/proc/PID/cgroup`.
fn available_within(cgroups: &[u8]) -> u64 {
    let meminfo = read("/proc/meminfo").and_then(|text| mem_available(&text));
    let within = cgroup_dirs(cgroups, Path::new("/sys/fs/cgroup"));
    let groups = within.iter().filter_map(|(dir, files)| files.headroom(dir));
    meminfo.into_iter().chain(groups).min().unwrap_or(u64::MAX)
}

/// `MemAvailable` of `/proc/meminfo`, bytes: what can be had without swapping.
fn mem_available(meminfo: &str) -> Option<u64> {
    mem_field(meminfo, "MemAvailable:")
}

/// A line of `/proc/meminfo`, bytes.
fn mem_field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
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
    /// The same for those that somebody did.
    active: &'static str,
    swap_limit: &'static str,
    swap_usage: &'static str,
    /// The two of swap are of memory and swap together.
    swap_is_sum: bool,
}

/// From here on a limit is none: version 1 says so by the largest multiple of a page that there is.
const NO_LIMIT: u64 = 1 << 60;

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
    active: "total_active_file ",
    swap_limit: "memory.memsw.limit_in_bytes",
    swap_usage: "memory.memsw.usage_in_bytes",
    swap_is_sum: true,
};
const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file ",
    active: "active_file ",
    swap_limit: "memory.swap.max",
    swap_usage: "memory.swap.current",
    swap_is_sum: false,
};

/// The directories of the memory cgroups that a line of `/proc/PID/cgroup` puts it in,
/// innermost first: each may have a limit. Their names are bytes, not always UTF-8.
fn cgroup_dirs(cgroups: &[u8], root: &Path) -> Vec<(PathBuf, Files)> {
    let mut dirs = Vec::new();
    for line in cgroups.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(3, |byte| *byte == b':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (top, files) = match controllers {
            b"" => (root.to_owned(), V2),
            list if list
                .split(|byte| *byte == b',')
                .any(|name| name == b"memory") =>
            {
                (root.join("memory"), V1)
            }
            _ => continue,
        };
        let inner = top.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
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
        self.left(dir, &[self.reclaimable])
    }

    /// The same with all cached file pages gone, and what the group may have of `swap` used.
    fn room(self, dir: &Path, swap: u64) -> Option<u64> {
        let left = self.left(dir, &[self.reclaimable, self.active])?;
        // Without a limit, or without its files, all of it.
        let limit = number(dir, self.swap_limit).unwrap_or(u64::MAX);
        let swap_left = limit.saturating_sub(number(dir, self.swap_usage).unwrap_or(0));
        Some(match self.swap_is_sum {
            true => left.saturating_add(swap).min(swap_left.max(left)),
            false => left.saturating_add(swap.min(swap_left)),
        })
    }

    /// Bytes up to the limit of the group in `dir`, with what these fields of its `memory.stat`
    /// tell out of the way.
    fn left(self, dir: &Path, fields: &[&str]) -> Option<u64> {
        let limit = number(dir, self.limit).filter(|limit| *limit < NO_LIMIT)?;
        let usage = number(dir, self.usage)?;
        let stat = read(dir.join("memory.stat")).unwrap_or_default();
        let field = |name: &&str| -> Option<u64> {
            stat.lines()
                .find_map(|line| line.strip_prefix(*name)?.trim().parse().ok())
        };
        let reclaimable: u64 = fields.iter().filter_map(field).sum();
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    }
}

/// The number in a file of a cgroup. "max" is none: no limit.
fn number(dir: &Path, name: &str) -> Option<u64> {
    read(dir.join(name))?.trim().parse().ok()
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    String::from_utf8(read_bytes(path)?).ok()
}

fn read_bytes(path: impl AsRef<Path>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    File::open(path).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
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
        let of = |text: &str| cgroup_dirs(text.as_bytes(), root);
        let dir = |path: &str, files| (PathBuf::from(path), files);
        assert_eq!(
            of("0::/a/b c\n"),
            [dir("/cg/a/b c", V2), dir("/cg/a", V2), dir("/cg", V2)]
        );
        assert_eq!(
            of("5:cpu:/x\n4:hugetlb,memory:/x\n"),
            [dir("/cg/memory/x", V1), dir("/cg/memory", V1)]
        );
        assert_eq!(of("nonsense\n"), []);
        let not_text = cgroup_dirs(b"0::/x\xff\n", root);
        let name = OsStr::from_bytes(b"/cg/x\xff");
        assert_eq!(not_text, [(name.into(), V2), dir("/cg", V2)]);
    }

    #[test]
    fn headroom_is_the_limit_less_what_is_really_used() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(V2.headroom(dir.path()), None, "no files, no limit");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(V2.headroom(dir.path()), None, "no limit");
        write("memory.max", "9223372036854771712\n");
        assert_eq!(V2.headroom(dir.path()), None, "as version 1 has it");
        write("memory.max", "1000\n");
        assert_eq!(V2.headroom(dir.path()), Some(300));
        write("memory.stat", "active_file 50\ninactive_file 100\n");
        assert_eq!(V2.headroom(dir.path()), Some(400));
        write("memory.current", "1200\n");
        assert_eq!(V2.headroom(dir.path()), Some(0));
    }

    #[test]
    fn room_is_made_of_cache_and_swap_too() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "active_file 50\ninactive_file 100\n");
        assert_eq!(V2.room(dir.path(), 0), Some(250));
        assert_eq!(V2.room(dir.path(), 70), Some(320), "no limit of swap");
        write("memory.swap.max", "40\n");
        write("memory.swap.current", "10\n");
        assert_eq!(V2.room(dir.path(), 70), Some(280));
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "900\n");
        write("memory.memsw.limit_in_bytes", "1100\n");
        write("memory.memsw.usage_in_bytes", "900\n");
        assert_eq!(V1.room(dir.path(), 70), Some(170));
        assert_eq!(V1.room(dir.path(), 700), Some(200), "of both together");
    }
}
