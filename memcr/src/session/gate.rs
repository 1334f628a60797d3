//! Gates: moments at which sessions that are one wait for each other.
//!
//! ```text
//!   checkpoint   Prepared ─▶ (freeze) ─▶ Frozen ─▶ (store, commit) ─▶ Stored ─▶ (drop)
//!   restore      (populate, take the guard down) ─▶ Restored ─▶ (release)
//! ```
//!
//! A process tree is checkpointed as one when no byte of any member moves before all are
//! frozen, and no page of any is dropped before all are stored. What stands behind a gate
//! is for whoever opens it to know: a session that is alone finds them [`Open`].

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pipeline::CancelReason;

/// A moment at which a session may have to wait for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Everything is ready; the target runs.
    Prepared,
    /// The target stands still; nothing was read of it.
    Frozen,
    /// The image is committed; of a member of a group nothing was dropped.
    Stored,
    /// All memory is back; the target stands still.
    Restored,
}

/// Why a session is not to go on.
#[derive(Debug, thiserror::Error)]
pub enum Barred {
    /// Somebody has stopped the work.
    #[error("{0}")]
    Cancelled(CancelReason),
    /// The process that was meant has ended, and another one has its number.
    #[error("it has ended, and its number is another process's now")]
    Ended,
    /// Now that it stands still, the target turns out to be none of the caller's.
    #[error("the one who asked for it may not do that to this process")]
    Denied(#[source] Box<dyn Error + Send + Sync>),
}

/// Whoever decides when a session goes on.
pub trait Gate: fmt::Debug + Send + Sync {
    /// Waits until the session may go on behind `step`. Behind [`Step::Restored`] there is
    /// no way back: an error there is an answer like any other.
    ///
    /// # Errors
    /// It may not.
    fn pass(&self, step: Step) -> Result<(), Barred>;
}

/// No gate: nothing is waited for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open;

impl Gate for Open {
    fn pass(&self, _: Step) -> Result<(), Barred> {
        Ok(())
    }
}
