//! From mappings and page tables to chunks, runs to drop, and counts.
//!
//! ```text
//! pages of a VMA   P P Z P . . P F P P S P      P private  . absent  F fork-shared  S swapped  Z zero page
//! chunk runs       [P P]   [P]     [P]   [P P]   [P]           what is stored, cut at the chunk length
//! drop runs        [P P]   [P . . P]     [P P]   [P]           as long as possible: absent pages are harmless
//! ```
//!
//! As a rule runs are told at the end. Where they are given back while the rest is stored,
//! they are handed out in batches, each behind the chunks that hold its pages.
//!
//! A drop run never covers a page that stays: giving back a swapped page would lose it.

mod drops;

use std::collections::BTreeMap;
use std::io;

pub use drops::DropRun;

use super::details::{Details, VmaDetails};
use super::page::{PageState, PageTable};
use super::policy::{LeftBecause, Policy, Treatment, is_plain};
use super::vma::Vma;
use super::window::Window;
use crate::pages::{ChunkClass, ChunkPlan, PageRun, RemoteAddr};
use crate::sys::pagemap::{Region, category};
use drops::OpenDrop;

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
    /// What is to be given back is handed out meanwhile, when as many bytes were planned; towards
    /// the end fewer, since what is left then nobody stores beside.
    pub batch_len_bytes: Option<u64>,
}

/// What a planner hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// A finished chunk.
    Chunk(ChunkPlan),
    /// What is to be given back: all its pages are in the chunks before, but for clean ones of
    /// files.
    Batch(Batch),
}

/// What may be given back together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What is to be given back, ascending.
    pub drops: Vec<DropRun>,
    /// Runs that are backed by huge pages, ascending: all that were met since the batch before,
    /// those of the drops among them or told earlier.
    pub huge: Vec<PageRun>,
}

impl Batch {
    /// Takes in what follows.
    pub fn extend(&mut self, next: Batch) {
        self.drops.extend(next.drops);
        self.huge.extend(next.huge);
    }
}

/// How long a batch is at the least, bytes: a huge page.
const SHORTEST_BATCH: u64 = 2 << 20;
/// What was planned, beside the chunks themselves.
#[derive(Debug, Default, Clone)]
pub struct PlanSummary {
    /// Bytes in all chunks.
    pub planned_bytes: u64,
    /// Clean file pages to be dropped without being stored, bytes.
    pub drop_only_bytes: u64,
    /// What was not handed out before.
    pub rest: Batch,
    /// Bytes that stay in RAM, by reason.
    pub left_bytes: BTreeMap<LeftBecause, u64>,
    /// Some chunk is of small pages where the kernel might put huge ones.
    pub has_small_in_thp: bool,
}

/// Turns mappings into chunks, one mapping after the other.
pub struct Planner<'a, T, E> {
    options: PlanOptions,
    emit: E,
    /// What is likely to be planned in all.
    expected_bytes: u64,
    /// One unfinished chunk per class: small mappings of several classes then still
    /// fill whole chunks.
    open: Vec<ChunkPlan>,
    /// What it takes to give back what was planned since runs were handed out last, as
    /// [`OpenDrop::extend`] counts it.
    work_bytes: u64,
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
    F: FnMut(Planned) -> Result<(), E>,
{
    /// A planner that hands each finished chunk to `emit`, and runs to be given back, if they
    /// are to be so meanwhile.
    pub fn new(options: PlanOptions, expected_bytes: u64, table: &'a T, emit: F) -> Self {
        Self {
            window: Window::new(table, options.page_len_bytes),
            regions: Vec::new(),
            options,
            expected_bytes,
            emit,
            open: Vec::new(),
            work_bytes: 0,
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
                self.leave(reason, details.rss_bytes());
                Ok(())
            }
            // Before Linux 6.7 a reservation of 64 GiB takes half a second to be looked through.
            // Nothing of it goes: a page does that is the target's own or, with `-f`, of a file;
            // the page map knows either by its `struct page`, and the resident size counts all
            // that have one. What has none (the page of zeros, guard regions) takes no RAM, and
            // swapped pages, which are told of, do not count as absent.
            _ if details.is_absent() => Ok(()),
            treatment => self.scan(vma, details, treatment),
        }
    }

    /// Hands out the unfinished chunks and answers what was planned.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn finish(mut self) -> Result<PlanSummary, E> {
        self.flush()?;
        Ok(self.summary)
    }

    /// Hands out the unfinished chunks.
    fn flush(&mut self) -> Result<(), E> {
        for plan in std::mem::take(&mut self.open) {
            (self.emit)(Planned::Chunk(plan))?;
        }
        Ok(())
    }

    /// Hands out the runs that are complete, once enough was planned.
    fn batch(&mut self) -> Result<(), E> {
        let is_due = |len| self.work_bytes >= len && !self.summary.rest.drops.is_empty();
        if !self.batch_len().is_some_and(is_due) {
            return Ok(());
        }
        self.flush()?;
        self.work_bytes = 0;
        (self.emit)(Planned::Batch(std::mem::take(&mut self.summary.rest)))
    }

    /// How long the batch is to be that is being planned.
    fn batch_len(&self) -> Option<u64> {
        let longest = self.options.batch_len_bytes?;
        let left = self
            .expected_bytes
            .saturating_sub(self.summary.planned_bytes);
        let half = 1 << (left / 2).checked_ilog2().unwrap_or(0);
        Some(half.max(SHORTEST_BATCH).min(longest))
    }

    fn scan(&mut self, vma: &Vma, details: &VmaDetails, how: Treatment) -> Result<(), E> {
        let class = ChunkClass {
            through_proc_mem: self.options.force_proc_mem || !is_plain(vma),
            elide_zero: how == Treatment::Anonymous,
            huge: false,
        };
        let copies = match how {
            Treatment::FileCode => Some(LeftBecause::Code),
            Treatment::PrivateFile if self.options.policy.guarded => Some(LeftBecause::FileCopy),
            _ => None,
        };
        let mut drop = OpenDrop::new(details.flags.locked, vma.is_file(), copies);
        let mut regions = std::mem::take(&mut self.regions);
        let mut from = vma.start;
        while from < vma.end {
            regions.clear();
            from = self.window.occupied(from, vma.end, &mut regions)?;
            for region in &regions {
                self.region(region, details.is_unshared(), class, &mut drop)?;
            }
        }
        self.regions = regions;
        drop.close(&mut self.summary.rest.drops);
        self.summary.has_small_in_thp |= details.thp_eligible;
        Ok(())
    }

    /// `is_unshared`: so are all pages of its mapping.
    fn region(
        &mut self,
        region: &Region,
        is_unshared: bool,
        class: ChunkClass,
        drop: &mut OpenDrop,
    ) -> Result<(), E> {
        let class = ChunkClass {
            huge: region.is_huge(),
            ..class
        };
        if region.categories & category::PFNZERO != 0 {
            if !class.elide_zero {
                // KSM may have put it over a copied page; without it the file shows.
                drop.close(&mut self.summary.rest.drops);
            }
            return Ok(());
        }
        if class.huge {
            append(
                &mut self.summary.rest.huge,
                run_of(region.start, region.end),
            );
        }
        let mut addr = region.start;
        while addr < region.end {
            // Neighbours of the same state are handled as one. What their entries would tell of
            // pages that are there is whether they are shared.
            let (state, len_bytes) = match is_unshared && region.is_anonymous() {
                true => (PageState::Private, region.end - addr),
                false => self.window.alike(addr, region.end)?,
            };
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
        Ok(())
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
                    drop.close(&mut self.summary.rest.drops);
                    self.leave(reason, run.len_bytes);
                }
                None => self.take(run, class, drop)?,
            },
            PageState::CleanFile if self.options.policy.drop_file_pages => {
                self.work_bytes += drop.extend(run, &mut self.summary.rest.drops);
                self.summary.drop_only_bytes += run.len_bytes;
            }
            PageState::CleanFile => {
                // Giving it back would cost the target a fault, and free nothing of its own.
                drop.close(&mut self.summary.rest.drops);
                self.leave(LeftBecause::CleanFile, run.len_bytes);
            }
            PageState::Left(reason) => {
                drop.close(&mut self.summary.rest.drops);
                self.leave(reason, run.len_bytes);
            }
        }
        Ok(())
    }

    /// What is stored, and given back.
    fn take(&mut self, run: PageRun, class: ChunkClass, drop: &mut OpenDrop) -> Result<(), E> {
        let mut rest = run;
        while rest.len_bytes > 0 {
            let len_bytes = match self.batch_len() {
                Some(len) => {
                    drop.longest = len;
                    (rest.addr.0 + 1).next_multiple_of(len) - rest.addr.0
                }
                None => rest.len_bytes,
            };
            let (part, tail) = split(rest, len_bytes.min(rest.len_bytes));
            self.work_bytes += drop.extend(part, &mut self.summary.rest.drops);
            self.store(part, class)?;
            self.batch()?;
            rest = tail;
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
                (self.emit)(Planned::Chunk(full))?;
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

/// What is likely to be stored of `details`, bytes.
#[must_use]
pub fn expected_bytes(details: &Details, policy: &Policy) -> u64 {
    let is_taken = |vma, flags| policy.treat(vma, flags) == Treatment::Anonymous;
    let taken = details.iter().filter(|(vma, it)| is_taken(vma, it.flags));
    taken.map(|(_, it)| it.rss_bytes()).sum()
}

/// The mappings over which a guard is to stand, ascending; those that touch are one: of them
/// something may be dropped. They are of anonymous memory, with pages.
#[must_use]
pub fn mappings(details: &Details, policy: &Policy) -> Vec<PageRun> {
    let mut mappings = Vec::new();
    for (vma, details) in details.iter() {
        let is_taken = policy.treat(vma, details.flags) == Treatment::Anonymous;
        if is_taken && details.rss_kib > 0 {
            append(&mut mappings, run_of(vma.start, vma.end));
        }
    }
    mappings
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
mod tests;
