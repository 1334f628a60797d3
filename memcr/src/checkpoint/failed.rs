//! What becomes of a target whose checkpoint fails, and what its user is told.

use std::io;

use crate::freeze::{FreezeError, Frozen};
use crate::pipeline::{OpenImage, PipelineError, causes};
use crate::restore::{self, OnCorrupt, RestoreOptions};
use crate::session::Held;
use crate::session::gate::Barred;
use crate::session::journal::Journal;

use super::error::{CheckpointError, StepError};

/// Something of our own is short before the target is touched.
pub(super) fn not_ready(pid: i32, doing: &str, source: io::Error) -> CheckpointError {
    let doing = doing.to_owned();
    CheckpointError::NotReady {
        pid,
        source: Box::new(PipelineError::Resource { doing, source }),
    }
}

/// A failure to look at a target that still runs. What is gone has ended.
pub(super) fn not_read(pid: i32, error: io::Error) -> CheckpointError {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => CheckpointError::TargetExited { pid },
        _ => undone(pid, error.into()),
    }
}

/// A failure of the freeze itself: whatever was stopped runs again.
pub(super) fn not_frozen(pid: i32, error: FreezeError) -> CheckpointError {
    match error {
        FreezeError::Refused(source) => CheckpointError::Refused { pid, source },
        FreezeError::TargetExited(pid) => CheckpointError::TargetExited { pid },
        FreezeError::NoThread(source) => not_ready(pid, "start a thread", source),
        error => undone(pid, error.into()),
    }
}

/// A failure before the first drop: the target is let go as it is.
pub(super) fn let_go(mut frozen: Frozen, error: StepError) -> CheckpointError {
    let pid = frozen.pid();
    if frozen.has_ended() {
        return CheckpointError::TargetExited { pid };
    }
    match frozen.release() {
        Ok(()) => undone(pid, error),
        Err(release) => not_frozen(pid, release),
    }
}

/// A failure behind the commit: what is gone comes back from the image, and what stands
/// in the target is taken out again.
pub(super) fn undo(held: Held, on_corrupt: OnCorrupt, error: StepError) -> CheckpointError {
    let pid = held.pid();
    let options = RestoreOptions {
        on_corrupt,
        is_undo: true,
        ..RestoreOptions::default()
    };
    match restore::restore(held, &options) {
        Ok(_) => undone(pid, error),
        Err(failure) if failure.held.is_none() && failure.error.is_exit() => {
            CheckpointError::TargetExited { pid }
        }
        Err(failure) => CheckpointError::NotUndone {
            pid,
            step: Box::new(error),
            source: Box::new(failure.error),
        },
    }
}

/// A committed image that is not to be used, because one of the others has failed.
pub(super) fn unwanted(image: OpenImage, barred: Barred) -> StepError {
    if let Err(left) = image.remove() {
        tracing::warn!("{}", causes(&left));
    }
    barred.into()
}

/// A failure before anything was begun that a journal has to tell of.
pub(super) fn forget(journal: Journal, error: CheckpointError) -> CheckpointError {
    if let Err(left) = journal.remove() {
        tracing::warn!("{}", causes(&left));
    }
    error
}

fn undone(pid: i32, source: StepError) -> CheckpointError {
    CheckpointError::Undone {
        pid,
        source: Box::new(source),
    }
}
