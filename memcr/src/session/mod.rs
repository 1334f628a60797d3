//! A session: one target from its first drop to its release.
//!
//! ```text
//! checkpoint ──▶ Held ──┬─ wait(): Enter, a signal of ours, or the target's end
//!                       └─ restore() ──▶ the target runs, the image is gone
//! ```
//!
//! The session's process holds every thread in a ptrace stop; its parent notices
//! nothing. Until the last page is back the kernel ends the target should this process
//! die (PTRACE_O_EXITKILL): the target never runs on missing memory.

mod clock;
mod hold;
pub mod journal;

use std::sync::Arc;

pub use clock::{Phase, PhaseClock};
pub use hold::{HeldEvent, HoldError};

use crate::checkpoint::CheckpointReport;
use crate::freeze::Frozen;
use crate::inject::Site;
use crate::pages::remote::RemoteMemory;
use crate::pipeline::OpenImage;

/// A target whose memory is in an image.
pub struct Held {
    pub(crate) frozen: Frozen,
    pub(crate) image: OpenImage,
    pub(crate) memory: Arc<RemoteMemory>,
    pub(crate) site: Site,
    pub(crate) huge: HugePages,
    pub(crate) report: CheckpointReport,
}

/// What a restore must know to put huge pages back where they were, and only there.
#[derive(Debug, Clone, Copy, Default)]
pub struct HugePages {
    /// Some pages were huge.
    pub has_huge: bool,
    /// Some pages were small although the kernel might have used huge ones.
    pub has_small_in_thp: bool,
}

impl Held {
    /// What the checkpoint did.
    #[must_use]
    pub fn report(&self) -> &CheckpointReport {
        &self.report
    }

    /// The pid of the target.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.frozen.pid()
    }
}
