//! The journal of a session: what another memcr must know to finish what this one began.
//!
//! ```text
//! state directory (0700)      /run/memcr, $XDG_RUNTIME_DIR/memcr, /tmp/memcr-UID
//!   4711.json   (0600)        the record; replaced as a whole by renameat2(2), but for the lines
//!                             behind it that tell how far an unfinished image is written
//!   4711.layout (0600)        what the target has done to its memory while it was held, if it
//!                             was continued (`layout`)
//!   4711.lock   (0600)        locked by the memcr that works on process 4711
//!
//!            begin                 update …                  remove
//!  (nothing) ─────▶ Journal ──────────────────▶ Journal ─────────────▶ (nothing)
//!                      │ dropped, or we are killed: the file stays, the lock goes
//!                      ▼
//!                   an orphan ── adopt, by `restore` or `recover` ──▶ Journal
//! ```
//!
//! A record names its target by pid, start time and boot, so that it is never taken for
//! that of another process with the same pid. Nothing is synced to a disk: a reboot
//! ends the targets too, and what their journals looked like then is of no use to anybody.

mod dir;
mod error;
mod layout;
mod lock;
mod record;
#[cfg(test)]
mod tests;

pub use dir::{DaemonLock, Entry, StateDir};
pub use error::JournalError;
pub use record::{
    GroupRecord, GuardRecord, ImageRecord, Namespaces, ParasiteRecord, PipelineRecord, Record,
    StageRecord, Standing, State, VERSION,
};

use std::sync::Arc;

use crate::pages::guarded::{Change, Notebook};
use crate::sink::Mark;
use crate::sys::last_words;
use layout::Layout;
use lock::Lock;
use record::Reached;

/// A journal that we have locked: the record of one session, on file and in memory.
///
/// Dropping it leaves the file: the session can be adopted from then on.
#[derive(Debug)]
pub struct Journal {
    dir: StateDir,
    record: Record,
    lock: Lock,
}

impl Journal {
    /// What is on file.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The directory that it is in.
    #[must_use]
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// Changes the record, on file first. On failure both are as they were.
    ///
    /// # Errors
    /// [`JournalError::Io`] (no space, for one), [`JournalError::TooLong`].
    pub fn update(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), JournalError> {
        let mut record = self.record.clone();
        change(&mut record);
        self.dir.write(&record)?;
        self.record = record;
        last_words::say(self.record.last_words());
        Ok(())
    }

    /// The image is written up to `mark`, and memory may be given back that is in it, some of
    /// it (`huge`: start and length) to be backed by huge pages again.
    ///
    /// # Errors
    /// As [`Journal::update`].
    pub fn reach(&mut self, mark: Mark, huge: &[(u64, u64)]) -> Result<(), JournalError> {
        let reached = Reached::new(mark, huge);
        self.dir.append(self.record.pid, &reached)?;
        self.record.reach(reached);
        Ok(())
    }

    /// What the target, which somebody has continued, is known to have done to its memory since
    /// it was taken away, and where more of it is to be written.
    ///
    /// # Errors
    /// [`JournalError::Layout`]: not all of it is known; `Damaged`, `Untrusted`, `Io`.
    pub fn layout(&self) -> Result<(Vec<Change>, Arc<dyn Notebook>), JournalError> {
        let (changes, layout) = Layout::open(&self.dir, self.record.pid)?;
        Ok((changes, Arc::new(layout)))
    }

    /// The session is over: nothing of the journal stays behind.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the file stays behind.
    pub fn remove(self) -> Result<(), JournalError> {
        let removed = self.dir.unlink(self.record.pid);
        last_words::nothing();
        // Only now: who gets the lock must find no journal any more.
        drop(self.lock);
        removed
    }
}
