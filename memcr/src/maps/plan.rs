//! From mappings and page tables to chunks, runs to drop, and counts.
//!
//! ```text
//! pages of a VMA   P P Z P . . P F P P S P      P private  . absent  F fork-shared  S swapped  Z zero page
//! chunk runs       [P P]   [P]     [P]   [P P]   [P]           what is stored, cut at the chunk length
//! drop runs        [P P]   [P . . P]     [P P]   [P]           as long as possible: absent pages are harmless
//! ```
//!
//! A drop run never covers a page that stays: giving back a swapped page would lose it.

use std::collections::BTreeMap;
use std::io;

use super::details::VmaDetails;
use super::page::{PageState, PageTable};
use super::policy::{LeftBecause, Policy, Treatment, is_plain};
use super::vma::Vma;
use super::window::Window;
use crate::pages::{ChunkClass, ChunkPlan, PageRun, RemoteAddr};
use crate::sys::pagemap::{Region, category};

/// How a plan is made.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// What goes.
    pub policy: Policy,
    /// Longest chunk, bytes; a multiple of the page size.
    pub chunk_len_bytes: u64,
    /// Page size, bytes.
    pub page_len_bytes: u64,
    /// Read every page through `/proc/PID/mem` (`-m`).
    pub force_proc_mem: bool,
    /// Pages that stay because somebody needs them while the target is held.
    pub keep: Vec<PageRun>,
}

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

/// What was planned, beside the chunks themselves.
#[derive(Debug, Default, Clone)]
pub struct PlanSummary {
    /// Bytes in all chunks.
    pub planned_bytes: u64,
    /// Clean file pages to be dropped without being stored, bytes.
    pub drop_only_bytes: u64,
    /// What is to be given back, ascending.
    pub drops: Vec<DropRun>,
    /// Bytes that stay in RAM, by reason.
    pub left_bytes: BTreeMap<LeftBecause, u64>,
    /// Runs that are backed by huge pages, ascending.
    pub huge: Vec<PageRun>,
    /// Mappings of which something is dropped, ascending; those that touch are one.
    pub mappings: Vec<PageRun>,
    /// Some chunk is of small pages where the kernel might put huge ones.
    pub has_small_in_thp: bool,
}

/// Turns mappings into chunks, one mapping after the other.
pub struct Planner<'a, T, E> {
    options: PlanOptions,
    table: &'a T,
    emit: E,
    /// One unfinished chunk per class: small mappings of several classes then still
    /// fill whole chunks.
    open: Vec<ChunkPlan>,
    summary: PlanSummary,
    window: Window<'a, T>,
    /// Empty; kept for its memory, which thousands of mappings use one after the other.
    regions: Vec<Region>,
}

/// What `emit` may answer: its own error, or that of the page table.
pub trait PlanError: From<io::Error> {}
impl<E: From<io::Error>> PlanError for E {}

impl<'a, T: PageTable, F, E: PlanError> Planner<'a, T, F>
where
    F: FnMut(ChunkPlan) -> Result<(), E>,
{
    /// A planner that hands each finished chunk to `emit`.
    pub fn new(options: PlanOptions, table: &'a T, emit: F) -> Self {
        Self {
            window: Window::new(table, options.page_len_bytes),
            regions: Vec::new(),
            options,
            table,
            emit,
            open: Vec::new(),
            summary: PlanSummary::default(),
        }
    }

    /// Plans one mapping.
    ///
    /// # Errors
    /// Those of the page table and of `emit`.
    pub fn add(&mut self, vma: &Vma, details: &VmaDetails) -> Result<(), E> {
        match self.options.policy.treat(vma, details.flags) {
            Treatment::Leave(reason) => {
                self.leave(reason, details.rss_bytes);
                Ok(())
            }
            treatment => self.scan(vma, details, treatment),
        }
    }

    /// Hands out the unfinished chunks and answers what was planned.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn finish(mut self) -> Result<PlanSummary, E> {
        for plan in std::mem::take(&mut self.open) {
            (self.emit)(plan)?;
        }
        Ok(self.summary)
    }

    fn scan(&mut self, vma: &Vma, details: &VmaDetails, how: Treatment) -> Result<(), E> {
        let class = ChunkClass {
            through_proc_mem: self.options.force_proc_mem || !is_plain(vma),
            elide_zero: how == Treatment::Anonymous,
            huge: false,
        };
        let mut drop = OpenDrop {
            locked: details.flags.locked,
            is_file: vma.is_file(),
            copies: match how {
                Treatment::FileCode => Some(LeftBecause::Code),
                Treatment::PrivateFile if self.options.policy.guarded => {
                    Some(LeftBecause::FileCopy)
                }
                _ => None,
            },
            run: None,
        };
        let n_before = self.summary.drops.len();
        let mut regions = std::mem::take(&mut self.regions);
        let mut from = vma.start;
        while from < vma.end {
            regions.clear();
            from = self.table.occupied(from, vma.end, &mut regions)?;
            for i in 0..regions.len() {
                self.region(&regions[i..], class, &mut drop)?;
            }
        }
        self.regions = regions;
        drop.close(&mut self.summary.drops);
        if n_before < self.summary.drops.len() {
            self.note_mapping(vma);
        }
        self.summary.has_small_in_thp |= details.thp_eligible;
        Ok(())
    }

    /// Plans the first of `regions`.
    fn region(
        &mut self,
        regions: &[Region],
        class: ChunkClass,
        drop: &mut OpenDrop,
    ) -> Result<(), E> {
        let Some(region) = regions.first() else {
            return Ok(());
        };
        let class = ChunkClass {
            huge: region.categories & category::HUGE != 0,
            ..class
        };
        if region.categories & category::PFNZERO != 0 {
            if !class.elide_zero {
                // KSM may have put it over a copied page; without it the file shows.
                drop.close(&mut self.summary.drops);
            }
            return Ok(());
        }
        let mut addr = region.start;
        while addr < region.end {
            // Neighbours of the same state are handled as one.
            let (state, len_bytes) = self.window.alike(addr, regions)?;
            let run = PageRun {
                addr: RemoteAddr(addr),
                len_bytes,
            };
            if self.is_kept(run) {
                self.run_around_kept(run, state, class, drop)?;
            } else {
                self.run(run, state, class, drop)?;
            }
            addr += len_bytes;
        }
        if class.huge {
            append(&mut self.summary.huge, run_of(region.start, region.end));
        }
        Ok(())
    }

    /// A guard is registered over mappings as a whole.
    fn note_mapping(&mut self, vma: &Vma) {
        if !vma.is_file() {
            append(&mut self.summary.mappings, run_of(vma.start, vma.end));
        }
    }

    /// Plans a run that holds pages which are needed: cut at their bounds.
    fn run_around_kept(
        &mut self,
        run: PageRun,
        state: PageState,
        class: ChunkClass,
        drop: &mut OpenDrop,
    ) -> Result<(), E> {
        let end = run.end().0;
        let mut at = run.addr.0;
        while at < end {
            let bounds = self
                .options
                .keep
                .iter()
                .flat_map(|kept| [kept.addr.0, kept.end().0]);
            let next = bounds
                .filter(|&bound| bound > at)
                .min()
                .unwrap_or(end)
                .min(end);
            let part = run_of(at, next);
            let state = match state {
                PageState::Private if self.is_kept(part) => PageState::Left(LeftBecause::Needed),
                state => state,
            };
            self.run(part, state, class, drop)?;
            at = next;
        }
        Ok(())
    }

    fn is_kept(&self, run: PageRun) -> bool {
        let overlaps = |kept: &PageRun| kept.addr < run.end() && run.addr < kept.end();
        self.options.keep.iter().any(overlaps)
    }

    fn run(
        &mut self,
        run: PageRun,
        state: PageState,
        class: ChunkClass,
        drop: &mut OpenDrop,
    ) -> Result<(), E> {
        match state {
            PageState::Absent => {}
            PageState::Private => match drop.copies {
                Some(reason) => {
                    drop.close(&mut self.summary.drops);
                    self.leave(reason, run.len_bytes);
                }
                None => {
                    drop.extend(run);
                    self.store(run, class)?;
                }
            },
            PageState::CleanFile if self.options.policy.drop_file_pages => {
                drop.extend(run);
                self.summary.drop_only_bytes += run.len_bytes;
            }
            PageState::CleanFile => {
                // Giving it back would cost the target a fault, and free nothing of its own.
                drop.close(&mut self.summary.drops);
                self.leave(LeftBecause::CleanFile, run.len_bytes);
            }
            PageState::Left(reason) => {
                drop.close(&mut self.summary.drops);
                self.leave(reason, run.len_bytes);
            }
        }
        Ok(())
    }

    fn store(&mut self, run: PageRun, class: ChunkClass) -> Result<(), E> {
        self.summary.planned_bytes += run.len_bytes;
        let mut rest = run;
        while rest.len_bytes > 0 {
            let slot = self.slot(class);
            let room = self.options.chunk_len_bytes - self.open[slot].len_bytes();
            let (part, tail) = split(rest, room.min(rest.len_bytes));
            append(&mut self.open[slot].runs, part);
            rest = tail;
            if part.len_bytes == room {
                let full = self.open.swap_remove(slot);
                (self.emit)(full)?;
            }
        }
        Ok(())
    }

    fn slot(&mut self, class: ChunkClass) -> usize {
        self.open
            .iter()
            .position(|plan| plan.class == class)
            .unwrap_or_else(|| {
                self.open.push(ChunkPlan {
                    class,
                    runs: Vec::new(),
                });
                self.open.len() - 1
            })
    }

    fn leave(&mut self, reason: LeftBecause, len_bytes: u64) {
        if len_bytes > 0 {
            *self.summary.left_bytes.entry(reason).or_default() += len_bytes;
        }
    }
}

/// The drop run that is being made longer.
struct OpenDrop {
    locked: bool,
    is_file: bool,
    /// Why copied pages of this mapping stay, if they do.
    copies: Option<LeftBecause>,
    run: Option<PageRun>,
}

impl OpenDrop {
    /// Takes `run` in, with the absent pages before it.
    fn extend(&mut self, run: PageRun) {
        let addr = self.run.map_or(run.addr, |open| open.addr);
        self.run = Some(PageRun {
            addr,
            len_bytes: run.end().0 - addr.0,
        });
    }

    fn close(&mut self, drops: &mut Vec<DropRun>) {
        let (locked, is_file) = (self.locked, self.is_file);
        let run = self.run.take();
        drops.extend(run.map(|run| DropRun {
            run,
            locked,
            is_file,
        }));
    }
}

fn run_of(start: u64, end: u64) -> PageRun {
    PageRun {
        addr: RemoteAddr(start),
        len_bytes: end - start,
    }
}

fn split(run: PageRun, len_bytes: u64) -> (PageRun, PageRun) {
    let head = PageRun {
        addr: run.addr,
        len_bytes,
    };
    (
        head,
        PageRun {
            addr: head.end(),
            len_bytes: run.len_bytes - len_bytes,
        },
    )
}

/// Appends a run, as part of the last one where they touch.
fn append(runs: &mut Vec<PageRun>, run: PageRun) {
    match runs.last_mut() {
        Some(last) if last.end() == run.addr => last.len_bytes += run.len_bytes,
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::maps::vma;

    /// A page table from a string, one letter a page, from address 0x1000 on.
    struct Letters(&'static str);

    impl PageTable for Letters {
        fn occupied(&self, start: u64, end: u64, regions: &mut Vec<Region>) -> io::Result<u64> {
            let mut addr = start;
            for letter in self.0[(start / 0x1000 - 1) as usize..(end / 0x1000 - 1) as usize].bytes()
            {
                let categories = match letter {
                    b'.' => 0,
                    b'H' => category::PRESENT | category::HUGE,
                    b'Z' => category::PRESENT | category::PFNZERO,
                    _ => category::PRESENT,
                };
                match regions.last_mut() {
                    Some(last) if last.end == addr && last.categories == categories => {
                        last.end += 0x1000
                    }
                    _ if letter == b'.' => {}
                    _ => regions.push(Region {
                        start: addr,
                        end: addr + 0x1000,
                        categories,
                    }),
                }
                addr += 0x1000;
            }
            Ok(end)
        }

        fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
            let letters = &self.0.as_bytes()[(addr / 0x1000 - 1) as usize..];
            for (entry, letter) in out.iter_mut().zip(letters) {
                *entry = match letter {
                    b'P' | b'H' => 1 << 63 | 1 << 56,
                    b'F' | b'Z' => 1 << 63,
                    b'C' => 1 << 63 | 1 << 61,
                    b'S' => 1 << 62,
                    b'G' => 1 << 62 | 1 << 58,
                    _ => 0,
                };
            }
            Ok(())
        }
    }

    fn plan(
        letters: &'static str,
        line: &str,
        policy: Policy,
        chunk_pages: u64,
    ) -> (Vec<ChunkPlan>, PlanSummary) {
        let options = PlanOptions {
            policy,
            chunk_len_bytes: chunk_pages * 0x1000,
            page_len_bytes: 0x1000,
            force_proc_mem: false,
            keep: Vec::new(),
        };
        let mut chunks = Vec::new();
        let table = Letters(letters);
        let mut planner = Planner::new(options, &table, |plan| {
            chunks.push(plan);
            Ok::<(), io::Error>(())
        });
        let end = 0x1000 + letters.len() * 0x1000;
        let vma = vma::parse(format!("1000-{end:x} {line}").as_bytes())
            .unwrap()
            .remove(0);
        planner
            .add(
                &vma,
                &VmaDetails {
                    rss_bytes: 7,
                    ..Default::default()
                },
            )
            .unwrap();
        let summary = planner.finish().unwrap();
        (chunks, summary)
    }

    fn pages(runs: impl IntoIterator<Item = PageRun>) -> Vec<(u64, u64)> {
        runs.into_iter()
            .map(|run| (run.addr.0 / 0x1000 - 1, run.len_bytes / 0x1000))
            .collect()
    }

    const ANON: &str = "rw-p 0 00:00 0";
    const FILE: &str = "rw-p 0 08:01 5 /lib/x";

    #[test]
    fn the_picture_above_holds() {
        let (chunks, summary) = plan("PPZP..PFPPSP", ANON, Policy::default(), 64);
        assert_eq!(chunks.len(), 1);
        assert_eq!(
            pages(chunks[0].runs.clone()),
            [(0, 2), (3, 1), (6, 1), (8, 2), (11, 1)]
        );
        let drops = pages(summary.drops.iter().map(|drop| drop.run));
        // The zero page may be covered: giving it back changes nothing.
        assert_eq!(drops, [(0, 7), (8, 2), (11, 1)]);
        assert_eq!(summary.planned_bytes, 7 * 0x1000);
        assert_eq!(summary.left_bytes[&LeftBecause::ForkShared], 0x1000);
        assert_eq!(summary.left_bytes[&LeftBecause::Swapped], 0x1000);
    }

    #[test]
    fn chunks_are_cut_at_their_length_and_filled() {
        let (chunks, _) = plan("PPPPP.PP", ANON, Policy::default(), 3);
        let runs: Vec<_> = chunks
            .iter()
            .map(|chunk| pages(chunk.runs.clone()))
            .collect();
        assert_eq!(runs, [vec![(0, 3)], vec![(3, 2), (6, 1)], vec![(7, 1)]]);
    }

    #[test]
    fn huge_and_small_pages_are_chunks_of_their_own() {
        let (chunks, summary) = plan("PHHP", ANON, Policy::default(), 8);
        assert_eq!(summary.huge.len(), 1);
        let huge: Vec<_> = chunks.iter().filter(|chunk| chunk.class.huge).collect();
        assert_eq!(pages(huge[0].runs.clone()), [(1, 2)]);
        let small: Vec<_> = chunks.iter().filter(|chunk| !chunk.class.huge).collect();
        assert_eq!(pages(small[0].runs.clone()), [(0, 1), (3, 1)]);
    }

    #[test]
    fn clean_file_pages_stay_unless_asked() {
        let (chunks, summary) = plan("CPPC", FILE, Policy::default(), 8);
        assert!(
            !chunks[0].class.elide_zero,
            "a dropped page of zeros would show the file"
        );
        assert_eq!(pages(summary.drops.iter().map(|drop| drop.run)), [(1, 2)]);
        assert_eq!(summary.left_bytes[&LeftBecause::CleanFile], 2 * 0x1000);
        let all = Policy {
            drop_file_pages: true,
            ..Default::default()
        };
        let (chunks, summary) = plan("CPPC", FILE, all, 8);
        assert_eq!(pages(chunks[0].runs.clone()), [(1, 2)]);
        assert_eq!(pages(summary.drops.iter().map(|drop| drop.run)), [(0, 4)]);
        assert_eq!(summary.drop_only_bytes, 2 * 0x1000);
    }

    #[test]
    fn a_page_of_zeros_over_a_file_stays() {
        // KSM puts the shared page of zeros over a copied page that holds zeros: dropped,
        // the file would show.
        let (_, summary) = plan("PZP", FILE, Policy::default(), 8);
        let drops = pages(summary.drops.iter().map(|drop| drop.run));
        assert_eq!(drops, [(0, 1), (2, 1)]);
    }

    #[test]
    fn copied_pages_of_code_stay_and_clean_ones_go() {
        let policy = Policy {
            drop_file_pages: true,
            override_protection: true,
            ..Default::default()
        };
        let (chunks, summary) = plan("CPC", "r-xp 0 08:01 5 /lib/x", policy, 8);
        assert!(chunks.is_empty());
        let drops = pages(summary.drops.iter().map(|drop| drop.run));
        assert_eq!(drops, [(0, 1), (2, 1)]);
        assert_eq!(summary.left_bytes[&LeftBecause::Code], 0x1000);
    }

    #[test]
    fn guard_regions_are_counted_as_what_they_are() {
        let (_, summary) = plan("PGP", ANON, Policy::default(), 8);
        let drops = pages(summary.drops.iter().map(|drop| drop.run));
        assert_eq!(drops, [(0, 1), (2, 1)]);
        assert_eq!(summary.left_bytes[&LeftBecause::Guard], 0x1000);
    }

    #[test]
    fn a_mapping_that_stays_counts_with_its_resident_size() {
        let (chunks, summary) = plan(
            "PP",
            "rw-s 0 00:01 9 /memfd:x (deleted)",
            Policy::default(),
            8,
        );
        assert!(chunks.is_empty() && summary.drops.is_empty());
        assert_eq!(summary.left_bytes[&LeftBecause::SharedMapping], 7);
    }

    #[test]
    fn protection_decides_the_way_in() {
        let policy = Policy {
            override_protection: true,
            ..Default::default()
        };
        let (chunks, _) = plan("P", "---p 0 00:00 0", policy, 8);
        assert!(chunks[0].class.through_proc_mem);
        let (chunks, _) = plan("P", ANON, Policy::default(), 8);
        assert!(!chunks[0].class.through_proc_mem);
    }
}
