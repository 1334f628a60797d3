//! Checkpoint: the story of a target's memory on its way out.
//!
//! ```text
//! examine ─ prepare ─┃─ freeze ─ scan+store ─ commit (─ verify) ─ guard ─ arm ─ drop ─┃─ hold
//!      target runs   ┃                   target stands still                          ┃ session
//! ```
//!
//! As a rule nothing is dropped before the image is complete and committed. So every failure up
//! to there costs the target nothing but the time it stood still; a failure of the drop
//! itself is undone from the image. Where the image takes RAM pages are dropped while the
//! rest is stored (`as_stored`), and a failure is undone from what is written of it.
//!
//! Should memcr die, then until the guard is made nothing has been changed but three
//! calls' worth of registers (see `inject`), and the target runs on. The journal is
//! written before the target is armed, the target is armed before the guard stands over
//! anything, and the guard stands before the first page goes: from each of these moments
//! on another memcr can finish.

mod as_stored;
mod describe;
mod error;
mod failed;
mod prepare;
mod take_away;

use std::sync::Arc;

pub use error::{CheckpointError, StepError};

use crate::fault;
use crate::freeze::{Frozen, freeze};
use crate::inject::Site;
use crate::maps::details::Details;
use crate::maps::plan::{self, PlanOptions, PlanSummary, Planned, Planner};
use crate::maps::policy::LeftBecause;
use crate::pages::PageRun;
use crate::pages::give_back::GivenBack;
use crate::pages::remote::RemoteMemory;
use crate::pages::table::KernelPageTable;
use crate::pipeline::{Cancel, Encoder, OpenImage, Pipeline, Priority, Progress, SearchPath};
use crate::restore::OnCorrupt;
pub use crate::session::CheckpointReport;
use crate::session::gate::{Gate, Step};
use crate::session::journal::{GroupRecord, Journal, StateDir};
use crate::session::{Held, HugePages, PhaseClock};
use crate::sys::page_size;
use as_stored::{Begun, Unfinished};
use describe::{describe, needed};
use failed::{forget, let_go, not_frozen, undo, unwanted};
pub(crate) use prepare::read_details;
use prepare::{Prepared, prepare};
use take_away::take_away;

/// What to checkpoint, and how.
#[derive(Debug, Clone)]
pub struct CheckpointOptions {
    /// The target.
    pub pid: i32,
    /// Read every page through `/proc/PID/mem` (`-m`).
    pub proc_mem: bool,
    /// Drop clean pages of private file mappings too (`-f`).
    pub drop_file_pages: bool,
    /// Take memory that is locked (mlock(2)) too.
    pub include_locked: bool,
    /// Where the journal is to be.
    pub state_dir: StateDir,
    /// Where the stages were found.
    pub search: SearchPath,
    /// Read the image back and decode it before anything is dropped.
    pub verify: bool,
    /// Of the workers that store and verify. The target stands still until they are done.
    pub priority: Priority,
    /// Memcr is not to stay beside it: nothing is to be dropped without a guard, nor into an
    /// image that no other memcr could read. Otherwise, without a guard, the kernel is told to
    /// kill the target should we die.
    pub parks: bool,
    /// What becomes of a target whose bytes are lost when a failure behind the first drop is undone.
    pub on_corrupt: OnCorrupt,
    /// Which group of processes it is a member of, if it is checkpointed as one with others.
    pub group: Option<GroupRecord>,
    /// Where it waits for these others.
    pub gate: Arc<dyn Gate>,
    /// Stops the work.
    pub cancel: Cancel,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

/// Takes the memory of a process away: on success it is held.
///
/// # Errors
/// With the target running as before, unless the error says otherwise.
pub fn checkpoint(
    pipeline: Pipeline,
    options: &CheckpointOptions,
) -> Result<Held, CheckpointError> {
    let pid = options.pid;
    let mut clock = PhaseClock::start();
    let Prepared {
        target,
        plan,
        mut journal,
        mut encoder,
        details,
        memory,
    } = prepare(pipeline, options, &mut clock)?;
    let is_batched = plan.batch_len_bytes.is_some();

    let mut frozen = match freeze(target, &options.cancel) {
        Ok(frozen) => frozen,
        Err(error) => return Err(forget(journal, not_frozen(pid, error))),
    };
    clock.done_at("prepare", frozen.since());
    clock.done("freeze");

    let mapped = match map(&mut frozen, &mut encoder, plan, details, &memory, options) {
        Ok(mapped) => mapped,
        // Dropping the encoder removes the image; nothing was dropped.
        Err(error) => {
            drop(encoder);
            return Err(forget(journal, let_go(frozen, error)));
        }
    };
    clock.done("map");
    if is_batched {
        let memory = Arc::clone(&memory);
        match Unfinished::begin(frozen, journal, encoder, memory, &mapped, options)? {
            Begun::Guarded(unfinished) => return unfinished.store(mapped, options, &mut clock),
            Begun::Unguarded(same) => (frozen, journal, encoder) = *same,
        }
    }
    let mut stored = match store(&frozen, encoder, mapped, options, &mut clock) {
        Ok(stored) => stored,
        Err(error) => return Err(forget(journal, let_go(frozen, error))),
    };
    let drops = std::mem::take(&mut stored.summary.rest.drops);
    let mappings = std::mem::take(&mut stored.mappings);
    let mut held = stored.hold(frozen, memory, journal);
    let given_back = match take_away(&mut held, &drops, &mappings, options.parks) {
        Ok(given_back) => given_back,
        Err(error) => return Err(undo(held, options.on_corrupt, error)),
    };
    clock.done("drop");
    finish_report(&mut held, given_back, &clock);
    Ok(held)
}

/// What is known of a target that stands still, before its pages are looked at.
struct Mapped {
    details: Details,
    plan: PlanOptions,
    site: Site,
}

/// What stands in the image, and what must be known of it later.
struct Stored {
    image: OpenImage,
    site: Site,
    summary: PlanSummary,
    /// What a guard is to stand over, unless it does so already.
    mappings: Vec<PageRun>,
    n_vmas: usize,
}

/// Reads what the target has mapped, and writes it into the image.
fn map(
    frozen: &mut Frozen,
    encoder: &mut Encoder,
    mut plan: PlanOptions,
    mut details: Details,
    memory: &RemoteMemory,
    options: &CheckpointOptions,
) -> Result<Mapped, StepError> {
    pass("checkpoint.frozen")?;
    options.gate.pass(Step::Frozen)?;
    let proc_mem = memory.open()?;
    if !frozen.has_slept() {
        details = read_details(frozen.pid())?;
    }
    let vmas = details.vmas();
    let site = Site::find(frozen.pid(), vmas, proc_mem)?;
    if plan.policy.guarded {
        plan.keep = needed(frozen)?;
    }
    encoder.begin(describe(frozen, vmas)?)?;
    Ok(Mapped {
        details,
        plan,
        site,
    })
}

/// Finds the pages that go, and hands them out.
fn scan(
    mapped: Mapped,
    pid: i32,
    emit: impl FnMut(Planned) -> Result<(), StepError>,
) -> Result<PlanSummary, StepError> {
    let table = KernelPageTable::open(pid)?;
    let expected_bytes = plan::expected_bytes(&mapped.details, &mapped.plan.policy);
    let mut planner = Planner::new(mapped.plan, expected_bytes, &table, emit);
    for (vma, details) in mapped.details.iter() {
        planner.add(vma, details)?;
    }
    planner.finish()
}

/// Moves the target's pages into a committed image.
fn store(
    frozen: &Frozen,
    mut encoder: Encoder,
    mut mapped: Mapped,
    options: &CheckpointOptions,
    clock: &mut PhaseClock,
) -> Result<Stored, StepError> {
    let (site, n_vmas) = (mapped.site, mapped.details.vmas().len());
    let mappings = mapped.mappings();
    mapped.plan.batch_len_bytes = None;
    let summary = scan(mapped, frozen.pid(), |planned| match planned {
        Planned::Chunk(chunk) => Ok(encoder.push(chunk)?),
        // None was asked for.
        Planned::Batch(_) => Ok(()),
    })?;
    frozen.check_idle()?;
    clock.done("scan and store");

    pass("checkpoint.stored")?;
    let image = encoder.finish()?;
    clock.done("commit");
    if options.verify {
        if let Err(error) =
            image.verify_at(options.priority, options.cancel.clone(), Arc::default())
        {
            // Nobody needs an image that does not read back.
            return Err(image.remove_after(error).into());
        }
        clock.done("verify");
    }
    if let Err(barred) = options.gate.pass(Step::Stored) {
        return Err(unwanted(image, barred));
    }
    Ok(Stored {
        image,
        site,
        summary,
        mappings,
        n_vmas,
    })
}

impl Mapped {
    /// The mappings of which something may be dropped.
    fn mappings(&self) -> Vec<PageRun> {
        plan::mappings(&self.details, &self.plan.policy)
    }
}

impl Stored {
    fn hold(self, frozen: Frozen, memory: Arc<RemoteMemory>, journal: Journal) -> Held {
        let facts = self.image.facts();
        let ratio = if facts.image_bytes > 0 {
            facts.raw_bytes as f64 / facts.image_bytes as f64
        } else {
            0.0
        };
        let report = CheckpointReport {
            pid: frozen.pid(),
            image: self.image.locator().unwrap_or_default(),
            n_threads: frozen.tids().len(),
            n_vmas: self.n_vmas,
            raw_bytes: facts.raw_bytes,
            zero_bytes: facts.n_zero_pages * page_size(),
            image_bytes: facts.image_bytes,
            ratio,
            given_back_bytes: 0,
            dropped_file_bytes: self.summary.drop_only_bytes,
            left_bytes: self.summary.left_bytes,
            guarded: false,
            rss_before_bytes: journal.record().rss_before_bytes,
            rss_held_bytes: 0,
            frozen_millis: 0.0,
            phases: Vec::new(),
        };
        let huge = HugePages {
            runs: self.summary.rest.huge,
            has_small_in_thp: self.summary.has_small_in_thp,
        };
        Held {
            frozen,
            image: self.image,
            memory,
            site: self.site,
            huge,
            guarded: None,
            journal,
            report,
        }
    }
}

/// Fills in what is known only now.
fn finish_report(held: &mut Held, given_back: GivenBack, clock: &PhaseClock) {
    let report = &mut held.report;
    report.guarded = held.guarded.is_some();
    report.rss_held_bytes = held.journal.record().rss_held_bytes;
    report.given_back_bytes = given_back.taken_bytes;
    if given_back.refused_bytes > 0 {
        let left = &mut report.left_bytes;
        left.insert(LeftBecause::DropRefused, given_back.refused_bytes);
    }
    report.frozen_millis = clock.millis_since("freeze");
    report.phases = clock.phases().to_vec();
}

fn pass(point: &'static str) -> Result<(), StepError> {
    fault::point(point).map_err(StepError::Fault)
}
