//! fork(2) for a program without threads: a child that shares what its parent has read
//! and relocated, which an exec would have to do again and keep for itself.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::procfs;

/// A child of this process, until it is reaped.
#[derive(Debug)]
pub struct Child {
    /// Its pid, which means it until it is reaped.
    pub pid: i32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// What a child that panicked exits with, as std has it.
const PANICKED: i32 = 101;

/// Runs `what` in a child, to which `keep` moves: it has that and the standard streams
/// open, and nothing else of ours. It ends with the number that `what` answers. Our death
/// sends it `stop`, which it does not ignore, whatever we were started with (a shell has
/// what it starts with `&` ignore some signals).
///
/// # Errors
/// When this process has threads: what they had locked would be locked in the child for
/// ever. When the system refuses.
pub fn spawn(keep: OwnedFd, stop: Signal, what: impl FnOnce(OwnedFd) -> i32) -> io::Result<Child> {
    let n_threads = procfs::tids(std::process::id().cast_signed())?.len();
    if n_threads != 1 {
        let why = format!("a process with {n_threads} threads cannot be forked");
        return Err(io::Error::other(why));
    }
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child finds no lock taken by another.
    let pid = unsafe { libc::fork() };
    match super::check(pid.into())? {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(|| {
                close_all_but(keep.as_raw_fd());
                hear(stop);
                let _ = rustix::process::set_parent_process_death_signal(Some(stop));
                // It may have died before that was in force.
                if rustix::process::getppid() == Some(parent) {
                    what(keep)
                } else {
                    0
                }
            }));
            std::process::exit(code.unwrap_or(PANICKED));
        }
        _ => {
            // A positive number here; nobody but us can reap it before we have its pidfd.
            let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            match pidfd_open(raw, PidfdFlags::empty()) {
                Ok(pidfd) => Ok(Child { pid, pidfd }),
                Err(error) => {
                    // No descriptors are left: nobody would ever hear of it.
                    let _ = kill_process(raw, Signal::KILL);
                    let _ = wait(pid);
                    Err(error.into())
                }
            }
        }
    }
}

impl Child {
    /// Sends it a signal; one that has ended is sent nothing.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for its end, which is near or has come, and reaps it.
    ///
    /// # Errors
    /// ECHILD: somebody else has reaped it.
    pub fn reap(&self) -> io::Result<Ended> {
        wait(self.pid)
    }

    /// Ends it, which has hardly begun: nobody could hear of it.
    pub fn call_off(&self) {
        self.signal(Signal::KILL);
        // Somebody else has reaped it: then it has ended.
        let _ = self.reap();
    }
}

/// Waits for the end of a child of ours.
fn wait(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live int; the pid is that of a child of ours.
        let result = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        match super::check(result.into()) {
            Ok(_) if libc::WIFSIGNALED(status) => {
                return Ok(Ended::Signaled(libc::WTERMSIG(status)));
            }
            Ok(_) => return Ok(Ended::Exited(libc::WEXITSTATUS(status))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Gives a signal its default action: one that is ignored is not even noticed.
fn hear(signal: Signal) {
    // SAFETY: the default action needs no handler, and the number is that of a signal.
    unsafe { libc::signal(signal.as_raw(), libc::SIG_DFL) };
}

/// In a child that will never run the code that owns these descriptors: closes all but
/// `keep` and the standard streams.
fn close_all_but(keep: RawFd) {
    let keep = keep.cast_unsigned();
    let last = libc::STDERR_FILENO.cast_unsigned();
    for (first, last) in [(last + 1, keep.wrapping_sub(1)), (keep + 1, u32::MAX)] {
        if first <= last && !close_range(first, last) {
            return close_one_by_one(keep);
        }
    }
}

/// False where the kernel is older than 5.9.
fn close_range(first: u32, last: u32) -> bool {
    // SAFETY: closes descriptors whose owners are not run any more in this process.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

fn close_one_by_one(keep: u32) {
    let own = std::process::id().cast_signed();
    for number in procfs::descriptors(own).unwrap_or_default() {
        if number > libc::STDERR_FILENO && number.cast_unsigned() != keep {
            // SAFETY: as above. The one that listed them is closed already, which does no harm.
            unsafe { libc::close(number) };
        }
    }
}
