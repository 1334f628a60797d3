//! A permission that can be looked at again: by a session's process, once its target
//! stands still and cannot become anything else any more.

use super::peer::Peer;
use super::rules::{Denied, Rules};

/// What somebody may do, as plain data.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    rules: Rules,
    peer: Peer,
}

impl Permit {
    /// What `peer` may do; `None`: everything, so that there is nothing to look at again.
    pub(super) fn new(rules: &Rules, peer: &Peer) -> Option<Self> {
        (!rules.acts_on_all(peer)).then(|| Self {
            rules: rules.clone(),
            peer: peer.clone(),
        })
    }

    /// Whether it still holds for process `pid`, which is frozen.
    ///
    /// # Errors
    /// The rule that says no.
    pub(crate) fn check(&self, pid: i32) -> Result<(), NotAny> {
        let target = self.rules.look_at_frozen(pid).map_err(NotAny::Gone)?;
        // That it is none of the daemon's own was seen when it was asked for.
        self.rules.may(&self.peer, &target, |_| false)?;
        Ok(())
    }
}

/// Why a permission does not hold any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAny {
    /// The target cannot be looked at.
    #[error("it cannot be looked at")]
    Gone(#[source] std::io::Error),
    /// A rule says no.
    #[error(transparent)]
    Denied(DeniedBy),
}

/// The rule that says no, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DeniedBy(String);

impl From<Denied> for NotAny {
    fn from(denied: Denied) -> Self {
        Self::Denied(DeniedBy(denied.to_string()))
    }
}
