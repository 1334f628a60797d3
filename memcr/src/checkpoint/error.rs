//! Why a checkpoint did not come about, and what became of the target.

use std::io;

use crate::freeze::{FreezeError, Refusal};
use crate::inject::{GuardError, InjectError};
use crate::maps::MapsError;
use crate::pages::give_back::DropError;
use crate::pipeline::PipelineError;
use crate::restore::RestoreError;
use crate::session::gate::Barred;
use crate::session::journal::JournalError;

/// Why a checkpoint did not come about. The target runs, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The target cannot be checkpointed. It was not touched, or runs again.
    #[error("cannot checkpoint process {pid}")]
    Refused {
        /// The target.
        pid: i32,
        /// Why not.
        source: Refusal,
    },
    /// There is a journal of it, or none can be written. The target was not touched.
    #[error("no session can be begun with process {pid}, which was not touched")]
    Journal {
        /// The target.
        pid: i32,
        /// Why not.
        source: JournalError,
    },
    /// Another memcr has left it held, with a journal where we do not look. The target was not
    /// touched.
    #[error("process {pid} is held already, by a memcr that has its journal elsewhere")]
    HeldElsewhere {
        /// The target.
        pid: i32,
    },
    /// No guard is to be had here. The target was not touched.
    #[error("process {pid} cannot be held without memcr beside it, and was not touched")]
    NoGuard {
        /// The target.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// No other memcr could read the image. The target was not touched.
    #[error("no other memcr could give process {pid} its memory back; it was not touched")]
    OnlyHere {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// The pipeline is not ready. The target was not touched.
    #[error("the pipeline is not ready; process {pid} was not touched")]
    NotReady {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// It was not to go on. The target was not touched.
    #[error("the checkpoint of process {pid} was not begun")]
    Barred {
        /// The target.
        pid: i32,
        /// Why not.
        source: Barred,
    },
    /// The target ended by itself.
    #[error("process {pid} ended during the checkpoint")]
    TargetExited {
        /// The target.
        pid: i32,
    },
    /// It failed on the way, and was undone.
    #[error("the checkpoint of process {pid} failed and was undone; the process runs on")]
    Undone {
        /// The target.
        pid: i32,
        /// What failed.
        source: Box<StepError>,
    },
    /// It failed on the way, and undoing it failed too.
    #[error(
        "the checkpoint of process {pid} failed ({step}), and putting its memory back failed too"
    )]
    NotUndone {
        /// The target.
        pid: i32,
        /// What failed first.
        step: Box<StepError>,
        /// What failed then.
        source: Box<RestoreError>,
    },
}

/// A step that failed while the target stood still.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Freezing.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Reading what the target has mapped.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Reading the target's state.
    #[error("cannot read the mappings of the target")]
    Proc(#[from] io::Error),
    /// Moving the pages.
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    /// Making calls in the target.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// Dropping the pages.
    #[error(transparent)]
    Drop(#[from] DropError),
    /// Making the guard.
    #[error("cannot guard the memory that is to be dropped")]
    Guard(#[from] GuardError),
    /// Writing the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It was not to go on.
    #[error(transparent)]
    Barred(#[from] Barred),
    /// A fault point.
    #[error("stopped by a fault point")]
    Fault(#[source] io::Error),
}

impl From<PipelineError> for StepError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
}
