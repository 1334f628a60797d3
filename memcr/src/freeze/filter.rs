//! The target's seccomp filter, which is off for our calls and for nothing else.
//!
//! ```text
//!   attach, tell to stop     on: until it stops a thread makes calls of its own
//!   all stand still          off, for the first thread, which makes our calls
//!   let go                   on: the kernel looks whether we trace the thread
//! ```
//!
//! PTRACE_O_SUSPEND_SECCOMP is therefore no option to attach with. A thread that is born of a
//! traced one is traced with the same options, so it is not one to wait with either.

use std::io;

use super::{FreezeError, Frozen, Refusal, Target};
use crate::sys::procfs::Status;
use crate::sys::ptrace;

impl Target {
    /// It has a filter, which is suspended while it makes calls for us, and as long as we live.
    #[must_use]
    pub fn suspends_filter(&self) -> bool {
        has_seccomp(self.pid) && may_suspend_seccomp()
    }
}

impl Frozen {
    /// Switches the filter of the first thread off. All stand still.
    ///
    /// # Errors
    /// [`Refusal::Seccomp`].
    pub(super) fn suspend_filter(&mut self) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let first = self.tids.first().filter(|_| has_seccomp(pid));
        let Some(&first) = first else {
            return Ok(());
        };
        self.suspended = Some(first);
        self.set_options(first, 0).map_err(|source| {
            self.suspended = None;
            match source.raw_os_error() {
                // As in another user namespace than the first, whatever our capabilities say.
                Some(libc::EPERM) => Refusal::Seccomp(pid).into(),
                _ => self.request("set options of", first, source),
            }
        })
    }

    /// Sets the options of a thread that stands still: those of all, and `more`.
    pub(super) fn set_options(&self, tid: i32, more: i32) -> io::Result<()> {
        let suspend = match self.suspended == Some(tid) {
            true => ptrace::SUSPEND_SECCOMP,
            false => 0,
        };
        ptrace::set_options(tid, self.options | suspend | more)
    }
}

/// Whether `pid` has no filter, or we may suspend it as far as is known beforehand.
///
/// # Errors
/// [`Refusal::Seccomp`].
pub(super) fn check(pid: i32) -> Result<(), Refusal> {
    if has_seccomp(pid) && !may_suspend_seccomp() {
        return Err(Refusal::Seccomp(pid));
    }
    Ok(())
}

/// A seccomp filter or strict mode of the first thread, the one that makes calls for us.
fn has_seccomp(pid: i32) -> bool {
    let status = Status::of_process(pid);
    status.is_ok_and(|status| status.number("Seccomp").is_some_and(|mode| mode != 0))
}

/// CAP_SYS_ADMIN, bit 21 of the effective set (capabilities(7)), and no filter of our own,
/// such as a service manager's: PTRACE_O_SUSPEND_SECCOMP takes both (ptrace(2)).
fn may_suspend_seccomp() -> bool {
    let own = Status::of_process(std::process::id().cast_signed());
    own.is_ok_and(|status| {
        status.signals("CapEff") & 1 << 21 != 0 && status.number("Seccomp") == Some(0)
    })
}
