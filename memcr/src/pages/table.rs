//! The target's page table: PAGEMAP_SCAN where the kernel has it, else the page map.

use std::io;

use crate::maps::page::PageTable;
use crate::sys::pagemap::{Pagemap, Region};
use crate::sys::{huge_page_size, page_size};

/// Regions asked for at once: pages for the first chunk, so that it can be stored while
/// others are looked for. In a terabyte with a page here and there that takes a while.
const MAX_REGIONS: usize = 256;
/// Pages asked for at once, for the same reason. And what the kernel has looked at for that, it
/// has in the CPU's cache when the entries of the same pages are read.
const MAX_FOUND: u64 = 1024;

/// Whether an entry of the page map is of a page: in RAM or in swap (bits 63 and 62,
/// Documentation/admin-guide/mm/pagemap.rst).
#[must_use]
pub fn is_there(entry: u64) -> bool {
    entry >> 62 != 0
}

/// `/proc/PID/pagemap` of a frozen process.
#[derive(Debug)]
pub struct KernelPageTable(Pagemap);

impl KernelPageTable {
    /// Opens it.
    ///
    /// # Errors
    /// As [`Pagemap::open`].
    pub fn open(pid: i32) -> io::Result<Self> {
        Pagemap::open(pid).map(Self)
    }

    fn scan(&self, start: u64, end: u64, regions: &mut Vec<Region>) -> io::Result<u64> {
        // No more regions than pages: a small mapping does not pay for a long vector.
        let n_pages = usize::try_from((end - start) / page_size()).unwrap_or(MAX_REGIONS);
        let most = n_pages.clamp(1, MAX_REGIONS);
        regions.clear();
        regions.resize(most, Region::default());
        let n_regions = self.0.scan(start, end, MAX_FOUND, regions)?;
        regions.truncate(n_regions);
        // Going on behind the last region, nothing is told of twice.
        let found_bytes: u64 = regions.iter().map(|region| region.end - region.start).sum();
        let is_limited = found_bytes >= MAX_FOUND * page_size();
        if is_limited && let Some(last) = regions.last_mut().filter(|last| last.is_huge()) {
            // The kernel cuts a huge page for it; cut by us it would be dropped in two parts.
            last.end = last.end.next_multiple_of(huge_page_size()).min(end);
        }
        let is_full = n_regions == most || is_limited;
        Ok(regions
            .last()
            .filter(|_| is_full)
            .map_or(end, |last| last.end))
    }
}

impl PageTable for KernelPageTable {
    /// Without PAGEMAP_SCAN (before Linux 6.7) the whole range may be occupied, and it
    /// is not known which pages are there, huge or the zero page: the two last are then
    /// handled as small pages and as shared ones.
    fn occupied(
        &self,
        start: u64,
        end: u64,
        ahead: u64,
        regions: &mut Vec<Region>,
    ) -> io::Result<u64> {
        let mut seen = self.scan(start, ahead, regions);
        // There may be no addresses as high as that.
        if seen.is_err() && ahead > end {
            seen = self.scan(start, end, regions);
        }
        match seen {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                regions.clear();
                regions.push(Region {
                    start,
                    end,
                    categories: 0,
                });
                Ok(end)
            }
            seen => seen,
        }
    }

    fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
        self.0.entries(addr, out)
    }
}
