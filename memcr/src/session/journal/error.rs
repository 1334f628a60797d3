//! What can be wrong with a journal, or with where journals are.

use std::io;
use std::path::{Path, PathBuf};

use super::record::exists;
use super::{Journal, Record, VERSION};

/// Why there is no journal to work with. Nothing was done to the target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Its memory is in an image already, and nobody works on it.
    #[error("process {} is held already", .record.pid)]
    Held {
        /// What its journal says.
        record: Box<Record>,
    },
    /// Another memcr has the lock.
    #[error("another memcr{} works on process {pid}", by_pid(.by))]
    Busy {
        /// The target.
        pid: i32,
        /// The other memcr, if it says so.
        by: Option<i32>,
    },
    /// Another daemon works with the state directory.
    #[error("another daemon{} works with the state directory {}", by_pid(.by), .dir.display())]
    Daemon {
        /// The directory.
        dir: PathBuf,
        /// The daemon, if it says so.
        by: Option<i32>,
    },
    /// There is no journal of it.
    #[error("process {pid} is not held: there is no journal of it in {}", .dir.display())]
    NotHeld {
        /// The target.
        pid: i32,
        /// Where journals are.
        dir: PathBuf,
    },
    /// There is neither a journal nor a process.
    #[error("no process {pid}")]
    NoProcess {
        /// What the user named.
        pid: i32,
    },
    /// The process that was held is no more; another one may have its pid.
    #[error("process {} ({}) has ended while it was held", .journal.record.pid, .journal.record.name.escape_debug())]
    Gone {
        /// Its journal, locked: the image that it names has no other owner any more.
        journal: Box<Journal>,
    },
    /// It cannot be told whether the process still is the one that was held.
    #[error("cannot tell whether process {pid} is the one that was held: {why}")]
    Unknown {
        /// The target.
        pid: i32,
        /// Why not.
        why: String,
    },
    /// A file that is no journal, or not of the process that its name says.
    #[error("the journal {} {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a predicate.
        why: String,
    },
    /// A file that somebody else could have written.
    #[error("the journal {} {why}", .path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why, as a predicate.
        why: String,
    },
    /// A journal of a later version than ours.
    #[error("the journal {} was written by a newer memcr (version {version} of the journal, this memcr knows {VERSION})", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It has changed its memory, and nobody knows how.
    #[error(
        "a memcr died in the moment in which it heard what process {pid}, which somebody has \
         continued, did to its memory: what of it belongs where is not known"
    )]
    Layout {
        /// The target.
        pid: i32,
    },
    /// A directory in which journals would not be safe.
    #[error("the state directory {} {why}", .path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, as a predicate.
        why: String,
    },
    /// The record is longer than one that would be read again.
    #[error("the journal of process {pid} would have {len_bytes} bytes, more than {max_bytes}")]
    TooLong {
        /// The target.
        pid: i32,
        /// Length of the record.
        len_bytes: u64,
        /// Longest one allowed.
        max_bytes: u64,
    },
    /// The system refused.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl JournalError {
    /// Of a process of which there is no journal in `dir`.
    #[must_use]
    pub fn not_held(pid: i32, dir: &Path) -> Self {
        if exists(pid) {
            let dir = dir.to_owned();
            Self::NotHeld { pid, dir }
        } else {
            Self::NoProcess { pid }
        }
    }
}

fn by_pid(by: &Option<i32>) -> String {
    by.map_or_else(String::new, |pid| format!(" (process {pid})"))
}
