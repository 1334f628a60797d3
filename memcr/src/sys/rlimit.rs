//! prlimit(2): how many descriptors another process may have.

use std::io;

/// The limit that counts, and the one up to which its owner may raise it.
pub type Limit = (u64, u64);

/// RLIMIT_NOFILE of `pid`.
///
/// # Errors
/// EPERM: of another user, without CAP_SYS_RESOURCE; ESRCH.
pub fn nofile(pid: i32) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no new limit is passed, the old one goes to a live struct.
    let result =
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
    super::check(result.into()).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// Sets RLIMIT_NOFILE of `pid`.
///
/// # Errors
/// EPERM: the second one is to be raised, without CAP_SYS_RESOURCE, or beyond
/// `fs.nr_open`; ESRCH.
pub fn set_nofile(pid: i32, (soft, hard): Limit) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit is a live struct, the old one is not asked for.
    let result = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    super::check(result.into()).map(drop)
}
