//! What the rules need to know of a target, read from `/proc`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::user_namespace;
use crate::sys::procfs::{self, Stat, Status};

/// A process as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct Subjected {
    /// Its pid, as it was asked for.
    pub(in crate::daemon) pid: i32,
    /// When it started, in clock ticks since boot: with the pid it names one process.
    pub(in crate::daemon) start_time: u64,
    /// The process it is; another than `pid` if that is of a thread.
    pub(super) tgid: i32,
    /// The different rights of its threads, those of the first one first.
    pub(super) threads: Vec<Rights>,
    /// Its memory may be read by its user (prctl(2), PR_SET_DUMPABLE).
    pub(super) is_dumpable: bool,
    /// Its parent, that one's parent, and so on.
    pub(super) ancestors: Vec<Ancestor>,
    /// The daemon descends from it.
    pub(super) is_above_daemon: bool,
    /// Inode of its user namespace; `None`: we may not see it, or there are none.
    pub(super) user_namespace: Option<u64>,
    /// Yama's ptrace_scope at this moment; 0 without Yama.
    pub(super) yama: u8,
}

/// What decides about one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// Real, effective and saved user id.
    pub(super) uids: [u32; 3],
    /// Real, effective and saved group id.
    pub(super) gids: [u32; 3],
    /// Its permitted capabilities.
    pub(super) permitted: u64,
}

/// A process that a target descends from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ancestor {
    pub(super) pid: i32,
    pub(super) start_time: u64,
}

/// Deepest line of ancestors that is followed; a pid space hardly has deeper ones.
const MAX_ANCESTORS: usize = 4096;

impl Subjected {
    /// Reads it, with the rights of its first thread.
    pub(super) fn read(pid: i32, daemon: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        let status = Status::of_process(pid)?;
        let rights = Rights::of(&status)?;
        let found = Self {
            pid,
            start_time: stat.start_time,
            tgid: id(status.number("Tgid"))?,
            threads: vec![rights],
            is_dumpable: owner_in_proc(pid)? == rights.uids[1],
            ancestors: ancestors(stat),
            is_above_daemon: is_above(pid, daemon),
            user_namespace: user_namespace(pid).ok(),
            yama: yama(),
        };
        // All of that was of one process if the same one is still there.
        match Stat::read(pid)?.start_time == found.start_time {
            true => Ok(found),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The same with the rights of its other threads.
    pub(super) fn with_threads(mut self) -> io::Result<Self> {
        for tid in procfs::tids(self.pid)? {
            let rights = match Status::of_thread(self.pid, tid) {
                Ok(status) => Rights::of(&status)?,
                // It has ended, and acts no more.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            if !self.threads.contains(&rights) {
                self.threads.push(rights);
            }
        }
        Ok(self)
    }
}

impl Rights {
    fn of(status: &Status) -> io::Result<Self> {
        let capabilities = status.field("CapPrm");
        Ok(Self {
            uids: ids(status.field("Uid"))?,
            gids: ids(status.field("Gid"))?,
            permitted: capabilities
                .and_then(|text| u64::from_str_radix(text, 16).ok())
                .ok_or_else(unexpected)?,
        })
    }
}

/// Of `1000 1000 1000 1000` the first three; the fourth is for files.
fn ids(field: Option<&str>) -> io::Result<[u32; 3]> {
    let mut words = field.unwrap_or_default().split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse().ok());
    match (next(), next(), next()) {
        (Some(real), Some(effective), Some(saved)) => Ok([real, effective, saved]),
        _ => Err(unexpected()),
    }
}

fn id(number: Option<u64>) -> io::Result<i32> {
    let id = number.and_then(|number| number.try_into().ok());
    id.ok_or_else(unexpected)
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected fields in status")
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The owner of the files of a process: its effective uid if it is dumpable, else root
/// (proc(5)). The directory `/proc/PID` itself always has the effective uid.
fn owner_in_proc(pid: i32) -> io::Result<u32> {
    fs::metadata(format!("/proc/{pid}/status")).map(|meta| meta.uid())
}

/// The line of processes from its parent up.
fn ancestors(mut child: Stat) -> Vec<Ancestor> {
    let mut line = Vec::new();
    while child.parent > 0 && line.len() < MAX_ANCESTORS {
        let pid = child.parent;
        // A parent is older. A younger one has taken the pid of one that has ended.
        match Stat::read(pid) {
            Ok(stat) if stat.start_time <= child.start_time => {
                line.push(Ancestor {
                    pid,
                    start_time: stat.start_time,
                });
                child = stat;
            }
            _ => break,
        }
    }
    line
}

fn is_above(pid: i32, daemon: i32) -> bool {
    Stat::read(daemon).is_ok_and(|stat| ancestors(stat).iter().any(|above| above.pid == pid))
}

fn yama() -> u8 {
    match fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(text) => scope(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => NOBODY,
    }
}

/// Yama's strictest.
const NOBODY: u8 = 3;

fn scope(text: &str) -> u8 {
    text.trim().parse().unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn we() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn we_are_as_proc_has_us() {
        let found = Subjected::read(we(), we()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!((found.pid, found.tgid), (we(), we()));
        assert_eq!(found.threads[0].uids[1], uid);
        assert_eq!(
            found.ancestors[0].pid,
            std::os::unix::process::parent_id().cast_signed()
        );
        assert!(found.is_dumpable && !found.is_above_daemon);
        let parent = Subjected::read(found.ancestors[0].pid, we()).unwrap();
        assert!(parent.is_above_daemon);
        assert_eq!(
            found.clone().with_threads().unwrap(),
            found,
            "all threads have the same"
        );
    }

    #[test]
    fn a_thread_tells_its_process() {
        let found = std::thread::spawn(|| Subjected::read(crate::sys::gettid(), we()));
        assert_eq!(found.join().unwrap().unwrap().tgid, we());
    }

    #[test]
    fn what_is_no_process_is_not_found() {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(is_gone(&Subjected::read(pid, we()).unwrap_err()), "{pid}");
        }
    }

    /// A `sleep` of user 4711 whose program has this mode; `None` where we are not root.
    fn sleeper(mode: u32) -> Option<(std::process::Child, tempfile::TempDir)> {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("sleep");
        fs::copy("/bin/sleep", &program).unwrap();
        for (path, mode) in [(dir.path(), 0o755), (&*program, mode)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut command = std::process::Command::new(program);
        let child = command.arg("600").uid(4711).gid(4712).spawn().ok()?;
        Some((child, dir))
    }

    #[test]
    fn a_program_that_its_user_cannot_read_is_not_dumpable() {
        for (mode, want) in [(0o755, true), (0o711, false)] {
            let Some((mut child, _dir)) = sleeper(mode) else {
                return;
            };
            let found = Subjected::read(child.id().cast_signed(), we()).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let rights = found.threads[0];
            assert_eq!((rights.uids, rights.gids), ([4711; 3], [4712; 3]));
            assert_eq!((rights.permitted, found.is_dumpable), (0, want));
            assert_eq!(found.ancestors[0].pid, we());
        }
    }

    #[test]
    fn fields_are_read_strictly() {
        assert_eq!(ids(Some("1\t2\t3\t4")).unwrap(), [1, 2, 3]);
        for bad in [
            None,
            Some(""),
            Some("1 2"),
            Some("1 2 x 4"),
            Some("1 2 -3 4"),
        ] {
            assert!(ids(bad).is_err(), "{bad:?}");
        }
        assert_eq!((scope("1\n"), scope(""), scope("x")), (1, NOBODY, NOBODY));
    }
}
