//! The page table, read ahead: scattered pages and small mappings would otherwise cost two
//! system calls each.
//!
//! ```text
//! mappings  |<--------->|<->|   |<---------->|    |<----
//! regions   [aaaa]  [b] [c]                      [dddd     found at once, whose mapping it is or not
//! readings  |<------------>|                     |<--…     gaps: read over, or not worth it
//! ```

use std::io;
use std::ops::Range;

use super::page::{PageState, PageTable};
use crate::sys::pagemap::Region;

/// Entries in one reading: 64 KiB of them, for 32 MiB of 4 KiB pages.
const MAX_PAGES: usize = 8192;
/// Pages between two regions that are read over: their entries take less time than
/// another call does.
const MAX_GAP: u64 = 256;
/// How far behind the beginning of a small mapping it is looked for others, bytes.
const AHEAD: u64 = 4 << 20;

/// What is known of the pages that are planned next.
pub(super) struct Window<'a, T> {
    table: &'a T,
    page_len_bytes: u64,
    /// What was looked through last, and the regions in it.
    known: Range<u64>,
    regions: Vec<Region>,
    /// Address of the first page whose entry was read.
    start: u64,
    /// Entries of consecutive pages.
    entries: Vec<u64>,
}

impl<'a, T: PageTable> Window<'a, T> {
    /// A window on `table`; nothing is read yet.
    pub(super) fn new(table: &'a T, page_len_bytes: u64) -> Self {
        Self {
            table,
            page_len_bytes,
            known: 0..0,
            regions: Vec::new(),
            start: 0,
            entries: Vec::with_capacity(MAX_PAGES),
        }
    }

    /// As [`PageTable::occupied`]; each call begins at or behind the end of the one before.
    ///
    /// # Errors
    /// Those of the page table.
    pub(super) fn occupied(
        &mut self,
        start: u64,
        end: u64,
        out: &mut Vec<Region>,
    ) -> io::Result<u64> {
        if !self.known.contains(&start) {
            self.look(start, end)?;
        }
        let end = end.min(self.known.end);
        let first = self.first_behind(start);
        let within = self.regions[first..].iter().take_while(|it| it.start < end);
        out.extend(within.map(|region| Region {
            start: region.start.max(start),
            end: region.end.min(end),
            ..*region
        }));
        Ok(end)
    }

    fn look(&mut self, start: u64, end: u64) -> io::Result<()> {
        self.known = 0..0;
        self.regions.clear();
        let ahead = end.max(start.saturating_add(AHEAD));
        let seen = self.table.occupied(start, end, ahead, &mut self.regions)?;
        self.known = start..seen;
        Ok(())
    }

    /// The first region that ends behind `addr`.
    fn first_behind(&self, addr: u64) -> usize {
        self.regions.partition_point(|region| region.end <= addr)
    }

    /// The state of the page at `addr`, which lies in a region that was found last, and the
    /// length of the run of pages of this state that begins with it: to `end` at most, or less.
    ///
    /// # Errors
    /// Those of the page table.
    pub(super) fn alike(&mut self, addr: u64, end: u64) -> io::Result<(PageState, u64)> {
        let read = self.start + self.entries.len() as u64 * self.page_len_bytes;
        if addr < self.start || addr >= read {
            self.read(addr)?;
        }
        let skip = self.n_pages(addr - self.start);
        let most = self.n_pages(end - addr);
        let entries = self.entries[skip..].iter().take(most);
        let mut states = entries.map(|entry| PageState::of_entry(*entry));
        // A region has a page at least, and so has what was read for it.
        let state = states.next().unwrap_or(PageState::Absent);
        let n_alike = 1 + states.take_while(|other| *other == state).count() as u64;
        Ok((state, n_alike * self.page_len_bytes))
    }

    fn read(&mut self, addr: u64) -> io::Result<()> {
        let regions = &self.regions[self.first_behind(addr)..];
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

    /// Every third page is private, the others are absent; counts what is asked.
    struct Thirds<'a> {
        regions: &'a [Region],
        looks_ahead: bool,
        n_looks: Cell<usize>,
        n_readings: Cell<usize>,
    }

    impl<'a> Thirds<'a> {
        fn of(regions: &'a [Region]) -> Self {
            Self {
                regions,
                looks_ahead: true,
                n_looks: Cell::new(0),
                n_readings: Cell::new(0),
            }
        }
    }

    impl PageTable for Thirds<'_> {
        fn occupied(
            &self,
            start: u64,
            end: u64,
            ahead: u64,
            out: &mut Vec<Region>,
        ) -> io::Result<u64> {
            self.n_looks.set(self.n_looks.get() + 1);
            let end = if self.looks_ahead { ahead } else { end };
            let within = |it: &&Region| it.end > start && it.start < end;
            out.extend(self.regions.iter().filter(within).map(|it| Region {
                start: it.start.max(start),
                end: it.end.min(end),
                ..*it
            }));
            Ok(end)
        }

        fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
            self.n_readings.set(self.n_readings.get() + 1);
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

    /// Walks the regions of one mapping; answers how often entries were read.
    fn walk(regions: &[Region]) -> usize {
        let mapping = regions[0].start..regions[regions.len() - 1].end;
        let (n_looks, n_readings) = walk_mappings(regions, std::slice::from_ref(&mapping));
        assert_eq!(n_looks, 1);
        n_readings
    }

    /// Walks mappings; answers how often regions were looked for, and entries read.
    fn walk_mappings(regions: &[Region], mappings: &[Range<u64>]) -> (usize, usize) {
        walk_table(&Thirds::of(regions), mappings)
    }

    fn walk_table(table: &Thirds<'_>, mappings: &[Range<u64>]) -> (usize, usize) {
        let mut window = Window::new(table, PAGE);
        for mapping in mappings {
            let mut at = mapping.start;
            while at < mapping.end {
                let mut found = Vec::new();
                at = window.occupied(at, mapping.end, &mut found).unwrap();
                for region in &found {
                    assert!(mapping.start <= region.start && region.end <= mapping.end);
                    walk_region(&mut window, region);
                }
            }
        }
        (table.n_looks.get(), table.n_readings.get())
    }

    fn walk_region(window: &mut Window<'_, Thirds<'_>>, region: &Region) {
        let mut addr = region.start;
        while addr < region.end {
            let (state, len) = window.alike(addr, region.end).unwrap();
            for page in addr / PAGE..(addr + len) / PAGE {
                assert_eq!(state == PageState::Private, page % 3 == 0, "{page}");
            }
            addr += len;
        }
        assert_eq!(addr, region.end);
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

    #[test]
    fn small_mappings_share_a_look_and_a_reading() {
        // One region over all of them, as the kernel tells neighbours of one kind.
        let n = AHEAD / PAGE;
        let mappings: Vec<_> = (0..n).map(|i| (7 + i) * PAGE..(8 + i) * PAGE).collect();
        assert_eq!(walk_mappings(&[region(7, n)], &mappings), (1, 1));
        assert_eq!(walk_mappings(&[region(7, n)], &mappings[1..]), (1, 1));
        // And one that is no mapping of the target's between two of them.
        let around = [mappings[0].clone(), mappings[2].clone()];
        assert_eq!(walk_mappings(&[region(7, n)], &around), (1, 1));
        let far = [region(7, 1), region(7 + n, 1)];
        let mappings = far.map(|region| region.start..region.end);
        assert_eq!(walk_mappings(&far, &mappings), (2, 2));
    }

    #[test]
    fn a_table_need_not_look_ahead() {
        let regions = [region(7, 1), region(8, 1), region(10, 1)];
        let mappings = regions.map(|region| region.start..region.end);
        let table = Thirds {
            looks_ahead: false,
            ..Thirds::of(&regions)
        };
        assert_eq!(walk_table(&table, &mappings), (3, 3));
    }
}
