//! A session: one target from its first drop to its release.
//!
//! ```text
//! checkpoint ──▶ Held ──┬─ wait(): Enter, a signal of ours, or the target's end
//!                       ├─ restore() ──▶ the target runs, image and journal are gone
//!                       ├─ park() ─────▶ held without us ─┐
//!                       └─ we die ─────▶ an orphan ───────┴─ adopt: restore, recover
//! ```
//!
//! The session's process holds every thread in a ptrace stop; its parent notices
//! nothing. Should this process die, an armed target stops itself, a touch of missing
//! memory waits for the guard, and the journal tells the next memcr how to finish.
//! Where the kernel has no guard, it kills the target instead (PTRACE_O_EXITKILL).

pub mod adopt;
mod clock;
pub mod gate;
mod guarded;
mod hold;
pub mod journal;
mod report;

use std::sync::Arc;

pub use clock::{Phase, PhaseClock};
pub use guarded::TakeDownError;
pub(crate) use guarded::{Guarded, put_huge_pages_back};
pub use hold::{HeldEvent, HoldError, LOOK_EVERY};
pub use report::CheckpointReport;

use crate::freeze::{FreezeError, Frozen};
use crate::inject::Site;
use crate::pages::PageRun;
use crate::pages::remote::RemoteMemory;
use crate::pipeline::{OpenImage, causes};
use crate::restore::remove_all;
use journal::{Journal, Record};

/// A target whose memory is in an image.
pub struct Held {
    pub(crate) frozen: Frozen,
    pub(crate) image: OpenImage,
    pub(crate) memory: Arc<RemoteMemory>,
    pub(crate) site: Site,
    pub(crate) huge: HugePages,
    /// `None`: nothing was guarded; the kernel kills the target should we die.
    pub(crate) guarded: Option<Guarded>,
    pub(crate) journal: Journal,
    pub(crate) report: CheckpointReport,
}

/// What a restore must know to put huge pages back where they were, and only there.
#[derive(Debug, Clone, Default)]
pub struct HugePages {
    /// What was backed by huge pages.
    pub runs: Vec<PageRun>,
    /// Some pages were small although the kernel might have used huge ones.
    pub has_small_in_thp: bool,
}

/// Why a target cannot be held without us. It is held as before.
#[derive(Debug, thiserror::Error)]
pub enum ParkError {
    /// There is no guard over its missing memory.
    #[error("process {0} has no guard: without memcr it would run on wrong memory")]
    NoGuard(i32),
    /// No other memcr could read its image.
    #[error("no other memcr could give process {0} its memory back")]
    OnlyHere(i32),
    /// It ended; nothing of the session is left.
    #[error("process {0} ended while it was held")]
    TargetExited(i32),
    /// A thread could not be let go.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}

impl Held {
    /// What the checkpoint did.
    #[must_use]
    pub fn report(&self) -> &CheckpointReport {
        &self.report
    }

    /// What its journal says.
    pub(crate) fn record(&self) -> &Record {
        self.journal.record()
    }

    /// The pid of the target.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.frozen.pid()
    }

    /// Something keeps the target from running on wrong memory without us.
    #[must_use]
    pub fn has_guard(&self) -> bool {
        self.guarded.is_some()
    }

    /// Another memcr can give it its memory back, and it waits for that.
    #[must_use]
    pub fn can_be_left(&self) -> bool {
        self.has_guard() && !self.image.is_only_here()
    }

    /// Lets the target go without its memory: it stands still, and the journal tells
    /// whoever restores it how.
    ///
    /// # Errors
    /// [`ParkError`]. The target is lost to nobody: should we end now, it is an orphan.
    pub fn park(self) -> Result<CheckpointReport, ParkError> {
        let Self {
            mut frozen,
            guarded,
            mut journal,
            image,
            report,
            ..
        } = self;
        let pid = frozen.pid();
        if guarded.is_none() {
            return Err(ParkError::NoGuard(pid));
        }
        if image.is_only_here() {
            return Err(ParkError::OnlyHere(pid));
        }
        let owed = frozen.take_owed();
        let told = journal.update(|record| {
            record.parked = true;
            record.owed = owed;
        });
        if let Err(error) = told {
            // What it says already is enough to restore the target.
            tracing::warn!("{}", causes(&error));
        }
        match frozen.park() {
            Ok(()) => Ok(report),
            Err(FreezeError::TargetExited(_)) => {
                if let Some(left) = remove_all(image, journal) {
                    tracing::warn!("of process {pid}, which has ended, something stays: {left}");
                }
                Err(ParkError::TargetExited(pid))
            }
            Err(error) => Err(error.into()),
        }
    }
}
