//! Input and output that does not stop with the threads: while pages are stored and
//! dropped, the kernel or a device may write into them.
//!
//! ```text
//!  /proc/PID/status   VmPin                      pinned for a device (RDMA, iommufd)
//!  /proc/PID/maps     /[aio]                     an AIO context: what is under way is not told
//!                     socket:[…], offset 4 GiB   an AF_XDP socket: memory is pinned, and VmPin is 0
//!                     anon_inode:[io_uring]      on no descriptor: a ring that cannot be asked
//!  /proc/PID/fd       anon_inode:[io_uring]  ──▶ ring: its fdinfo, its lists of buffers
//!                     /dev/vhost-*, /dev/vfio/*  the kernel or a device works on its memory
//!  /proc/PID/task     PF_USER_WORKER             the kernel's own threads (io_uring, vhost)
//! ```
//!
//! A link costs some 5 µs, so 10,000 descriptors cost 50 ms; the lists of a ring cost some
//! 30 ms. They are read while the target runs; once it stands still only what can have changed
//! is read again: all of it, unless no thread has run since ([`super::rest::Rest`]), then the
//! rings' state alone, whose requests complete without any thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::ring::{self, Ring};
use super::target::{Refusal, gone_or_forbidden};
use crate::maps::vma::{self, Vma};
use crate::sys::procfs::{self, Stat, Status};

/// Files through which something else works on the memory of who has opened them.
const BUSY_FILES: [&[u8]; 4] = [
    b"/dev/vhost",
    b"/dev/vfio/",
    b"anon_inode:[vfio-",
    b"/dev/iommu",
];

/// From here on, in the file of an AF_XDP socket, lie the rings of its UMEM
/// (`XDP_UMEM_PGOFF_FILL_RING` of linux/if_xdp.h): in the memory that they speak of a device
/// writes what it receives. Other rings of sockets begin below.
const UMEM_RINGS: u64 = 0x1_0000_0000;

/// Threads of io_uring (io_uring/io-wq.c, io_uring/sqpoll.c) and of vhost devices.
const WORKERS: [&str; 2] = ["iou-", "vhost-"];

/// What was found that may come to life while the target stands still: idle rings.
#[derive(Debug, Default)]
pub(super) struct Io {
    rings: Vec<Ring>,
}

impl Io {
    /// Looks at everything.
    ///
    /// # Errors
    /// [`Refusal::IoUnderWay`], or that of a target that may not be looked at.
    pub(super) fn look(pid: i32) -> Result<Self, Refusal> {
        check_pinned(pid)?;
        let maps =
            fs::read(format!("/proc/{pid}/maps")).map_err(|error| gone_or_forbidden(pid, error))?;
        // The ring of an AIO context is mapped under this name (fs/aio.c).
        if maps.windows(6).any(|window| window == b"/[aio]") {
            return refuse(pid, "an asynchronous I/O context (io_setup)".into());
        }
        let special = special(&maps);
        if has_umem(&special) {
            return refuse(pid, "memory for the frames of an AF_XDP socket".into());
        }
        let rings = rings(pid)?;
        check_rings(pid, &rings, &special)?;
        Ok(Self { rings })
    }

    /// There is something by which pages may still change.
    pub(super) fn may_wake(&self) -> bool {
        !self.rings.is_empty()
    }

    /// Looks again at a target whose threads have not run since: rings are as idle as
    /// they were, and nothing has completed meanwhile.
    ///
    /// # Errors
    /// [`Refusal::IoUnderWay`].
    pub(super) fn look_again(&self, pid: i32) -> Result<(), Refusal> {
        for ring in &self.rings {
            ring.is_unchanged(pid)
                .map_err(|what| under_way(pid, ring.named(&what)))?;
        }
        Ok(())
    }
}

pub(super) fn under_way(pid: i32, what: String) -> Refusal {
    Refusal::IoUnderWay { pid, what }
}

fn refuse<T>(pid: i32, what: String) -> Result<T, Refusal> {
    Err(under_way(pid, what))
}

fn check_pinned(pid: i32) -> Result<(), Refusal> {
    let status = Status::of_process(pid).map_err(|_| Refusal::NoSuchProcess(pid))?;
    match status.number("VmPin").filter(|&kib| kib > 0) {
        Some(pinned) => refuse(pid, format!("{pinned} KiB are pinned for device access")),
        None => Ok(()),
    }
}

/// The mappings of files that are none of a file system's: their names end so. Few do, the
/// others are not taken apart.
fn special(maps: &[u8]) -> Vec<Vma> {
    let lines = maps.split(|&byte| byte == b'\n');
    let lines = lines.filter(|line| line.ends_with(b"]"));
    lines
        .filter_map(|line| vma::parse(line).ok())
        .flatten()
        .collect()
}

/// Whether rings of a UMEM are among the mappings. No other trace of one can be seen from
/// outside: its pages count as the user's, not as those of a process.
fn has_umem(vmas: &[Vma]) -> bool {
    let is_ring = |vma: &Vma| vma.name.starts_with(b"socket:[") && vma.offset >= UMEM_RINGS;
    vmas.iter().any(is_ring)
}

/// All of them are idle, and there is no other.
fn check_rings(pid: i32, rings: &[Ring], vmas: &[Vma]) -> Result<(), Refusal> {
    for ring in rings {
        let pidfd = Pid::from_raw(pid).ok_or(Refusal::NoSuchProcess(pid))?;
        let pidfd = pidfd_open(pidfd, PidfdFlags::empty())
            .map_err(|error| gone_or_forbidden(pid, error.into()))?;
        let idle = ring.check(vmas);
        idle.and_then(|()| ring.check_buffers(pidfd.as_fd(), vmas))
            .map_err(|what| under_way(pid, ring.named(&what)))?;
    }
    // Of one whose state cannot be read the inode is not known either.
    if ring::has_hidden(vmas, rings) {
        return refuse(pid, "an io_uring that is on no descriptor".into());
    }
    Ok(())
}

/// A thread that the kernel runs on behalf of the target can neither be traced nor
/// stopped.
pub(super) fn check_workers(pid: i32) -> Result<(), Refusal> {
    let tids = procfs::tids(pid).map_err(|error| gone_or_forbidden(pid, error))?;
    match tids.into_iter().find_map(|tid| worker(pid, tid)) {
        Some(what) => refuse(pid, what),
        None => Ok(()),
    }
}

/// What `tid` is, if it is such a thread.
pub(super) fn worker(pid: i32, tid: i32) -> Option<String> {
    let path = format!("{pid}/task/{tid}");
    let name = procfs::read_lossy(&format!("/proc/{path}/comm")).ok()?;
    // The kernel names them so; others may too, which the flags tell.
    let is_worker = WORKERS.iter().any(|worker| name.starts_with(worker))
        && Stat::read(&path).is_ok_and(|stat| stat.is_user_worker);
    is_worker.then(|| format!("thread {tid} ({}), which the kernel runs", name.trim_end()))
}

/// The io_uring instances among the descriptors.
fn rings(pid: i32) -> Result<Vec<Ring>, Refusal> {
    let cannot = |error: io::Error| gone_or_forbidden(pid, error);
    let dir = open_dir(pid).map_err(cannot)?;
    let mut rings = Vec::new();
    for number in procfs::descriptors(pid).map_err(cannot)? {
        // Closed meanwhile.
        let Ok(link) = rustix::fs::readlinkat(&dir, number.to_string(), Vec::new()) else {
            continue;
        };
        let link = link.to_bytes();
        if link == ring::NAME {
            rings.push(Ring::read(pid, number).map_err(cannot)?);
        } else if BUSY_FILES.iter().any(|name| link.starts_with(name)) {
            let link = String::from_utf8_lossy(link);
            return refuse(pid, format!("{link} on descriptor {number}"));
        }
    }
    Ok(rings)
}

fn open_dir(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        format!("/proc/{pid}/fd"),
        flags,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_of_a_umem_are_found() {
        let is_found = |line: &str| {
            let maps = format!("1000-2000 rw-p 00000000 00:00 0 \n{line}\n");
            has_umem(&special(maps.as_bytes()))
        };
        assert!(is_found(
            "3000-4000 rw-s 100000000 00:09 5537177                   socket:[5537177]"
        ));
        assert!(is_found("3000-4000 rw-s 180000000 00:09 7 socket:[7]"));
        // What a socket has received and is to send (packet(7), AF_XDP without a UMEM).
        assert!(!is_found("3000-4000 rw-s 00000000 00:09 7 socket:[7]"));
        assert!(!is_found("3000-4000 rw-s 80000000 00:09 7 socket:[7]"));
        // A file whose name is like that.
        assert!(!is_found(
            "3000-4000 r--p 100000000 08:01 7 /tmp/socket:[7]"
        ));
        assert!(!is_found("3000-4000 r--p 100000000 08:01 7 /tmp/socket"));
    }
}
