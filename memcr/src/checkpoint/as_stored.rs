//! Dropping while the rest is stored: for an image that takes RAM itself, which it then has
//! from what is given back.
//!
//! ```text
//!   thread `scan`   Planner ──chunks──▶ Encoder ──▶ workers ──▶ the image, which has its
//!                      └── batches ──▶ wait for their chunks     name already
//!                                          │ ◀── mark: up to where it is written
//!   the tracer           journal: the image is needed up to the mark
//!                           ▼
//!                        the first thread of the target drops them, under the guard
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
//! A failure takes RAM for all that is missing, while the image still has its own. So where
//! there is no room for twice the target, pages go early only while the image is clearly
//! smaller than what it replaces. Where there is they go always: the image then takes RAM
//! that the target has just had, which is faster than any that has to be got first.
//!
//! Mappings are registered while there are pages in them that are yet to be read. Such a
//! page may go before it is read (MADV_FREE), and who reads it would wait for us: see
//! [`GuardedMemory::begin_to_read`].
//!
//! [`GuardedMemory::begin_to_read`]: crate::pages::guarded::GuardedMemory::begin_to_read

mod dropper;
mod storer;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::freeze::{Frozen, Missing};
use crate::inject::Site;
use crate::maps::plan::PlanSummary;
use crate::pages::PageRun;
use crate::pages::give_back::GivenBack;
use crate::pages::guarded::Watcher;
use crate::pages::remote::RemoteMemory;
use crate::pipeline::{
    Encoder, OpenImage, Pipeline, PipelineError, PipelineSpec, SearchPath, causes, panic_text,
};
use crate::restore::{OnCorrupt, RestoreError};
use crate::session::gate::Step;
use crate::session::journal::{ImageRecord, Journal, State};
use crate::session::{Guarded, Held, PhaseClock};
use crate::sink::hex;

use super::error::{CheckpointError, StepError};
use super::failed::{forget, let_go, undo};
use super::take_away::{NotGuarded, end_drop, stand_guard};
use super::{CheckpointOptions, Mapped, Stored, finish_report, pass};
use dropper::Dropper;
use storer::{NOT_DROPPED, Storer};

/// How much is planned before a batch is dropped, bytes: a millisecond's work for the thread
/// that drops it, beside some 4 of the workers' at the speed of lz4. Longer ones save nothing.
pub(super) const BATCH_LEN: u64 = 8 << 20;
/// Batches that are stored and wait for the one before them, beside one that nobody can take
/// yet: more would be RAM that both they and the image take.
const N_WAITING: usize = 1;

/// A target of which something may be missing, and whose image is not finished.
pub(super) struct Unfinished {
    target: Guardee,
    encoder: Encoder,
    /// Reads the events of our drops, for as long as somebody reads or drops pages.
    watcher: Option<Watcher>,
    /// Once it is committed.
    image: Option<OpenImage>,
    /// Finds the stages again, should those that store have to be left behind.
    search: SearchPath,
    /// As [`CheckpointOptions::on_corrupt`].
    on_corrupt: OnCorrupt,
}

/// The target under its guard, and what gives it its memory back, beside an image.
struct Guardee {
    frozen: Frozen,
    site: Site,
    journal: Journal,
    guarded: Guarded,
    memory: Arc<RemoteMemory>,
    /// What was backed by huge pages, of all that may be missing.
    huge: Vec<PageRun>,
}

/// How it begins.
pub(super) enum Begun {
    Guarded(Box<Unfinished>),
    /// No guard can be made in this target, or nothing is to be missing of it yet: as if nobody
    /// had asked.
    Unguarded(Box<(Frozen, Journal, Encoder)>),
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
        if kept.is_ok() && frozen.may_wake() {
            encoder.is_not_needed();
            return Ok(Begun::Unguarded(Box::new((frozen, journal, encoder))));
        }
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
            target: Guardee {
                frozen,
                site,
                journal,
                guarded,
                memory,
                huge: Vec::new(),
            },
            encoder,
            watcher: None,
            image: None,
            search: options.search.clone(),
            on_corrupt: options.on_corrupt,
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
        let (image, summary, given_back) = match self.store_and_drop(mapped, options, clock) {
            Ok(done) => done,
            Err(error) => return Err(self.fail(error)),
        };
        // The target is held: nobody drops pages any more.
        drop(self.watcher);
        let mut held = self.target.hold(image, summary, n_vmas);
        finish_report(&mut held, given_back, clock);
        Ok(held)
    }

    fn store_and_drop(
        &mut self,
        mapped: Mapped,
        options: &CheckpointOptions,
        clock: &mut PhaseClock,
    ) -> Result<(OpenImage, PlanSummary, GivenBack), StepError> {
        let pid = self.target.frozen.pid();
        let mut dropper = Dropper::start(
            &mut self.target,
            &mut self.watcher,
            &mapped,
            options.priority,
        )?;
        let summary = store_beside(&mut self.encoder, &mut dropper, mapped, pid)?;
        dropper.check_idle()?;
        clock.done("scan and store");

        pass("checkpoint.stored")?;
        let image = self.encoder.finish()?;
        clock.done("commit");
        let given_back = options
            .gate
            .pass(Step::Stored)
            .map_err(StepError::from)
            .and_then(|()| dropper.finish(&image, &summary.rest));
        let Guardee {
            frozen, journal, ..
        } = &mut self.target;
        match given_back.and_then(|given_back| end_drop(frozen, journal).map(|()| given_back)) {
            Ok(given_back) => {
                clock.done("drop");
                Ok((image, summary, given_back))
            }
            Err(error) => {
                self.image = Some(image);
                Err(error)
            }
        }
    }

    /// Brings back what is missing, and lets the target run.
    fn fail(mut self, error: StepError) -> CheckpointError {
        let Guardee {
            frozen, journal, ..
        } = &mut self.target;
        let pid = frozen.pid();
        if frozen.missing() == Missing::Guarded
            && let Err(unarmed) = frozen.arm_first()
        {
            tracing::debug!("{unarmed}");
        }
        let image = match self.image {
            Some(image) => Ok(image),
            None => open_part(self.encoder, journal, &self.search),
        };
        // Not before: the workers may wait for pages that it lets them read.
        drop(self.watcher);
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
        let held = self.target.hold(image, PlanSummary::default(), 0);
        undo(held, self.on_corrupt, error)
    }
}

impl Guardee {
    fn hold(self, image: OpenImage, mut summary: PlanSummary, n_vmas: usize) -> Held {
        summary.rest.huge = self.huge;
        let stored = Stored {
            image,
            site: self.site,
            summary,
            mappings: Vec::new(),
            n_vmas,
        };
        let mut held = stored.hold(self.frozen, self.memory, self.journal);
        held.guarded = Some(self.guarded);
        held
    }
}

/// Hands all pages to the workers, on a thread of its own, and lets them be dropped on this
/// one: only this one may trace the target.
fn store_beside(
    encoder: &mut Encoder,
    dropper: &mut Dropper<'_>,
    mapped: Mapped,
    pid: i32,
) -> Result<PlanSummary, StepError> {
    let (stored, batches) = sync_channel(N_WAITING);
    let (n_waiting, work) = (AtomicUsize::default(), encoder.work());
    thread::scope(|scope| {
        let storer = Storer::new(encoder, stored, &n_waiting);
        let thread = thread::Builder::new().name("scan".into());
        let storing = thread
            .spawn_scoped(scope, move || storer.store(mapped, pid))
            .map_err(|source| PipelineError::Resource {
                doing: "start the thread that finds pages".into(),
                source,
            })?;
        let dropped = dropper.follow(batches, &n_waiting, &work);
        if dropped.is_err() {
            work.end(NOT_DROPPED);
        }
        let summary = storing
            .join()
            .unwrap_or_else(|panic| Err(PipelineError::Panicked(panic_text(&*panic)).into()));
        first_failure(dropped, summary)
    })
}

/// The failure of both that caused that of the other.
fn first_failure(
    dropped: Result<(), StepError>,
    summary: Result<PlanSummary, StepError>,
) -> Result<PlanSummary, StepError> {
    let is_told = |error: &StepError| matches!(error, StepError::Pipeline(error) if matches!(**error, PipelineError::Ended(_)));
    match (dropped, summary) {
        (Ok(()), summary) => summary,
        (Err(dropped), Err(stored)) if !is_told(&stored) => {
            tracing::debug!("nor can pages be dropped: {}", causes(&dropped));
            Err(stored)
        }
        (Err(dropped), _) => Err(dropped),
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
