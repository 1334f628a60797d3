//! Restore: the story of a target's memory on its way back.
//!
//! ```text
//! look ─ open+verify ─ populate ─ finish ─ take the guard down ─┃─ release ─ remove image, journal
//!                    target stands still                        ┃ target runs
//! ```
//!
//! Under a guard pages are provided in one pass, as small ones, which is what its kernel
//! call does; the huge ones are made of them when the target runs again. Our death in
//! between costs nothing: what is back is right, what is missing is waited for.
//!
//! Without a guard see `unguarded`.

mod room;
mod unguarded;

use std::os::fd::AsFd;
use std::sync::Arc;

use serde::Serialize;

use crate::fault;
use crate::freeze::{FreezeError, Missing, frozen_by};
use crate::inject::InjectError;
use crate::pages::PopulatePages;
use crate::pipeline::{
    Cancel, DecodeSetup, DecodeStats, Decoder, OpenImage, PipelineError, Priority, Progress, causes,
};
use crate::session::gate::{Gate, Open, Step};
use crate::session::journal::{Journal, State};
use crate::session::{Held, Phase, PhaseClock, TakeDownError, put_huge_pages_back};
use crate::sys::procfs;
pub use room::NoRoom;
pub(crate) use room::expect_room;

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
    /// The image, or the journal, could not be removed, and why.
    pub image_left: Option<String>,
}

/// What to do with a target whose bytes are provably lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCorrupt {
    /// Kill it: nothing can give it back.
    #[default]
    Kill,
    /// Hold it: somebody may have another copy of the image.
    Hold,
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// What becomes of a target whose image is damaged.
    pub on_corrupt: OnCorrupt,
    /// Where it waits for others before the target is let go.
    pub gate: Arc<dyn Gate>,
    /// It undoes a checkpoint: nothing is better than to go on, however long a cgroup freezer
    /// that has stopped the target makes it wait, and however little room there is.
    pub is_undo: bool,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            on_corrupt: OnCorrupt::default(),
            gate: Arc::new(Open),
            is_undo: false,
            progress: Arc::default(),
        }
    }
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
    /// A cgroup freezer has stopped it: no call could be made in it.
    #[error("process {pid} is held: it is frozen by the cgroup {cgroup}")]
    CgroupFrozen {
        /// The target.
        pid: i32,
        /// The cgroup, below its mount.
        cgroup: String,
    },
    /// The OOM killer would make the room, and may take the target for it.
    #[error("process {pid} is held")]
    NoRoom {
        /// The target.
        pid: i32,
        /// What is short.
        source: NoRoom,
    },
    /// A call in the target failed.
    #[error("process {pid} could not be restored and is held")]
    Inject {
        /// The target.
        pid: i32,
        /// Why.
        source: InjectError,
    },
    /// The image is not what was written, and the target is to be held all the same.
    #[error("process {pid} is held: its image is damaged")]
    Corrupt {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// All memory is back, but what held the target could not be taken out of it.
    #[error("process {pid} has its memory back, but is not rid of what held it")]
    TakeDown {
        /// The target.
        pid: i32,
        /// Why not.
        source: TakeDownError,
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

/// What can be told of a target that is held, before it is touched.
fn check_before(held: &Held) -> Result<(), RestoreError> {
    let pid = held.pid();
    if let Some(cgroup) = frozen_by(pid) {
        return Err(RestoreError::CgroupFrozen { pid, cgroup });
    }
    let room = expect_room(held.journal.record(), &held.image);
    room.map_err(|source| RestoreError::NoRoom { pid, source })
}

fn by(signal: &Option<i32>) -> String {
    signal.map_or_else(String::new, |signal| format!(", by signal {signal}"))
}

impl RestoreError {
    /// The target has ended: not a failure of the restore.
    #[must_use]
    pub fn is_exit(&self) -> bool {
        matches!(self, Self::TargetExited { .. })
    }
}

/// Gives the memory back and lets the target run on.
///
/// # Errors
/// With the target held as before where another try makes sense.
pub fn restore(mut held: Held, options: &RestoreOptions) -> Result<RestoreReport, RestoreFailure> {
    let pid = held.pid();
    if let Some(signal) = held.ended() {
        return Err(gone(held, signal));
    }
    if !options.is_undo
        && let Err(error) = check_before(&held)
    {
        return Err(still_held(held, error));
    }
    let mut clock = PhaseClock::start();
    let stats = match bring_back(&mut held, &options.progress, &mut clock) {
        Ok(stats) => stats,
        Err(error) => return Err(failed(held, options.on_corrupt, error)),
    };
    let truncated_bytes = held.memory.truncated_bytes();
    let Held {
        mut frozen,
        image,
        journal,
        guarded,
        site,
        huge,
        ..
    } = held;
    let taken_down = guarded.map_or(Ok(()), |guarded| guarded.take_down(&mut frozen, site));
    let pidfd = frozen.target().as_fd().try_clone_to_owned();
    let ended = taken_down.is_err() && frozen.has_ended();
    wait_for_others(options);
    let released = frozen.release();
    clock.done("release");
    if let Ok(pidfd) = pidfd
        && !huge.runs.is_empty()
    {
        put_huge_pages_back(pidfd.as_fd(), &huge.runs);
        clock.done("huge pages");
    }
    let rss_after_bytes = procfs::rss_bytes(pid);
    // With all bytes back nobody needs it any more, whatever became of the release. The
    // journal tells what is left in the target, if something is.
    let image_left = match &taken_down {
        Ok(()) => remove_all(image, journal),
        Err(_) if ended => remove_all(image, journal),
        // It could not be told that nothing is missing: who goes by it wants the image.
        Err(_) if journal.record().guard.is_some() => None,
        Err(_) => image.remove().err().map(|error| error.to_string()),
    };
    clock.done("remove image");
    let error = match (taken_down, released) {
        _ if ended => RestoreError::TargetExited { pid, signal: None },
        (_, Err(FreezeError::TargetExited(pid))) => {
            RestoreError::TargetExited { pid, signal: None }
        }
        (_, Err(source)) => RestoreError::Release { pid, source },
        (Err(source), _) => RestoreError::TakeDown { pid, source },
        (Ok(()), Ok(())) => {
            return Ok(RestoreReport {
                pid,
                raw_bytes: stats.raw_bytes,
                stored_bytes: stats.stored_bytes,
                rss_after_bytes,
                phases: clock.phases().to_vec(),
                truncated_bytes,
                image_left,
            });
        }
    };
    Err(RestoreFailure { error, held: None })
}

/// With all memory back nothing keeps a target but the others that it is one with; should
/// they be no more, it goes on alone.
pub(crate) fn wait_for_others(options: &RestoreOptions) {
    if let Err(barred) = options.gate.pass(Step::Restored) {
        tracing::debug!("not waiting for the others: {barred}");
    }
}

/// Gives a held target up: it cannot run without its memory, nor stand still without us.
/// Its image goes too: nobody can use it any more, and it holds what the target held.
pub fn give_up(held: Held) {
    let Held {
        frozen,
        image,
        journal,
        ..
    } = held;
    let pid = frozen.pid();
    frozen.kill();
    if let Some(left) = remove_all(image, journal) {
        tracing::warn!("of process {pid}, which was killed, something stays behind: {left}");
    }
}

/// Removes what a session leaves on disk: the image first, because without its journal
/// nobody would find it.
pub(crate) fn remove_all(image: OpenImage, journal: Journal) -> Option<String> {
    let locator = journal.record().image.as_ref();
    let locator = locator.map_or_else(String::new, |image| image.locator.clone());
    let passed = fault::point("restore.released").map_err(|error| error.to_string());
    let image = image
        .remove()
        .map_err(|error| format!("{locator}: {}", causes(&error)));
    let journal = journal.remove().map_err(|error| causes(&error));
    passed.and(image).and(journal).err()
}

/// A step that failed with the target still held.
enum StepError {
    Pipeline(Box<PipelineError>),
    Inject(InjectError),
    TakeDown(TakeDownError),
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

impl From<TakeDownError> for StepError {
    fn from(error: TakeDownError) -> Self {
        Self::TakeDown(error)
    }
}

fn bring_back(
    held: &mut Held,
    progress: &Arc<Progress>,
    clock: &mut PhaseClock,
) -> Result<DecodeStats, StepError> {
    if held.frozen.missing() == Missing::Nothing {
        return Ok(DecodeStats::default());
    }
    if let Err(error) = held
        .journal
        .update(|record| record.state = State::Restoring)
    {
        // It says that the target is held, and what follows from that is the same.
        tracing::warn!("{}", causes(&error));
    }
    let stats = match &held.guarded {
        Some(guarded) => {
            let memory = guarded.memory().clone();
            let mut decoder = prepare(&held.image, memory, progress)?;
            clock.done("open image");
            decoder.pass(|_| true)?;
            let stats = decoder.finish()?;
            pass("restore.populated")?;
            guarded.unguard(&mut held.journal)?;
            stats
        }
        None => unguarded::bring_back(held, progress, clock)?,
    };
    clock.done("populate");
    Ok(stats)
}

/// A decoder that nobody stops half way: the target could only be held on then. Its workers
/// are of normal priority, whatever that of the checkpoint was: the target waits for them.
pub(crate) fn prepare(
    image: &OpenImage,
    populate: Arc<dyn PopulatePages + Send + Sync>,
    progress: &Arc<Progress>,
) -> Result<Decoder, PipelineError> {
    image.prepare_decode(DecodeSetup {
        populate,
        workers: None,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: progress.clone(),
    })
}

fn failed(mut held: Held, on_corrupt: OnCorrupt, error: StepError) -> RestoreFailure {
    let pid = held.pid();
    if let Some(signal) = held.ended() {
        return gone(held, signal);
    }
    match error {
        StepError::Pipeline(source) if source.is_corrupt() => match on_corrupt {
            OnCorrupt::Kill => {
                give_up(held);
                RestoreFailure {
                    error: RestoreError::Lost { pid, source },
                    held: None,
                }
            }
            OnCorrupt::Hold => still_held(held, RestoreError::Corrupt { pid, source }),
        },
        StepError::Pipeline(error) => still_held(held, RestoreError::Held { pid, source: error }),
        StepError::Inject(source) => still_held(held, RestoreError::Inject { pid, source }),
        StepError::TakeDown(source) => still_held(held, RestoreError::TakeDown { pid, source }),
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
    if let Some(left) = remove_all(held.image, held.journal) {
        tracing::warn!("of process {pid}, which has ended, something stays behind: {left}");
    }
    RestoreFailure {
        error: RestoreError::TargetExited { pid, signal },
        held: None,
    }
}

fn pass(point: &'static str) -> Result<(), StepError> {
    fault::point(point).map_err(|error| TakeDownError::Fault(error).into())
}
