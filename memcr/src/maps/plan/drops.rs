//! Runs that are to be given back: as long as possible, and no longer.

use super::super::policy::LeftBecause;
use super::run_of;
use crate::pages::PageRun;

/// Of how many bytes one run consists that is given back, of what is there: less than twice
/// as many, and of scattered pages fewer. To give one back is a call that cannot be
/// interrupted nor called off, so who finishes it for us keeps what it is about to drop.
/// Shorter ones take longer: each waits until its event was read, some 60 µs on a machine with
/// nothing else to do. The runs of a dense one meet where the address is a multiple of that, so
/// that no huge page is split.
pub(super) const DROP_LEN: u64 = 32 << 20;
/// Of absent pages so many take as long to be passed over, by page tables that hold no other
/// pages, as one page takes to be dropped: 12 ns for 2 MiB, and 230 for a page.
pub(super) const ABSENT_PER_PAGE: u64 = 8192;

/// A run that is to be given back to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropRun {
    /// Its pages.
    pub run: PageRun,
    /// They are locked in memory: `MADV_DONTNEED_LOCKED` is needed.
    pub locked: bool,
    /// They are of a private file mapping.
    pub is_file: bool,
}

/// The drop run that is being made longer.
pub(super) struct OpenDrop {
    locked: bool,
    is_file: bool,
    /// Why copied pages of this mapping stay, if they do.
    pub(super) copies: Option<LeftBecause>,
    run: Option<PageRun>,
    /// What it takes to give it back.
    work_bytes: u64,
    /// It is cut where the address is a multiple of that, once it takes as much: where runs are
    /// given back meanwhile, as much as the batch that is being planned.
    pub(super) longest: u64,
}

impl OpenDrop {
    /// None yet, of a mapping that is locked in memory or of a file.
    pub(super) fn new(locked: bool, is_file: bool, copies: Option<LeftBecause>) -> Self {
        Self {
            locked,
            is_file,
            copies,
            run: None,
            work_bytes: 0,
            longest: DROP_LEN,
        }
    }

    /// Takes `run` in, with the absent pages before it. Answers what it takes to give them
    /// back, as a number of bytes that are there: absent ones count too, but less.
    #[must_use]
    pub(super) fn extend(&mut self, run: PageRun, drops: &mut Vec<DropRun>) -> u64 {
        let gap = self.run.map_or(0, |open| run.addr.0 - open.end().0);
        self.work_bytes += gap / ABSENT_PER_PAGE;
        let (mut at, end) = (run.addr.0, run.end().0);
        while at < end {
            let next = (at + 1).next_multiple_of(self.longest).min(end);
            let start = self.run.map_or(at, |open| open.addr.0);
            self.run = Some(run_of(start, next));
            self.work_bytes += next - at;
            if self.work_bytes >= self.longest {
                self.close(drops);
            }
            at = next;
        }
        gap / ABSENT_PER_PAGE + run.len_bytes
    }

    /// It ends here.
    pub(super) fn close(&mut self, drops: &mut Vec<DropRun>) {
        let (locked, is_file) = (self.locked, self.is_file);
        let run = self.run.take();
        self.work_bytes = 0;
        drops.extend(run.map(|run| DropRun {
            run,
            locked,
            is_file,
        }));
    }
}
