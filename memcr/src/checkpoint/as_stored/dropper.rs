//! Drops what is stored, on the thread that traces the target.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;

use memcr_plugin_api::ram;

use crate::inject::Borrowed;
use crate::maps::plan::{Batch, DropRun};
use crate::pages::PageRun;
use crate::pages::give_back::GivenBack;
use crate::pages::guarded::Watcher;
use crate::pipeline::{OpenImage, Priority, Work};
use crate::session::Guarded;
use crate::session::journal::Journal;
use crate::sink::Mark;
use crate::sys::same_cpu::cpu_of;

use super::super::error::StepError;
use super::super::take_away::{beside, drop_some, image_record, ranges};
use super::super::{Mapped, pass};
use super::Guardee;
use super::storer::StoredBatch;

/// Who drops what is stored.
pub(super) struct Dropper<'a> {
    borrowed: Borrowed<'a>,
    watcher: &'a mut Option<Watcher>,
    is_beside: bool,
    /// The CPU off which workers are kept.
    alone_on: Option<usize>,
    /// While they work, nobody is to keep a CPU busy that only they want.
    has_idle_workers: bool,
    guarded: &'a Guarded,
    journal: &'a mut Journal,
    huge: &'a mut Vec<PageRun>,
    /// Of how many bytes there are two copies at the most: an image of all that the target has,
    /// and beside it the way back.
    most_bytes: u64,
    /// What was not to go yet.
    kept: Batch,
    given_back: GivenBack,
}

impl<'a> Dropper<'a> {
    /// Borrows the first thread of a target whose guard stands.
    pub(super) fn start(
        target: &'a mut Guardee,
        watcher: &'a mut Option<Watcher>,
        mapped: &Mapped,
        priority: Priority,
    ) -> Result<Self, StepError> {
        let memory = target.guarded.memory();
        memory.begin_to_read();
        *watcher = Some(Watcher::start_for_drops(memory, None)?);
        let parasite = target.guarded.parasite();
        let rss_bytes = mapped
            .details
            .iter()
            .map(|(_, details)| details.rss_bytes());
        Ok(Self {
            borrowed: Borrowed::take(&mut target.frozen, target.site, Some(parasite))?,
            watcher,
            is_beside: false,
            alone_on: None,
            has_idle_workers: priority == Priority::Idle,
            guarded: &target.guarded,
            journal: &mut target.journal,
            huge: &mut target.huge,
            most_bytes: rss_bytes.sum(),
            kept: Batch::default(),
            given_back: GivenBack::default(),
        })
    }

    /// Drops what is stored, up to the last batch that is handed out; `n_waiting` of them are, or
    /// are about to be. When `work` has failed it only takes what comes: what goes then would have
    /// to come back, and who hands it out knows why.
    pub(super) fn follow(
        &mut self,
        batches: Receiver<StoredBatch>,
        n_waiting: &AtomicUsize,
        work: &Work,
    ) -> Result<(), StepError> {
        // While the first ones are stored: it reads many files.
        let pid = self.borrowed.frozen().pid().cast_unsigned();
        let is_room = ram::available_beside(pid) / 2 > self.most_bytes;
        for stored in batches {
            let StoredBatch {
                mark,
                pushed_bytes,
                batch,
            } = stored;
            self.take_cpu(n_waiting.fetch_sub(1, Relaxed) > 1, work);
            self.kept.extend(batch);
            let may_go = is_room || is_smaller(mark, pushed_bytes);
            if !may_go || work.is_over() {
                continue;
            }
            self.check_idle()?;
            let Batch { drops, huge } = std::mem::take(&mut self.kept);
            self.journal.reach(mark, &ranges(&huge))?;
            self.huge.extend(huge);
            pass("checkpoint.part")?;
            self.drop_runs(drops.iter())?;
        }
        Ok(())
    }

    /// Where the workers wait for the drops, these are to have their CPU to themselves: beside a
    /// worker they would get half of it, and wait for the end of its turns.
    fn take_cpu(&mut self, is_behind: bool, work: &Work) {
        let frozen = self.borrowed.frozen();
        let first = frozen.tids().first();
        let first = first.filter(|_| is_behind && self.is_beside && !work.is_over());
        let cpu = first.and_then(|tid| cpu_of(frozen.pid(), *tid));
        if cpu != self.alone_on {
            work.keep_off(cpu);
            self.alone_on = cpu;
        }
    }

    /// The image is whole: what is left goes.
    pub(super) fn finish(
        mut self,
        image: &OpenImage,
        rest: &Batch,
    ) -> Result<GivenBack, StepError> {
        pass("checkpoint.committed")?;
        self.has_idle_workers = false;
        let kept = std::mem::take(&mut self.kept);
        self.huge.extend(kept.huge.iter().chain(&rest.huge));
        let (image, huge) = (image_record(image)?, ranges(self.huge));
        self.journal.update(|record| {
            record.image = Some(image);
            record.huge = huge;
        })?;
        self.drop_runs(kept.drops.iter().chain(&rest.drops))?;
        self.guarded.memory().end_to_read();
        self.borrowed.give_back()?;
        Ok(self.given_back)
    }

    fn drop_runs<'d>(&mut self, drops: impl Iterator<Item = &'d DropRun>) -> Result<(), StepError> {
        let drops: Vec<_> = drops.collect();
        let memory = self.guarded.memory();
        memory.dropping(drops.iter().map(|drop| drop.run));
        // Where many are small, so will be those to come.
        if !self.is_beside
            && !self.has_idle_workers
            && let Some(beside) = beside(self.borrowed.frozen(), &drops)
        {
            *self.watcher = Some(Watcher::start_for_drops(memory, Some(beside))?);
            self.is_beside = true;
        }
        let dropped = drop_some(&mut self.borrowed, self.guarded, &drops)?;
        self.given_back.add(dropped);
        Ok(())
    }

    /// Fails if input or output has completed in memory that is stored already.
    pub(super) fn check_idle(&self) -> Result<(), StepError> {
        Ok(self.borrowed.frozen().check_idle()?)
    }
}

/// Whether the image is clearly smaller than what it replaces: `stored_bytes` at least are
/// stored up to `mark`.
fn is_smaller(mark: Mark, stored_bytes: u64) -> bool {
    mark.len_bytes < stored_bytes / 8 * 7
}
