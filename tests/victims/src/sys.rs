//! Small wrappers of system calls, with `io::Result` for an answer.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Length of a page, bytes.
pub(crate) fn page_len() -> usize {
    // SAFETY: sysconf has no preconditions.
    let len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Linux always knows its page size.
    usize::try_from(len).unwrap_or(4096)
}

/// The last `errno`.
pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// `-1` becomes the error behind it.
///
/// # Errors
/// The last `errno`.
pub(crate) fn check(ret: i32) -> io::Result<i32> {
    if ret == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// [`check`] for calls through `syscall`.
///
/// # Errors
/// The last `errno`.
pub(crate) fn check_long(ret: i64) -> io::Result<i64> {
    if ret == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

/// Whether there is something to be read from `fd`, or its end.
pub(crate) fn is_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Takes pages of another process out of RAM (process_madvise(2), MADV_PAGEOUT): to swap, or,
/// of what it has given up with MADV_FREE, for ever. Answers the bytes that were gone through.
///
/// # Errors
/// What the kernel says.
pub(crate) fn page_out(pid: i32, addr: u64, len: u64) -> io::Result<u64> {
    // SAFETY: both arguments are numbers.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let pages = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(addr as usize),
        iov_len: len as usize,
    };
    // SAFETY: the call reads one iovec, which outlives it; the pages are another process's.
    let n = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            std::os::fd::AsRawFd::as_raw_fd(&pidfd),
            &raw const pages,
            1,
            libc::MADV_PAGEOUT,
            0,
        )
    };
    Ok(check_long(n)?.cast_unsigned())
}

/// Takes a descriptor that a call has just made.
///
/// # Errors
/// The last `errno` if the call failed.
pub(crate) fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = check_long(fd)?;
    // SAFETY: the caller passes the result of a call that creates a descriptor; it is
    // new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `prctl` with integer arguments.
///
/// # Errors
/// What the kernel says.
pub(crate) fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> io::Result<i32> {
    // SAFETY: the modes pass options whose arguments are numbers or point to memory
    // that lives as long as the process.
    check(unsafe { libc::prctl(option, a, b, c, d) })
}

/// Names the calling thread; at most 15 bytes count.
pub(crate) fn set_comm(name: &str) {
    let Ok(name) = std::ffi::CString::new(name) else {
        return;
    };
    // SAFETY: a NUL-terminated string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// The calling thread's id.
pub(crate) fn tid() -> i32 {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}

/// A pipe: read end, write end.
///
/// # Errors
/// What the kernel says.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(i64::from(fds[0]))?, owned(i64::from(fds[1]))?))
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is writable; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps `us` microseconds and reports an interruption that nobody asked for.
///
/// # Errors
/// What `nanosleep` says: an undisturbed thread without handlers never sees EINTR.
pub(crate) fn nap_us(us: u64) -> io::Result<()> {
    let span = libc::timespec {
        tv_sec: (us / 1_000_000) as i64,
        tv_nsec: (us % 1_000_000 * 1000) as i64,
    };
    // SAFETY: `span` outlives the call; no remainder is asked for.
    check(unsafe { libc::nanosleep(&raw const span, std::ptr::null_mut()) }).map(drop)
}

/// A soft limit set to `soft`; the hard limit stays.
///
/// # Errors
/// What the kernel says.
pub(crate) fn set_soft_limit(resource: libc::__rlimit_resource_t, soft: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    limit.rlim_cur = soft.min(limit.rlim_max);
    // SAFETY: `limit` is readable.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Forks; the child runs `body` and exits with its answer, never returning.
///
/// # Errors
/// What the kernel says.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the modes fork before they start threads, so the child finds every lock
    // free and may run ordinary code.
    let pid = check(unsafe { libc::fork() })?;
    if pid != 0 {
        return Ok(pid);
    }
    // A child must not outlive its victim, however that ends.
    let _ = prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
    let status = body();
    // SAFETY: _exit has no preconditions; it skips the parent's atexit handlers.
    unsafe { libc::_exit(status) }
}
