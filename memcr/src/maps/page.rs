//! One entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).

use std::io;

use super::policy::LeftBecause;
use crate::sys::pagemap::Region;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
const GUARD: u64 = 1 << 58;
const EXCLUSIVE: u64 = 1 << 56;

/// What a page of a private mapping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Not there: never touched, or dropped.
    Absent,
    /// There, of no use to anybody else: it can go.
    Private,
    /// A clean page of the file behind the mapping.
    CleanFile,
    /// There, but it stays.
    Left(LeftBecause),
}

impl PageState {
    /// Reads a page map entry. The zero page counts as shared with others here, since
    /// the entry does not tell them apart; [`Region`]s do.
    #[must_use]
    pub fn of_entry(entry: u64) -> Self {
        if entry & GUARD != 0 {
            Self::Left(LeftBecause::Guard)
        } else if entry & SWAPPED != 0 {
            Self::Left(LeftBecause::Swapped)
        } else if entry & PRESENT == 0 {
            Self::Absent
        } else if entry & FILE_OR_SHARED != 0 {
            Self::CleanFile
        } else if entry & EXCLUSIVE == 0 {
            Self::Left(LeftBecause::ForkShared)
        } else {
            Self::Private
        }
    }
}

/// The page table of the target, as the kernel shows it.
pub trait PageTable {
    /// Finds ranges of `start..end` that may hold pages, ascending; pages outside of
    /// them are absent. Where that takes no second call, it looks up to `ahead`, which is no
    /// lower than `end`. Answers where it stopped: behind the last region when there would be
    /// too many, else at `end` or `ahead`.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    fn occupied(
        &self,
        start: u64,
        end: u64,
        ahead: u64,
        regions: &mut Vec<Region>,
    ) -> io::Result<u64>;

    /// The page map entries of consecutive pages from `addr` on.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()>;
}
