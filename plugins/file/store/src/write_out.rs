//! Out of the page cache: memory that was saved must not live on as cached file pages.
//!
//! ```text
//!   bytes written   0 ── 4 ──  8 ── … ── 60 ── 64 MiB ── …
//!                        │     │          │     └ wait for the disk, then drop what is clean
//!                        └─────┴──────────┴ start the write-out, drop what is clean
//! ```
//!
//! `POSIX_FADV_DONTNEED` does both: the kernel starts to write dirty pages out and drops
//! the clean ones (mm/fadvise.c). It never waits, so a slow disk would let dirty pages
//! pile up; waiting at every [`BOUND`] keeps at most two of them in the cache. The advice
//! always covers the whole file: writers come in any order, and pages that are gone
//! already cost nothing.
//!
//! What is waited for is that the disk has taken everything, or says that it cannot: before
//! that nothing may be dropped. That its own cache is emptied, which is what fdatasync(2)
//! costs (17 ms and more, behind a write-out of 1), matters after a loss of power alone, and
//! its target does not survive that either. sync_file_range(2) waits for the first without the
//! second; but file systems that keep no pages themselves (overlayfs, ZFS) do nothing when it
//! is called, and others (NFS) have not written when it returns. So it is for those that
//! are known to do what it says, and fdatasync(2) for all others.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, FsWord};

use crate::sys::write_and_wait;

/// Bytes between two starts of the write-out: long enough for a disk to write in one
/// go, short against the memory of a small device, and what is left of it at the end is
/// waited for with the target standing still.
const WINDOW: u64 = 4 << 20;
/// Bytes between two waits; a multiple of [`WINDOW`].
const BOUND: u64 = 64 << 20;

/// What to do with the page cache behind an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Leave it to the kernel. Faster to restore soon after, but the memory is not free.
    Keep,
    /// Write out and drop.
    Drop,
}

/// File systems whose pages are on their disk when sync_file_range(2) returns, by the numbers
/// of linux/magic.h and of xfs.
const WRITE_OUT_BY_RANGE: [FsWord; 3] = [
    0xef53,      // ext2, ext3, ext4
    0xf2f5_2010, // f2fs
    0x5846_5342, // xfs
];

/// Follows how much was written to one file.
#[derive(Debug)]
pub(crate) struct WriteOut {
    cache: Cache,
    /// The disk need not empty its own cache for it: see above.
    by_range: bool,
    written: AtomicU64,
    /// One thread waits for the disk; others that reach a bound queue behind it, which
    /// is what holds the writers back.
    waiting: Mutex<()>,
}

impl WriteOut {
    pub(crate) fn new(file: &File, cache: Cache) -> Self {
        let by_range =
            rustix::fs::fstatfs(file).is_ok_and(|stat| WRITE_OUT_BY_RANGE.contains(&stat.f_type));
        Self {
            cache,
            by_range,
            written: AtomicU64::new(0),
            waiting: Mutex::new(()),
        }
    }

    /// `len` more bytes were written to `file`. Fails with what the disk reports.
    pub(crate) fn wrote(&self, file: &File, len: usize) -> io::Result<()> {
        if self.cache == Cache::Keep {
            return Ok(());
        }
        let before = self.written.fetch_add(len as u64, Ordering::Relaxed);
        match step(before, before + len as u64) {
            Step::None => Ok(()),
            Step::Start => {
                advise(file, Advice::DontNeed);
                Ok(())
            }
            Step::Wait => {
                let _turn = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                self.flush(file)
            }
        }
    }

    /// Waits until everything is on the disk, and drops it from the cache.
    pub(crate) fn flush(&self, file: &File) -> io::Result<()> {
        if self.cache == Cache::Drop {
            if self.by_range {
                write_and_wait(file)?;
            } else {
                file.sync_data()?;
            }
            advise(file, Advice::DontNeed);
        }
        Ok(())
    }

    /// Drops what reading brought into the cache.
    pub(crate) fn drop_clean(&self, file: &File) {
        if self.cache == Cache::Drop {
            advise(file, Advice::DontNeed);
        }
    }
}

/// What a write does beside writing.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    None,
    Start,
    Wait,
}

/// What the write does that took the sum of all from `before` to `after`. Each boundary
/// lies in exactly one write, whatever the order.
fn step(before: u64, after: u64) -> Step {
    if before / BOUND != after / BOUND {
        Step::Wait
    } else if before / WINDOW != after / WINDOW {
        Step::Start
    } else {
        Step::None
    }
}

/// Advice on the whole file. Advice may be ignored by the kernel and its failure by us:
/// tmpfs has nothing to drop, some network file systems refuse.
pub(crate) fn advise(file: &File, advice: Advice) {
    let _ = rustix::fs::fadvise(file, 0, None, advice);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_starts_and_every_bound_waits() {
        const PIECE: u64 = 300_001;
        let steps: Vec<Step> = (0..1000)
            .map(|n| step(n * PIECE, (n + 1) * PIECE))
            .collect();
        let count = |wanted| steps.iter().filter(|step| **step == wanted).count() as u64;
        assert_eq!(count(Step::Wait), 1000 * PIECE / BOUND);
        assert_eq!(
            count(Step::Start),
            1000 * PIECE / WINDOW - count(Step::Wait)
        );
        assert_eq!(
            step(0, 10 * BOUND),
            Step::Wait,
            "one write over many bounds"
        );
        assert_eq!(step(WINDOW, WINDOW), Step::None, "an empty write");
    }
}
