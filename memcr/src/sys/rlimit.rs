//! prlimit(2): what another process may have.

use std::io;

/// The limit that counts, and the one up to which its owner may raise it.
pub type Limit = (u64, u64);

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// RLIMIT_NOFILE: descriptors.
    Descriptors,
    /// RLIMIT_AS: bytes of mappings.
    Mappings,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::Descriptors => libc::RLIMIT_NOFILE,
            Self::Mappings => libc::RLIMIT_AS,
        }
    }
}

/// The limit of `pid`.
///
/// # Errors
/// EPERM: of another user, without CAP_SYS_RESOURCE; ESRCH.
pub fn get(pid: i32, resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no new limit is passed, the old one goes to a live struct.
    let result = unsafe { libc::prlimit(pid, resource.number(), std::ptr::null(), &raw mut limit) };
    super::check(result.into()).map(|_| (limit.rlim_cur, limit.rlim_max))
}

/// Sets the limit of `pid`.
///
/// # Errors
/// EPERM: the second one is to be raised, without CAP_SYS_RESOURCE, or (of descriptors)
/// beyond `fs.nr_open`; ESRCH.
pub fn set(pid: i32, resource: Resource, (soft, hard): Limit) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the new limit is a live struct, the old one is not asked for.
    let result = unsafe {
        libc::prlimit(
            pid,
            resource.number(),
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    super::check(result.into()).map(drop)
}
