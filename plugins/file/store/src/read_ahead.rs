//! Ahead of the readers: a disk that reads only what is asked for stands still while they
//! decode and populate.
//!
//! ```text
//!   image   ──────── read ──┬─ asked for ─────────────────┬──────────────
//!                           │◀──── at least AHEAD / 2 ───▶│
//! ```
//!
//! The kernel reads ahead by itself, some hundred KiB at most, for one reader at a time. A
//! restore has several, which take one chunk after the other, so together they read a file
//! from its beginning to its end.

use std::fs::File;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{Advice, fadvise};

/// How far ahead the disk is sent, bytes: some milliseconds of a fast one.
const AHEAD: u64 = 8 << 20;

/// Reads that are shorter than this are not of chunks but of tables, here and there in the
/// file: what would be asked for behind them, they themselves would have to wait for.
const SHORT: usize = 32 << 10;

/// Follows how far a file was asked for.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Where what was asked for ends.
    asked: AtomicU64,
}

impl ReadAhead {
    /// Somebody reads `len` bytes at `offset` of `file`: asks for what comes next.
    pub(crate) fn about_to_read(&self, file: &File, offset: u64, len: usize) {
        if len < SHORT {
            return;
        }
        let asked = self.asked.load(Relaxed);
        let Some((from, to)) = next(asked, offset, offset.saturating_add(len as u64)) else {
            return;
        };
        // Who loses the race finds that the winner has asked for the same.
        if self
            .asked
            .compare_exchange(asked, to, Relaxed, Relaxed)
            .is_ok()
        {
            let _ = fadvise(file, from, NonZeroU64::new(to - from), Advice::WillNeed);
        }
    }
}

/// What to ask for when `start..end` is read and all up to `asked` was asked for.
fn next(asked: u64, start: u64, end: u64) -> Option<(u64, u64)> {
    let to = end.saturating_add(AHEAD);
    // Far from there: there may be two passes.
    if start > asked || start.saturating_add(2 * AHEAD) < asked {
        return Some((start, to));
    }
    (end + AHEAD / 2 > asked).then_some((asked, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_stays_ahead_of_the_readers() {
        assert_eq!(next(0, 0, 100), Some((0, 100 + AHEAD)));
        assert_eq!(next(100 + AHEAD, 100, 200), None);
        let half = AHEAD / 2 + 200;
        let (from, to) = (100 + AHEAD, half + AHEAD);
        assert_eq!(next(100 + AHEAD, half - 100, half), Some((from, to)));
    }

    #[test]
    fn a_reader_that_begins_elsewhere_is_followed() {
        let end = 100 * AHEAD;
        assert_eq!(next(end + AHEAD, 0, 10), Some((0, 10 + AHEAD)));
        assert_eq!(
            next(10 + AHEAD, end, end + 10),
            Some((end, end + 10 + AHEAD))
        );
    }
}
