//! The process that the user named, looked at before anything is done to it.
//!
//! Everything that makes a checkpoint impossible or unsafe is found here, while the
//! target runs, and named. [`Target::check_frozen`] repeats, on the frozen process,
//! what may have changed in between.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use super::Registers;
use super::busy::{self, Io};
use super::rest::Rest;
use crate::sys::kcmp;
use crate::sys::procfs::{self, Stat, Status};

/// How long the other threads of a process that ends may take to do so.
const EXIT_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// The first process of our pid namespace.
const FIRST: i32 = 1;

/// Why a process cannot be checkpointed. It was not touched, and runs on.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none, or it is gone.
    #[error("no process {0}")]
    NoSuchProcess(i32),
    /// The caller may not trace it.
    #[error("process {pid} may not be traced or stopped by us: {source}")]
    Permission {
        /// The target.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A debugger or the like has it.
    #[error("process {pid} is traced by process {tracer} ({name}) already")]
    Traced {
        /// The target.
        pid: i32,
        /// Its tracer.
        tracer: i32,
        /// The tracer's name.
        name: String,
    },
    /// It has no memory of its own.
    #[error("process {0} is a thread of the kernel")]
    KernelThread(i32),
    /// It has ended, its parent has not noticed yet.
    #[error("process {0} is a zombie")]
    Zombie(i32),
    /// The user named a thread.
    #[error("{tid} is a thread of process {pid}; name the process")]
    NotLeader {
        /// What the user named.
        tid: i32,
        /// Its process.
        pid: i32,
    },
    /// memcr would freeze itself, or wait for what it has frozen.
    #[error("process {0} is memcr itself or one of its ancestors")]
    Ourselves(i32),
    /// The kernel keeps from it what nobody outside of its pid namespace sends, SIGKILL too
    /// (pid_namespaces(7)): it would run on where it must not.
    #[error(
        "process {0} is the first one of this pid namespace, which nobody within can stop or end"
    )]
    First(i32),
    /// Two processes, one memory (CLONE_VM, vfork).
    #[error("process {pid} shares its memory with process {other}, which would run on without it")]
    SharedMemory {
        /// The target.
        pid: i32,
        /// The other one.
        other: i32,
    },
    /// Its first thread has ended while others live.
    #[error("the first thread of process {0} has ended")]
    LeaderExited(i32),
    /// 32-bit code under a 64-bit memcr.
    #[error(
        "thread {0} runs code of another ABI than memcr (32-bit); a memcr of that ABI is needed"
    )]
    ForeignAbi(i32),
    /// A filter would see, and might punish, our calls.
    #[error(
        "process {0} has a seccomp filter and we may not suspend it (needs CAP_SYS_ADMIN, and no filter of our own)"
    )]
    Seccomp(i32),
    /// The kernel may be writing into its pages while it stands still.
    #[error("process {pid} has input or output under way that does not stop with it: {what}")]
    IoUnderWay {
        /// The target.
        pid: i32,
        /// Which.
        what: String,
    },
    /// A thread does not stop.
    #[error("thread {tid} of process {pid} does not stop (state {state}{}): uninterruptible wait, perhaps a vfork", in_kernel(.wchan))]
    DoesNotStop {
        /// The target.
        pid: i32,
        /// The thread.
        tid: i32,
        /// Its state's letter.
        state: char,
        /// Where in the kernel it waits, if known.
        wchan: String,
    },
    /// A cgroup freezer holds it: code of ours would never run.
    #[error("process {pid} is frozen by the cgroup {cgroup}")]
    CgroupFrozen {
        /// The target.
        pid: i32,
        /// The cgroup, below its mount.
        cgroup: String,
    },
    /// New threads appeared faster than they could be stopped.
    #[error("process {pid} still had new threads after {passes} passes")]
    Unfinished {
        /// The target.
        pid: i32,
        /// How often its threads were listed.
        passes: usize,
    },
}

fn in_kernel(wchan: &str) -> String {
    if wchan.is_empty() || wchan == "0" {
        String::new()
    } else {
        format!(" in {wchan}")
    }
}

/// The process to be worked on; its descriptor keeps the pid from meaning another one.
#[derive(Debug)]
pub struct Target {
    /// Its pid in our namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// All processes that there were when it was examined.
    others: HashSet<i32>,
    rest: Rest,
    io: Io,
    pidfd: OwnedFd,
}

impl AsFd for Target {
    /// The pidfd: readable once the process has ended (pidfd_open(2)).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Target {
    /// Looks at `pid`.
    ///
    /// # Errors
    /// The first reason why it cannot be checkpointed.
    pub fn examine(pid: i32) -> Result<Self, Refusal> {
        Self::examine_beside(pid, || ()).map(|(target, ())| target)
    }

    /// The same; `begin` is called as soon as it is known where its threads are, and that nobody
    /// else has its memory: what is read from then on is still right when [`Frozen::has_slept`]
    /// says so. Of thousands of threads and mappings what comes later takes a while.
    ///
    /// # Errors
    /// As [`Target::examine`]: what was begun may go on.
    ///
    /// [`Frozen::has_slept`]: super::Frozen::has_slept
    pub fn examine_beside<T>(pid: i32, begin: impl FnOnce() -> T) -> Result<(Self, T), Refusal> {
        // Below 1 are the caller's group and other groups, not processes.
        let raw = Some(pid)
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw)
            .ok_or(Refusal::NoSuchProcess(pid))?;
        let status = Status::of_process(pid).map_err(|_| Refusal::NoSuchProcess(pid))?;
        // pidfd_open refuses a thread, but does not say whose it is.
        let tgid = status.number("Tgid").map_or(pid, |tgid| tgid as i32);
        if tgid != pid {
            return Err(Refusal::NotLeader {
                tid: pid,
                pid: tgid,
            });
        }
        let pidfd = pidfd_open(raw, PidfdFlags::empty())
            .map_err(|error| gone_or_forbidden(pid, error.into()))?;
        let stat = Stat::read(pid).map_err(|_| Refusal::NoSuchProcess(pid))?;
        check_kind(pid, &status, stat, &pidfd)?;
        check_tracer(pid, &status)?;
        // The same right as ptrace(2) demands (PTRACE_MODE_ATTACH), asked for early.
        fs::File::open(format!("/proc/{pid}/mem"))
            .map_err(|error| gone_or_forbidden(pid, error))?;
        // Armed is who is sent SIGSTOP; without that nothing may be dropped.
        test_kill_process(raw).map_err(|error| gone_or_forbidden(pid, error.into()))?;
        check_cgroup(pid)?;
        // Before all that is read and must still hold when it is frozen.
        let rest = Rest::note(pid);
        let others = procfs::pids().unwrap_or_default();
        check_memory_is_its_own(pid, &others)?;
        let begun = begin();
        busy::check_workers(pid)?;
        let target = Self {
            pid,
            start_time: stat.start_time,
            others: others.into_iter().collect(),
            rest,
            io: Io::look(pid)?,
            pidfd,
        };
        Ok((target, begun))
    }

    /// The process of a session: it was examined when it was checkpointed. Whether it
    /// still is the same, the caller has found out by its start time, and finds out once
    /// more here, now that a descriptor keeps the pid from meaning another one.
    ///
    /// # Errors
    /// [`Refusal::NoSuchProcess`], `Permission`, `Traced`, `CgroupFrozen`.
    pub fn of_session(pid: i32, start_time: u64) -> Result<Self, Refusal> {
        let raw = Pid::from_raw(pid).ok_or(Refusal::NoSuchProcess(pid))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())
            .map_err(|error| gone_or_forbidden(pid, error.into()))?;
        let status = Status::of_process(pid).map_err(|_| Refusal::NoSuchProcess(pid))?;
        let stat = Stat::read(pid).map_err(|_| Refusal::NoSuchProcess(pid))?;
        if stat.start_time != start_time || matches!(status.state(), 'Z' | 'X') {
            return Err(Refusal::NoSuchProcess(pid));
        }
        check_tracer(pid, &status)?;
        check_cgroup(pid)?;
        Ok(Self {
            pid,
            start_time,
            others: HashSet::new(),
            rest: Rest::default(),
            io: Io::default(),
            pidfd,
        })
    }

    /// Its memory without a file behind it, in RAM and in swap, bytes; 0: not known.
    #[must_use]
    pub fn anonymous_bytes(&self) -> u64 {
        let Ok(status) = Status::of_process(self.pid) else {
            return 0;
        };
        let kib = ["RssAnon", "VmSwap"].map(|field| status.number(field).unwrap_or(0));
        kib.iter().sum::<u64>() * 1024
    }

    /// Whether no thread has run since the target was examined. `threads`: all of them,
    /// which are stopped.
    pub(super) fn has_slept(&self, threads: &Registers) -> bool {
        self.rest.lasted(self.pid, threads)
    }

    /// What can be told for sure only while nothing of the target runs. `has_slept`: as
    /// [`Target::has_slept`] says.
    ///
    /// # Errors
    /// [`Refusal::CgroupFrozen`], [`Refusal::IoUnderWay`], [`Refusal::SharedMemory`].
    pub(super) fn check_frozen(&mut self, has_slept: bool) -> Result<(), Refusal> {
        // One that a freezer has stopped meanwhile would never make a call for us.
        check_cgroup(self.pid)?;
        if has_slept {
            return self.check_idle();
        }
        // A process comes to share a memory by being born so: those that were there when
        // the target was examined need not be asked again.
        let mut fresh = procfs::pids().unwrap_or_default();
        fresh.retain(|pid| !self.others.contains(pid));
        check_memory_is_its_own(self.pid, &fresh)?;
        self.io = Io::look(self.pid)?;
        Ok(())
    }

    /// Whether the process has ended, whoever has its number now.
    pub(super) fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// There is something by which the kernel may still change pages while it stands still.
    #[must_use]
    pub fn may_wake(&self) -> bool {
        self.io.may_wake()
    }

    /// Whether nothing has completed since the last look, without any thread.
    ///
    /// # Errors
    /// [`Refusal::IoUnderWay`].
    pub(super) fn check_idle(&self) -> Result<(), Refusal> {
        self.io.look_again(self.pid)
    }
}

/// ESRCH and ENOENT mean that it is gone; the rest, that we may not.
pub(super) fn gone_or_forbidden(pid: i32, error: io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => Refusal::NoSuchProcess(pid),
        _ => Refusal::Permission { pid, source: error },
    }
}

fn check_kind(pid: i32, status: &Status, stat: Stat, pidfd: &OwnedFd) -> Result<(), Refusal> {
    if stat.is_kernel_thread {
        return Err(Refusal::KernelThread(pid));
    }
    if matches!(status.state(), 'Z' | 'X') {
        return Err(zombie(pid, pidfd));
    }
    // One that came in from outside is no child of it.
    if pid == FIRST {
        return Err(Refusal::First(pid));
    }
    let mut ancestor = std::process::id().cast_signed();
    while ancestor > 0 {
        if ancestor == pid {
            return Err(Refusal::Ourselves(pid));
        }
        ancestor = Stat::read(ancestor).map_or(0, |stat| stat.parent);
    }
    Ok(())
}

/// The leader is a zombie to all eyes while its other threads live on: for good, or for
/// the moment that a process takes to end.
fn zombie(pid: i32, pidfd: &OwnedFd) -> Refusal {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let ended = matches!(poll(&mut fds, Some(&EXIT_TIME)), Ok(1..));
    let others = procfs::tids(pid).unwrap_or_default().len() > 1;
    if others && !ended {
        Refusal::LeaderExited(pid)
    } else {
        Refusal::Zombie(pid)
    }
}

pub(super) fn check_tracer(pid: i32, status: &Status) -> Result<(), Refusal> {
    match status.number("TracerPid") {
        None | Some(0) => Ok(()),
        Some(tracer) => {
            let tracer = tracer as i32;
            let name = Status::of_process(tracer)
                .ok()
                .and_then(|status| status.field("Name").map(str::to_owned));
            Err(Refusal::Traced {
                pid,
                tracer,
                name: name.unwrap_or_else(|| "unknown".into()),
            })
        }
    }
}

fn check_cgroup(pid: i32) -> Result<(), Refusal> {
    frozen_by(pid).map_or(Ok(()), |cgroup| Err(Refusal::CgroupFrozen { pid, cgroup }))
}

/// The cgroup that keeps process `pid` from running. A freezer of cgroup v2
/// (Documentation/admin-guide/cgroup-v2.rst) says in `cgroup.events` whether the group, or one
/// above it, is frozen; one of v1 (cgroup-v1/freezer-subsystem.rst) in `freezer.state`.
#[must_use]
pub(crate) fn frozen_by(pid: i32) -> Option<String> {
    // Bytes: whoever makes a cgroup may give it a name that is not UTF-8.
    let groups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        let (controllers, cgroup) = (fields.next()?, fields.next()?);
        is_frozen(controllers, cgroup).then(|| String::from_utf8_lossy(cgroup).into_owned())
    })
}

fn is_frozen(controllers: &[u8], cgroup: &[u8]) -> bool {
    let read = |top: &str, name: &str| {
        let path = [top.as_bytes(), cgroup, name.as_bytes()].concat();
        fs::read_to_string(OsStr::from_bytes(&path)).unwrap_or_default()
    };
    if controllers.is_empty() {
        // Beside hierarchies of v1 it has a directory of its own.
        return ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .any(|top| {
                let events = read(top, "/cgroup.events");
                events.lines().any(|line| line == "frozen 1")
            });
    }
    if controllers != b"freezer" {
        return false;
    }
    let state = read("/sys/fs/cgroup/freezer", "/freezer.state");
    matches!(state.trim(), "FROZEN" | "FREEZING")
}

/// Asks about every process: nothing in /proc tells which ones share a memory. Without
/// CONFIG_KCMP it cannot be told at all; a vfork is still found, its parent does not stop.
fn check_memory_is_its_own(pid: i32, others: &[i32]) -> Result<(), Refusal> {
    // Two processes without any memory look alike: kernel threads, and a target that is
    // about to end, or whose first thread has ended for another one that execs.
    let shares = |other: &&i32| {
        **other != pid && kcmp::share_memory(pid, **other).unwrap_or(false) && has_memory(**other)
    };
    match others.iter().find(shares) {
        Some(_) if !has_memory(pid) => Err(Refusal::NoSuchProcess(pid)),
        Some(&other) => Err(Refusal::SharedMemory { pid, other }),
        None => Ok(()),
    }
}

/// False once a process has given its memory back on its way out: all of
/// `/proc/PID/statm` is 0 then.
pub(super) fn has_memory(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/statm")).is_ok_and(|text| !text.starts_with("0 "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_cannot_be_are_refused_by_name() {
        assert!(matches!(Target::examine(0), Err(Refusal::NoSuchProcess(0))));
        assert!(matches!(
            Target::examine(-4),
            Err(Refusal::NoSuchProcess(-4))
        ));
        let own = std::process::id().cast_signed();
        assert!(matches!(Target::examine(own), Err(Refusal::Ourselves(pid)) if pid == own));
    }
}
