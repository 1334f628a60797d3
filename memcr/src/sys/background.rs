//! Scheduling behind others, for work that can wait (sched(7), ioprio_set(2)).
//!
//! All of it is about the calling thread alone, and for as long as it lives: a thread
//! without CAP_SYS_NICE comes back from neither (RLIMIT_NICE). Threads that it makes begin
//! as it is then.

use std::io;

use super::hurry::{self, Attr, IDLE};

/// ioprio_set(2): `who` is a thread; 0 is our own.
const WHO_PROCESS: libc::c_int = 1;
/// The class "idle" at its place in the value; it has no levels.
const CLASS_IDLE: libc::c_long = 3 << 13;

/// Lets the calling thread have a CPU only while nobody else wants it (SCHED_IDLE). It is
/// not starved: its weight is 3, where that of an ordinary thread is 1024.
///
/// # Errors
/// EPERM under a seccomp filter that forbids it; nobody else needs a right to hold back.
pub fn idle_cpu() -> io::Result<()> {
    let before = hurry::get(0)?;
    hurry::set(0, &Attr::of(IDLE, before))
}

/// Lets the calling thread have the disk only while nobody else wants it, where the disk's
/// scheduler knows classes (bfq; others treat all alike).
///
/// # Errors
/// ENOSYS: a kernel without block devices; EPERM as [`idle_cpu`].
pub fn idle_io() -> io::Result<()> {
    // SAFETY: all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    super::check(result).map(drop)
}

/// Lets the calling thread go `steps` steps of nice(2) behind where it is, at most to 19.
/// Each step is worth about a quarter of what it has beside others.
///
/// # Errors
/// EPERM as [`idle_cpu`].
pub fn step_back(steps: i32) -> io::Result<()> {
    Ok(rustix::process::nice(steps).map(drop)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// In a thread that ends: nobody comes back from there.
    fn aside<T: Send + 'static>(what: fn() -> T) -> T {
        std::thread::spawn(what).join().unwrap()
    }

    fn io_class() -> libc::c_long {
        // SAFETY: all arguments are numbers.
        unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) }
    }

    #[test]
    fn a_thread_holds_back_and_no_other_does() {
        let before = hurry::get(0).unwrap();
        let (policy, class) = aside(|| {
            idle_cpu().unwrap();
            idle_io().unwrap();
            (hurry::get(0).unwrap().policy, io_class())
        });
        assert_eq!((policy, class), (IDLE, CLASS_IDLE));
        let nice = aside(|| {
            step_back(3).unwrap();
            hurry::get(0).unwrap().nice
        });
        assert_eq!(nice, (before.nice + 3).min(19));
        let after = hurry::get(0).unwrap();
        assert_eq!((after.policy, after.nice), (before.policy, before.nice));
        assert_ne!(io_class(), CLASS_IDLE);
    }
}
