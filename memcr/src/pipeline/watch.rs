//! How the tracer thread watches work it does not do itself: a token to stop it, and
//! counters to see how far it is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// Why work was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// Somebody asked for it: Ctrl-C, SIGTERM.
    Interrupted = 1,
    /// The user's time limit ran out.
    TimedOut = 2,
    /// Another command for the same target took over.
    Superseded = 3,
    /// The target died or is about to.
    TargetGone = 4,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupted => "interrupted",
            Self::TimedOut => "time limit reached",
            Self::Superseded => "superseded by another command",
            Self::TargetGone => "the target is gone",
        })
    }
}

/// A token that stops work. Cheap to clone; all clones are one token. Looked at once
/// per chunk and while waiting (at least every 20 ms).
///
/// One atomic byte and nothing else, so that a signal handler may set it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicU8>);

impl Cancel {
    /// A token that nobody has set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the work. The first reason stays. Async-signal-safe.
    pub fn cancel(&self, reason: CancelReason) {
        // A failure means that somebody was faster: their reason stays.
        let _ = self.0.compare_exchange(0, reason as u8, Relaxed, Relaxed);
    }

    /// Why the work is to stop; `None`: go on.
    #[must_use]
    pub fn reason(&self) -> Option<CancelReason> {
        match self.0.load(Relaxed) {
            0 => None,
            2 => Some(CancelReason::TimedOut),
            3 => Some(CancelReason::Superseded),
            4 => Some(CancelReason::TargetGone),
            _ => Some(CancelReason::Interrupted),
        }
    }
}

/// How far encoding or decoding is. Written by the crew, read by anybody.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of pages fetched from, or populated into, the target.
    pub raw_bytes: AtomicU64,
    /// Of these, pages of zeros that were not stored, bytes.
    pub zero_bytes: AtomicU64,
    /// Bytes written to, or read from, the sink.
    pub stored_bytes: AtomicU64,
    /// Chunks that are done.
    pub chunks: AtomicU64,
}

impl Progress {
    pub(crate) fn add(&self, raw: u64, zero: u64, stored: u64) {
        self.raw_bytes.fetch_add(raw, Relaxed);
        self.zero_bytes.fetch_add(zero, Relaxed);
        self.stored_bytes.fetch_add(stored, Relaxed);
        self.chunks.fetch_add(1, Relaxed);
    }
}
