//! Restore: the story of a target's memory on its way back.
//!
//! ```text
//! look ─ open+verify ─ populate small pages ─ populate huge pages ─ finish ─┃─ release ─ remove image
//!                    target stands still                                   ┃ target runs
//! ```
//!
//! The kernel puts a huge page under the first byte that is written into an empty huge
//! range. So small pages come first, with huge ones switched off for the process
//! (PR_SET_THP_DISABLE), then the huge ones with them on: each range is backed as it
//! was, and the resident size does not grow.

use std::sync::Arc;

use serde::Serialize;

use crate::freeze::FreezeError;
use crate::inject::{Borrowed, InjectError};
use crate::pipeline::{Cancel, DecodeSetup, DecodeStats, PipelineError, Progress};
use crate::session::{Held, HugePages, Phase, PhaseClock};
use crate::sys::arch::nr;
use crate::sys::procfs;

/// What a restore did. All lengths in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// The target.
    pub pid: i32,
    /// Pages that came back.
    pub raw_bytes: u64,
    /// Read from the image.
    pub stored_bytes: u64,
    /// Resident memory once everything was back.
    pub rss_after_bytes: u64,
    /// How long each phase took.
    pub phases: Vec<Phase>,
    /// Pages that no process could have any more: their file was cut short meanwhile.
    pub truncated_bytes: u64,
    /// The image could not be removed, and why.
    pub image_left: Option<String>,
}

/// A restore that failed, and what can still be tried.
pub struct RestoreFailure {
    /// Why.
    pub error: RestoreError,
    /// The target, held as before: another try may succeed. `None`: it has ended.
    pub held: Option<Box<Held>>,
}

/// Why a target did not come back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image is not what was written: the target's memory is lost.
    #[error("process {pid} was killed: its memory is lost")]
    Lost {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// The target ended while it was held.
    #[error("process {pid} ended while it was held{}", by(.signal))]
    TargetExited {
        /// The target.
        pid: i32,
        /// The signal that ended it, if known.
        signal: Option<i32>,
    },
    /// The image cannot be read, or the pages cannot be written, now.
    #[error("process {pid} could not be restored and is held")]
    Held {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// A call in the target failed.
    #[error("process {pid} could not be restored and is held")]
    Inject {
        /// The target.
        pid: i32,
        /// Why.
        source: InjectError,
    },
    /// All memory is back, but some thread could not be let go.
    #[error("process {pid} is restored, but was not let go")]
    Release {
        /// The target.
        pid: i32,
        /// Why not.
        source: FreezeError,
    },
}

fn by(signal: &Option<i32>) -> String {
    signal.map_or_else(String::new, |signal| format!(", by signal {signal}"))
}

/// Gives the memory back and lets the target run on.
///
/// # Errors
/// With the target held as before where another try makes sense.
pub fn restore(mut held: Held, progress: &Arc<Progress>) -> Result<RestoreReport, RestoreFailure> {
    let pid = held.pid();
    if let Some(signal) = held.ended() {
        return Err(gone(held, signal));
    }
    let mut clock = PhaseClock::start();
    let stats = match bring_back(&mut held, progress, &mut clock) {
        Ok(stats) => stats,
        Err(error) => return Err(failed(held, error)),
    };
    let rss_after_bytes = procfs::rss_bytes(pid);
    let truncated_bytes = held.memory.truncated_bytes();
    let Held { frozen, image, .. } = held;
    let released = frozen.release();
    clock.done("release");
    // With all bytes back nobody needs it any more, whatever became of the release.
    let image_left = image.remove().err().map(|error| error.to_string());
    clock.done("remove image");
    released.map_err(|source| RestoreFailure {
        error: match source {
            FreezeError::TargetExited(pid) => RestoreError::TargetExited { pid, signal: None },
            source => RestoreError::Release { pid, source },
        },
        held: None,
    })?;
    Ok(RestoreReport {
        pid,
        raw_bytes: stats.raw_bytes,
        stored_bytes: stats.stored_bytes,
        rss_after_bytes,
        phases: clock.phases().to_vec(),
        truncated_bytes,
        image_left,
    })
}

/// Gives a held target up: it cannot run without its memory, nor stand still without us.
/// Its image goes too: nobody can use it any more, and it holds what the target held.
pub fn give_up(held: Held) {
    let Held { frozen, image, .. } = held;
    let pid = frozen.pid();
    frozen.kill();
    if let Err(left) = image.remove() {
        tracing::warn!("the image of process {pid}, which was killed, stays behind: {left}");
    }
}

/// A step that failed with the target still held.
enum StepError {
    Pipeline(Box<PipelineError>),
    Inject(InjectError),
}

impl From<PipelineError> for StepError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
}

impl From<InjectError> for StepError {
    fn from(error: InjectError) -> Self {
        Self::Inject(error)
    }
}

fn bring_back(
    held: &mut Held,
    progress: &Arc<Progress>,
    clock: &mut PhaseClock,
) -> Result<DecodeStats, StepError> {
    let mut decoder = held.image.prepare_decode(DecodeSetup {
        populate: held.memory.clone(),
        workers: None,
        // Nobody stops a restore half way: the target could only be killed then.
        cancel: Cancel::new(),
        progress: progress.clone(),
    })?;
    clock.done("open image");
    let HugePages {
        has_huge,
        has_small_in_thp,
    } = held.huge;
    let before = if has_small_in_thp {
        Some(disable_huge_pages(held)?)
    } else {
        None
    };
    let small = decoder.pass(|class| !class.huge);
    // On failure too: another try, or an undo, starts from the same state.
    if let Some(before) = before {
        set_huge_pages(held, before)?;
    }
    small?;
    if has_huge {
        decoder.pass(|class| class.huge)?;
    }
    let stats = decoder.finish()?;
    clock.done("populate");
    Ok(stats)
}

/// Switches huge pages off for the target; answers the setting before (prctl(2)).
fn disable_huge_pages(held: &mut Held) -> Result<i64, InjectError> {
    let mut borrowed = Borrowed::take(&mut held.frozen, &held.site)?;
    let before = borrowed.call(nr::PRCTL, [libc::PR_GET_THP_DISABLE as u64, 0, 0, 0, 0, 0])?;
    borrowed.call(nr::PRCTL, [libc::PR_SET_THP_DISABLE as u64, 1, 0, 0, 0, 0])?;
    borrowed.give_back()?;
    Ok(before)
}

/// Sets huge pages to what PR_GET_THP_DISABLE answered: bit 0 disabled, the bits above
/// it the flags of Linux 6.18.
fn set_huge_pages(held: &mut Held, setting: i64) -> Result<(), InjectError> {
    // An error answer means a kernel without the call: then nothing was switched off.
    if setting < 0 {
        return Ok(());
    }
    let setting = setting.cast_unsigned();
    let mut borrowed = Borrowed::take(&mut held.frozen, &held.site)?;
    borrowed.call(
        nr::PRCTL,
        [
            libc::PR_SET_THP_DISABLE as u64,
            setting & 1,
            setting & !1,
            0,
            0,
            0,
        ],
    )?;
    borrowed.give_back()
}

fn failed(mut held: Held, error: StepError) -> RestoreFailure {
    let pid = held.pid();
    if let Some(signal) = held.ended() {
        return gone(held, signal);
    }
    match error {
        StepError::Pipeline(error) if error.is_corrupt() => {
            give_up(held);
            RestoreFailure {
                error: RestoreError::Lost { pid, source: error },
                held: None,
            }
        }
        StepError::Pipeline(error) => still_held(held, RestoreError::Held { pid, source: error }),
        StepError::Inject(source) => still_held(held, RestoreError::Inject { pid, source }),
    }
}

fn still_held(held: Held, error: RestoreError) -> RestoreFailure {
    RestoreFailure {
        error,
        held: Some(Box::new(held)),
    }
}

fn gone(held: Held, signal: Option<i32>) -> RestoreFailure {
    let pid = held.pid();
    if let Err(left) = held.image.remove() {
        tracing::warn!("the image of process {pid}, which has ended, stays behind: {left}");
    }
    RestoreFailure {
        error: RestoreError::TargetExited { pid, signal },
        held: None,
    }
}
