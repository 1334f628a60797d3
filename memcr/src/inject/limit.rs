//! A target that has as much as it may have gets a little more for the moment: limits
//! count when something is made, not afterwards.

use std::io;

use crate::sys::rlimit::{self, Limit, Resource};

/// A limit that is back when this is dropped.
#[derive(Debug)]
pub(super) struct LiftedLimit {
    pid: i32,
    resource: Resource,
    before: Limit,
}

impl LiftedLimit {
    /// Raises the limit of `pid` by `more`.
    ///
    /// # Errors
    /// EPERM: it would be above the hard limit, which takes CAP_SYS_RESOURCE.
    pub(super) fn lift(pid: i32, resource: Resource, more: u64) -> io::Result<Self> {
        let before = rlimit::get(pid, resource)?;
        let soft = before.0.saturating_add(more);
        rlimit::set(pid, resource, (soft, before.1.max(soft)))?;
        Ok(Self {
            pid,
            resource,
            before,
        })
    }
}

impl Drop for LiftedLimit {
    fn drop(&mut self) {
        // A lower limit may always be set; a target that is gone has none.
        let _ = rlimit::set(self.pid, self.resource, self.before);
    }
}
