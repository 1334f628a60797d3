//! Dropping while the rest is stored: for an image that takes RAM itself, so that it never
//! takes more than is given back.
//!
//! ```text
//!   Planner ──chunks──▶ Encoder ──▶ workers ──▶ the image, which has its name already
//!      └──── drops ───▶ Batch: waits for its chunks ◀── mark: up to where it is written
//!                         │ journal: the image is needed up to the mark
//!                         ▼
//!                       the first thread drops them, under the guard
//! ```
//!
//! The order of things is that of a drop behind the commit, for each batch: its bytes are
//! written where another memcr finds them, the journal tells how far the image reaches, the
//! target is armed and guarded, then the pages go. What is missing at any moment is in the
//! part of the image that the journal tells of ([`crate::sink::Mark`]); a failure, and a
//! memcr that comes after our death, bring it back from there.
//!
//! The price: if we die while the target is stored, it stands still until somebody recovers
//! it; behind the commit alone it would have run on. So this is not done where the image
//! takes no RAM (`file`), nor where nothing may be dropped before all is known to be right
//! (`--verify`) or others are as far (groups).
//!
//! Mappings are registered while there are pages in them that are yet to be read. Such a
//! page may go before it is read (MADV_FREE), and who reads it would wait for us: see
//! [`GuardedMemory::begin_to_read`].
//!
//! [`GuardedMemory::begin_to_read`]: crate::pages::guarded::GuardedMemory::begin_to_read

use std::collections::VecDeque;
use std::sync::Arc;

use crate::freeze::{Frozen, Missing};
use crate::inject::{Borrowed, Site};
use crate::maps::plan::{DropRun, PlanSummary, Planned};
use crate::pages::give_back::GivenBack;
use crate::pages::guarded::Watcher;
use crate::pages::remote::RemoteMemory;
use crate::pipeline::{
    Encoder, OpenImage, Pipeline, PipelineError, PipelineSpec, SearchPath, causes,
};
use crate::restore::RestoreError;
use crate::session::gate::Step;
use crate::session::journal::{ImageRecord, Journal, State};
use crate::session::{Guarded, Held, PhaseClock};
use crate::sink::hex;

use super::error::{CheckpointError, StepError};
use super::take_away::{
    NotGuarded, beside, drop_some, end_drop, image_record, ranges, stand_guard,
};
use super::{CheckpointOptions, Mapped, Stored, finish_report, forget, let_go, pass, scan, undo};

/// How much is planned before a batch is dropped, bytes: a millisecond's work for the thread
/// that drops it, beside some 15 of the workers' at the speed of lz4.
pub(super) const BATCH_LEN: u64 = 16 << 20;

/// A target of which something may be missing, and whose image is not finished.
pub(super) struct Unfinished {
    frozen: Frozen,
    site: Site,
    journal: Journal,
    guarded: Guarded,
    encoder: Encoder,
    /// Once it is committed.
    image: Option<OpenImage>,
    memory: Arc<RemoteMemory>,
    /// Finds the stages again, should those that store have to be left behind.
    search: SearchPath,
}

/// How it begins.
pub(super) enum Begun {
    Guarded(Box<Unfinished>),
    /// No guard can be made in this target: as if nobody had asked.
    Unguarded(Box<(Frozen, Journal, Encoder)>),
}

/// Who drops what is stored.
struct Dropper<'a> {
    borrowed: Borrowed<'a>,
    watcher: Watcher,
    is_beside: bool,
    guarded: &'a Guarded,
    journal: &'a mut Journal,
    batches: VecDeque<Batch>,
    given_back: GivenBack,
}

/// Runs whose pages are in the first `n_chunks` chunks.
struct Batch {
    n_chunks: u64,
    drops: Vec<DropRun>,
}

impl Unfinished {
    /// Lets the guard stand over all that is to be dropped.
    pub(super) fn begin(
        mut frozen: Frozen,
        mut journal: Journal,
        mut encoder: Encoder,
        memory: Arc<RemoteMemory>,
        mapped: &Mapped,
        options: &CheckpointOptions,
    ) -> Result<Begun, CheckpointError> {
        let kept = encoder.keep().map_err(StepError::from);
        if let Err(error) = kept.and_then(|()| tell(&frozen, &mut journal, &encoder)) {
            return Err(give_up(frozen, journal, encoder, error));
        }
        let (site, mappings) = (mapped.site, mapped.mappings());
        let stands = stand_guard(&mut frozen, site, &mut journal, &mappings, &[]);
        let (guarded, failure) = match stands {
            Ok(guarded) => (guarded, None),
            Err(NotGuarded {
                made: Some(guarded),
                error,
            }) => (guarded, Some(error)),
            Err(NotGuarded { error, .. }) => return decline(frozen, journal, encoder, error),
        };
        let this = Self {
            frozen,
            site,
            journal,
            guarded,
            encoder,
            image: None,
            memory,
            search: options.search.clone(),
        };
        match failure {
            None => Ok(Begun::Guarded(Box::new(this))),
            Some(error) => Err(this.fail(error)),
        }
    }

    /// Stores the target's pages and drops them, batch by batch, up to the last.
    pub(super) fn store(
        mut self,
        mapped: Mapped,
        options: &CheckpointOptions,
        clock: &mut PhaseClock,
    ) -> Result<Held, CheckpointError> {
        clock.done("guard");
        let n_vmas = mapped.details.vmas().len();
        let done = self.store_and_drop(mapped, options, clock);
        let (image, summary, given_back) = match done {
            Ok(done) => done,
            Err(error) => return Err(self.fail(error)),
        };
        let stored = Stored {
            image,
            site: self.site,
            summary,
            n_vmas,
        };
        let mut held = stored.hold(self.frozen, self.memory, self.journal);
        held.guarded = Some(self.guarded);
        finish_report(&mut held, given_back, clock);
        Ok(held)
    }

    fn store_and_drop(
        &mut self,
        mapped: Mapped,
        options: &CheckpointOptions,
        clock: &mut PhaseClock,
    ) -> Result<(OpenImage, PlanSummary, GivenBack), StepError> {
        let (frozen, journal, encoder) = (&mut self.frozen, &mut self.journal, &mut self.encoder);
        let mut dropper = Dropper::start(frozen, self.site, &self.guarded, journal)?;
        let summary = scan(mapped, options.pid, |planned| {
            dropper.take(planned, encoder)
        })?;
        dropper.check_idle()?;
        clock.done("scan and store");

        pass("checkpoint.stored")?;
        let image = encoder.finish()?;
        clock.done("commit");
        let given_back = match dropper.finish(&image, &summary, options) {
            Ok(given_back) => given_back,
            Err(error) => {
                self.image = Some(image);
                return Err(error);
            }
        };
        if let Err(error) = end_drop(&mut self.frozen, &mut self.journal) {
            self.image = Some(image);
            return Err(error);
        }
        clock.done("drop");
        Ok((image, summary, given_back))
    }

    /// Brings back what is missing, and lets the target run.
    fn fail(mut self, error: StepError) -> CheckpointError {
        let pid = self.frozen.pid();
        if self.frozen.missing() == Missing::Guarded
            && let Err(error) = self.frozen.arm_first()
        {
            tracing::debug!("{error}");
        }
        let image = match self.image {
            Some(image) => Ok(image),
            None => open_part(self.encoder, &self.journal, &self.search),
        };
        let image = match image {
            Ok(image) => image,
            Err(source) => {
                let source = Box::new(source);
                return CheckpointError::NotUndone {
                    pid,
                    step: Box::new(error),
                    source: Box::new(RestoreError::Held { pid, source }),
                };
            }
        };
        let stored = Stored {
            image,
            site: self.site,
            summary: PlanSummary::default(),
            n_vmas: 0,
        };
        let mut held = stored.hold(self.frozen, self.memory, self.journal);
        held.guarded = Some(self.guarded);
        undo(held, error)
    }
}

impl<'a> Dropper<'a> {
    fn start(
        frozen: &'a mut Frozen,
        site: Site,
        guarded: &'a Guarded,
        journal: &'a mut Journal,
    ) -> Result<Self, StepError> {
        let memory = guarded.memory();
        memory.begin_to_read();
        Ok(Self {
            watcher: Watcher::start_for_drops(memory, None)?,
            is_beside: false,
            borrowed: Borrowed::take(frozen, site, Some(guarded.parasite()))?,
            guarded,
            journal,
            batches: VecDeque::new(),
            given_back: GivenBack::default(),
        })
    }

    /// Hands a chunk to the workers, or keeps a batch until they are done with its pages; and
    /// drops what they are done with.
    fn take(&mut self, planned: Planned, encoder: &mut Encoder) -> Result<(), StepError> {
        match planned {
            Planned::Chunk(chunk) => encoder.push(chunk)?,
            Planned::Drops(drops) => self.batches.push_back(Batch {
                n_chunks: encoder.n_pushed(),
                drops,
            }),
        }
        let mark = encoder.mark();
        let is_stored = |batch: &&Batch| batch.n_chunks <= mark.n_chunks;
        let n_stored = self.batches.iter().take_while(is_stored).count();
        if n_stored == 0 {
            return Ok(());
        }
        self.check_idle()?;
        self.journal.update(|record| {
            if let Some(image) = &mut record.image {
                (image.len_bytes, image.n_chunks) = (mark.len_bytes, Some(mark.n_chunks));
            }
        })?;
        pass("checkpoint.part")?;
        let drops: Vec<_> = self.batches.drain(..n_stored).collect();
        self.drop(drops.iter().flat_map(|batch| &batch.drops))
    }

    /// The image is whole: what is left goes.
    fn finish(
        mut self,
        image: &OpenImage,
        summary: &PlanSummary,
        options: &CheckpointOptions,
    ) -> Result<GivenBack, StepError> {
        options.gate.pass(Step::Stored)?;
        pass("checkpoint.committed")?;
        let image = image_record(image)?;
        self.journal.update(|record| {
            record.image = Some(image);
            record.huge = ranges(&summary.huge);
        })?;
        let batches = std::mem::take(&mut self.batches);
        let batched = batches.iter().flat_map(|batch| &batch.drops);
        self.drop(batched.chain(&summary.drops))?;
        self.guarded.memory().end_to_read();
        self.borrowed.give_back()?;
        drop(self.watcher);
        Ok(self.given_back)
    }

    fn drop<'d>(&mut self, drops: impl Iterator<Item = &'d DropRun>) -> Result<(), StepError> {
        let drops: Vec<_> = drops.collect();
        let memory = self.guarded.memory();
        memory.dropping(drops.iter().map(|drop| drop.run));
        // Where many are small, so will be those to come.
        if !self.is_beside
            && let Some(beside) = beside(self.borrowed.frozen(), &drops)
        {
            self.watcher = Watcher::start_for_drops(memory, Some(beside))?;
            self.is_beside = true;
        }
        let dropped = drop_some(&mut self.borrowed, self.guarded, &drops)?;
        self.given_back.add(dropped);
        Ok(())
    }

    fn check_idle(&self) -> Result<(), StepError> {
        Ok(self.borrowed.frozen().check_idle()?)
    }
}

/// From here on the journal tells of an image of which something may be needed.
fn tell(frozen: &Frozen, journal: &mut Journal, encoder: &Encoder) -> Result<(), StepError> {
    let mark = encoder.mark();
    let image = ImageRecord {
        locator: encoder.locator().unwrap_or_default().to_owned(),
        id: hex(&encoder.image_id()),
        len_bytes: mark.len_bytes,
        n_chunks: Some(mark.n_chunks),
    };
    journal.update(|record| {
        record.state = State::Dropping;
        record.was_stopped = frozen.was_stopped();
        record.image = Some(image);
    })?;
    Ok(())
}

/// No guard is made, and nothing of ours is in the target.
fn decline(
    frozen: Frozen,
    mut journal: Journal,
    mut encoder: Encoder,
    error: StepError,
) -> Result<Begun, CheckpointError> {
    encoder.is_not_needed();
    let pid = frozen.pid();
    let declined = match error {
        StepError::Guard(error) => {
            tracing::debug!("process {pid} has no guard yet: {}", causes(&error));
            let told = journal.update(|record| record.state = State::Storing);
            told.map_err(StepError::from)
        }
        error => Err(error),
    };
    match declined {
        Ok(()) => Ok(Begun::Unguarded(Box::new((frozen, journal, encoder)))),
        Err(error) => Err(give_up(frozen, journal, encoder, error)),
    }
}

/// Nothing was dropped, and nothing of ours is in the target: it is let go as it is.
fn give_up(
    frozen: Frozen,
    journal: Journal,
    encoder: Encoder,
    error: StepError,
) -> CheckpointError {
    if let Err(left) = encoder.abort() {
        tracing::warn!("{}", causes(&left));
    }
    forget(journal, let_go(frozen, error))
}

/// What is written of the image, up to where the journal says that it is needed.
fn open_part(
    encoder: Encoder,
    journal: &Journal,
    search: &SearchPath,
) -> Result<OpenImage, PipelineError> {
    let record = journal.record();
    let image = record.image.as_ref();
    let mark = image.and_then(ImageRecord::mark).unwrap_or_default();
    match (encoder.into_part(mark), image) {
        // Somebody is still in the stages: they are loaded once more.
        (Err(PipelineError::Stalled { .. }), Some(image)) => {
            let spec = PipelineSpec::from(&record.pipeline);
            Pipeline::load(&spec, search)?.open_part(&image.locator, mark)
        }
        (opened, _) => opened,
    }
}
