//! Helpers of the end-to-end tests: start victims, run memcr, compare what must be equal.
//!
//! ```text
//!   Victim::start ─▶ Snapshot::take ─▶ Memcr::on(pid)…hold() ─▶ Held ─▶ release() ─▶ Finished
//!        │                 │                                                            │
//!        └── verify() ◀────┴──────── Snapshot::take, expect_same ◀──────────────────────┘
//! ```
//!
//! Nothing here waits for a fixed time: everything waits for a condition, with a
//! deadline ([`wait`]). Whatever is started is ended on drop, by its pid.

pub mod daemon;
pub mod lines;
pub mod memcr;
pub mod place;
pub mod proc;
pub mod require;
pub mod rig;
pub mod snapshot;
pub mod victim;
pub mod wait;
pub mod wire;
pub mod zram;

pub use daemon::{Daemon, Setup};
pub use memcr::{Finished, Held, Memcr, Running};
pub use require::require;
pub use rig::Rig;
pub use snapshot::{Allow, Snapshot};
pub use victim::Victim;
pub use wire::Wire;
pub use zram::Zram;

use std::fmt;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Trouble {
    /// Something is wrong.
    Failed(String),
    /// The world lacks something that the test needs; which, and why.
    Skipped(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(what) => f.write_str(what),
            Self::Skipped(what) => write!(f, "skipped: {what}"),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<String> for Trouble {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

impl From<&str> for Trouble {
    fn from(what: &str) -> Self {
        Self::Failed(what.to_owned())
    }
}

impl From<std::io::Error> for Trouble {
    fn from(err: std::io::Error) -> Self {
        Self::Failed(err.to_string())
    }
}

/// What helpers and tests answer.
pub type Result<T = ()> = std::result::Result<T, Trouble>;

/// Adds what was being done to an error.
pub trait Context<T> {
    /// `what: error`.
    ///
    /// # Errors
    /// The error it had, with `what` before it.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|err| Trouble::Failed(format!("{what}: {err}")))
    }
}

/// Fails with a message unless `right`.
///
/// # Errors
/// The message.
pub fn ensure(right: bool, what: impl FnOnce() -> String) -> Result {
    if right {
        Ok(())
    } else {
        Err(Trouble::Failed(what()))
    }
}
