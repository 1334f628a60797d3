//! The page map, read ahead: scattered pages would otherwise cost a system call each.
//!
//! ```text
//! regions   [aaaa]  [b] [c]                      [dddd
//! readings  |<------------>|                     |<--…   gaps: read over, or not worth it
//! ```

use std::io;

use super::page::{PageState, PageTable};
use crate::sys::pagemap::Region;

/// Entries in one reading: 64 KiB of them, for 32 MiB of 4 KiB pages.
const MAX_PAGES: usize = 8192;
/// Pages between two regions that are read over: their entries take less time than
/// another call does.
const MAX_GAP: u64 = 256;

/// Entries of consecutive pages.
pub(super) struct Window<'a, T> {
    table: &'a T,
    page_len_bytes: u64,
    /// Address of the first page.
    start: u64,
    entries: Vec<u64>,
}

impl<'a, T: PageTable> Window<'a, T> {
    /// A window on `table`; nothing is read yet.
    pub(super) fn new(table: &'a T, page_len_bytes: u64) -> Self {
        Self {
            table,
            page_len_bytes,
            start: 0,
            entries: Vec::with_capacity(MAX_PAGES),
        }
    }

    /// The state of the page at `addr`, which lies in the first of `regions`, and the
    /// length of the run of pages of this state that begins with it: to the end of the
    /// region at most, or less.
    ///
    /// # Errors
    /// Those of the page table.
    pub(super) fn alike(&mut self, addr: u64, regions: &[Region]) -> io::Result<(PageState, u64)> {
        let end = self.start + self.entries.len() as u64 * self.page_len_bytes;
        if addr < self.start || addr >= end {
            self.read(addr, regions)?;
        }
        let skip = self.n_pages(addr - self.start);
        let most = self.n_pages(regions.first().map_or(addr, |region| region.end) - addr);
        let entries = self.entries[skip..].iter().take(most);
        let mut states = entries.map(|entry| PageState::of_entry(*entry));
        // A region has a page at least, and so has what was read for it.
        let state = states.next().unwrap_or(PageState::Absent);
        let n_alike = 1 + states.take_while(|other| *other == state).count() as u64;
        Ok((state, n_alike * self.page_len_bytes))
    }

    fn read(&mut self, addr: u64, regions: &[Region]) -> io::Result<()> {
        let len = regions.split_first().map_or(0, |(first, rest)| {
            let near = |end: u64, next: &Region| {
                let gap = next.start.saturating_sub(end);
                (gap <= MAX_GAP * self.page_len_bytes).then_some(next.end)
            };
            let end = rest.iter().scan(first.end, |end, next| {
                *end = near(*end, next)?;
                Some(*end)
            });
            // No further than a reading reaches, however many regions there are.
            let longest = MAX_PAGES as u64 * self.page_len_bytes;
            let end = end.take_while(|end| end - addr < longest).last();
            (end.unwrap_or(first.end) - addr).min(longest)
        });
        self.start = addr;
        self.entries.clear();
        self.entries.resize(self.n_pages(len), 0);
        let read = self.table.entries(addr, &mut self.entries);
        if read.is_err() {
            self.entries.clear();
        }
        read
    }

    fn n_pages(&self, len_bytes: u64) -> usize {
        // A window or a region of a 64-bit address space: counts of pages fit.
        (len_bytes / self.page_len_bytes) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;

    const PAGE: u64 = 4096;

    /// Every third page is private, the others are absent; counts the readings.
    #[derive(Default)]
    struct Thirds(Cell<usize>);

    impl PageTable for Thirds {
        fn occupied(&self, _: u64, end: u64, _: &mut Vec<Region>) -> io::Result<u64> {
            Ok(end)
        }

        fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
            self.0.set(self.0.get() + 1);
            for (entry, page) in out.iter_mut().zip(addr / PAGE..) {
                *entry = if page % 3 == 0 { 1 << 63 | 1 << 56 } else { 0 };
            }
            Ok(())
        }
    }

    fn region(first: u64, n_pages: u64) -> Region {
        Region {
            start: first * PAGE,
            end: (first + n_pages) * PAGE,
            categories: 0,
        }
    }

    /// Walks the regions; answers how often the table was read.
    fn walk(regions: &[Region]) -> usize {
        let table = Thirds::default();
        let mut window = Window::new(&table, PAGE);
        for (i, region) in regions.iter().enumerate() {
            let mut addr = region.start;
            while addr < region.end {
                let (state, len) = window.alike(addr, &regions[i..]).unwrap();
                for page in addr / PAGE..(addr + len) / PAGE {
                    assert_eq!(state == PageState::Private, page % 3 == 0, "{page}");
                }
                addr += len;
            }
            assert_eq!(addr, region.end);
        }
        table.0.get()
    }

    #[test]
    fn scattered_pages_share_a_reading() {
        let every_other = |n| (0..n).map(|i| region(100 + 2 * i, 1)).collect::<Vec<_>>();
        assert_eq!(walk(&every_other(4096)), 1);
        assert_eq!(walk(&every_other(4100)), 2);
    }

    #[test]
    fn wide_gaps_are_not_read() {
        assert_eq!(walk(&[region(1, 3), region(4 + MAX_GAP, 1)]), 1);
        assert_eq!(walk(&[region(1, 3), region(5 + MAX_GAP, 1)]), 2);
    }

    #[test]
    fn a_long_region_takes_several_readings() {
        let n = MAX_PAGES as u64;
        assert_eq!(walk(&[region(7, n)]), 1);
        assert_eq!(walk(&[region(7, 2 * n + 1)]), 3);
        assert_eq!(walk(&[region(7, 2 * n + 1), region(4 * n, 1)]), 4);
        assert_eq!(walk(&[region(7, n - 1), region(n + 8, 5)]), 2);
    }
}
