//! Why a session could not be finished.

use std::io;

use crate::freeze::{FreezeError, Refusal};
use crate::inject::InjectError;
use crate::pipeline::PipelineError;
use crate::restore::NoRoom;
use crate::session::TakeDownError;
use crate::session::journal::JournalError;

/// Why a session could not be finished. Unless the text says otherwise the target is as it
/// was, and another try is possible.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It cannot be worked on.
    #[error("process {pid} is held, but cannot be restored now")]
    Refused {
        /// The target.
        pid: i32,
        /// Why not.
        source: Refusal,
    },
    /// Its guard is not there.
    #[error("the guard of process {pid} cannot be fetched")]
    Guard {
        /// The target.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// Its image cannot be read now.
    #[error("process {pid} could not be restored and is held")]
    Held {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// Nothing of its memory is missing, but its image cannot be removed.
    #[error("the image of process {pid}, which does not need it any more, stays behind")]
    Image {
        /// The target.
        pid: i32,
        /// Why.
        source: Box<PipelineError>,
    },
    /// What is in the place of its image is another one.
    #[error(
        "process {pid} is held: its image {locator} is not the one that was made of it \
         (found {found}, wanted {wanted})"
    )]
    OtherImage {
        /// The target.
        pid: i32,
        /// Where the image should be.
        locator: String,
        /// Id of what is there.
        found: String,
        /// Id of the image.
        wanted: String,
    },
    /// The OOM killer would make the room, and may take the target for it.
    #[error("process {pid} is held")]
    NoRoom {
        /// The target.
        pid: i32,
        /// What is short.
        source: NoRoom,
    },
    /// Its image is damaged, and it is held on all the same.
    #[error("process {pid} is held: its image is damaged")]
    Corrupt {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// Its image is damaged, and it was killed.
    #[error("process {pid} was killed: its memory is lost")]
    Lost {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// It ended meanwhile.
    #[error("process {pid} ended while it was held")]
    TargetExited {
        /// The target.
        pid: i32,
    },
    /// Somebody has continued it, and it has called execve(2).
    #[error(
        "process {pid} runs another program since somebody has continued it: \
         the memory that was held is gone with the one before"
    )]
    AnotherProgram {
        /// The target.
        pid: i32,
    },
    /// It could not be frozen, or not be let go.
    #[error("process {pid} is held")]
    Freeze {
        /// The target.
        pid: i32,
        /// Why not.
        source: FreezeError,
    },
    /// A call in the target failed.
    #[error("process {pid} is held")]
    Inject {
        /// The target.
        pid: i32,
        /// Why.
        source: InjectError,
    },
    /// All memory is back, but what held it could not be taken out.
    #[error("process {pid} has its memory back, but is not rid of what held it")]
    TakeDown {
        /// The target.
        pid: i32,
        /// Why not.
        source: TakeDownError,
    },
    /// The system refused something else.
    #[error("process {pid} is held: cannot {what}")]
    System {
        /// The target.
        pid: i32,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The journal could not be written or removed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}
