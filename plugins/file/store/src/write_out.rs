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
//! Reading brings them back: of `--verify`, behind which the target is held for as long as
//! its user likes. So readers drop what they have passed, every window too.
//!
//! What is waited for is that the disk has taken everything, or says that it cannot: before
//! that nothing may be dropped. See [`wait_for_disk`].

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, FsWord, StatVfsMountFlags};
use rustix::io::Errno;

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
    /// Leave it to the kernel, once the disk has the image. Faster to restore soon after, but the
    /// memory is not free.
    Keep,
    /// Write out and drop.
    Drop,
}

/// File systems whose pages are on their disk when sync_file_range(2) returns, by the numbers
/// of linux/magic.h and of xfs.
const WRITE_OUT_BY_RANGE: [FsWord; 2] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
];

/// Follows how much was written to one file, and read of it.
#[derive(Debug)]
pub(crate) struct WriteOut {
    cache: Cache,
    written: AtomicU64,
    read: AtomicU64,
    /// One thread waits for the disk; others that reach a bound queue behind it, which
    /// is what holds the writers back.
    waiting: Mutex<()>,
}

impl WriteOut {
    pub(crate) fn new(cache: Cache) -> Self {
        Self {
            cache,
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
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

    /// Waits until everything is on the disk, and drops it from the cache unless it is to stay.
    pub(crate) fn flush(&self, file: &File) -> io::Result<()> {
        wait_for_disk(file)?;
        if self.cache == Cache::Drop {
            advise(file, Advice::DontNeed);
        }
        Ok(())
    }

    /// `len` more bytes of a finished `file` were read, up to `end`. Who reads one does so once
    /// and from its start, if in many threads: a window behind one of them nobody is any more.
    /// What lies ahead, which the kernel has read already, goes when as much was read as there is.
    pub(crate) fn read(&self, file: &File, len: usize, end: u64, file_len: u64) {
        if self.cache == Cache::Keep {
            return;
        }
        let before = self.read.fetch_add(len as u64, Ordering::Relaxed);
        let now = before + len as u64;
        let rounds = |n_read: u64| n_read.checked_div(file_len);
        if rounds(before) != rounds(now) {
            advise(file, Advice::DontNeed);
        } else if step(before, now) != Step::None
            && let Some(behind) = NonZeroU64::new(end.saturating_sub(WINDOW))
        {
            let _ = rustix::fs::fadvise(file, 0, Some(behind), Advice::DontNeed);
        }
    }

    /// Drops what reading brought into the cache.
    pub(crate) fn drop_clean(&self, file: &File) {
        if self.cache == Cache::Drop {
            advise(file, Advice::DontNeed);
        }
    }
}

/// Waits until the disk has all of `file`, be that in a cache of its own.
///
/// That this one is emptied too, which is what fdatasync(2) costs (17 ms and more, behind a
/// write-out of 1), matters after a loss of power alone, and whatever the file is for does not
/// survive that either. sync_file_range(2) waits for the first without the second. But file
/// systems that keep no pages themselves (overlayfs, ZFS) do nothing when it is called, others
/// (NFS) have not written when it returns, or may leave pages out (f2fs, before Linux 5.2): so it is
/// for those that are known to do what it says, and fdatasync(2) for all others.
///
/// What tells where the pages are is in RAM until the journal of the file system is written, some
/// seconds later; one that is given up by then makes the file system read-only, and is an
/// error here. With `data=journal` the pages themselves stay in RAM until then.
///
/// # Errors
/// What the disk reports, of this or any earlier write-out of the file; EROFS.
pub fn wait_for_disk(file: &File) -> io::Result<()> {
    let is_known = |kind| WRITE_OUT_BY_RANGE.contains(&kind);
    if !rustix::fs::fstatfs(file).is_ok_and(|found| is_known(found.f_type)) {
        return file.sync_data();
    }
    write_and_wait(file)?;
    let flags = rustix::fs::fstatvfs(file)?.f_flag;
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Err(Errno::ROFS.into());
    }
    Ok(())
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
