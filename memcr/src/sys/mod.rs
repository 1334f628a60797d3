//! The only raw system calls of memcr: one file per kernel facility.
//!
//! No decisions and no logging here: each function is one call (or one loop over
//! EINTR and short counts) that answers owned things or the system's error.
#![allow(unsafe_code)]

pub mod arch;
pub mod background;
pub mod collapse;
pub mod features;
pub mod fork;
pub mod heap;
pub mod hurry;
pub mod io_uring;
pub mod kcmp;
pub mod keyring;
pub mod last_words;
pub mod pagemap;
pub mod peer;
pub mod proc_mem;
pub mod process_vm;
pub mod procfs;
pub mod program;
pub mod ptrace;
pub mod rlimit;
pub mod same_cpu;
pub mod sched;
pub mod sock_diag;
pub mod taskstats;
pub mod userfaultfd;
pub mod wait;

use std::io;

/// The last call's error as an `io::Result`, for calls that answer -1 on failure.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Size of a page here, in bytes. Targets are of our own architecture, so it is theirs too.
#[must_use]
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Length of a huge page that one entry of the page table's next level maps, bytes: as many pages
/// as a page holds entries of 8 bytes.
#[must_use]
pub fn huge_page_size() -> u64 {
    page_size() * page_size() / 8
}

/// Our own thread's id.
#[must_use]
pub fn gettid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Whether the kernel says that this program has more rights than its caller (set-user-ID,
/// file capabilities): the caller's environment must then decide nothing.
#[must_use]
pub fn is_secure() -> bool {
    // SAFETY: getauxval reads a value that the kernel gave this process; any key is
    // allowed, and one that is missing reads as 0.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Has a write that would make a file longer than RLIMIT_FSIZE allows answer EFBIG, as one on a full
/// disk answers ENOSPC, and nothing more: by default SIGXFSZ ends the process besides.
pub fn ignore_file_size_signal() {
    // SAFETY: a signal that is ignored needs no handler, and the number is that of a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Sends `signal` to one thread of a process (tgkill(2)).
///
/// # Errors
/// ESRCH: gone; EPERM.
pub fn tgkill(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: all arguments are numbers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}
