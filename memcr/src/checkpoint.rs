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
mod take_away;

use std::fs::File;
use std::io::{self, BufReader};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

pub use error::{CheckpointError, StepError};

use crate::fault;
use crate::freeze::{FreezeError, Frozen, Refusal, Target, freeze};
use crate::inject::Site;
use crate::maps::details::Details;
use crate::maps::plan::{self, PlanOptions, PlanSummary, Planned, Planner};
use crate::maps::policy::{LeftBecause, Policy};
use crate::pages::PageRun;
use crate::pages::give_back::GivenBack;
use crate::pages::remote::RemoteMemory;
use crate::pages::table::KernelPageTable;
use crate::pipeline::{
    Cancel, EncodeSetup, Encoder, OpenImage, Pipeline, PipelineError, Priority, Progress,
    SearchPath, causes,
};
use crate::restore::{self, RestoreOptions};
pub use crate::session::CheckpointReport;
use crate::session::gate::{Barred, Gate, Step};
use crate::session::journal::{GroupRecord, ImageRecord, Journal, Record, StateDir};
use crate::session::{Held, HugePages, PhaseClock};
use crate::sink::hex;
use crate::sys::{features, page_size, userfaultfd};
use as_stored::{BATCH_LEN, Begun, Unfinished};
use describe::{describe, needed};
use take_away::take_away;

/// What a checkpoint and the way back have open at once, at most a dozen, and as much
/// again for stages.
const N_DESCRIPTORS: usize = 24;
const OPEN_MORE: &str = "open some more files";
const START_THREAD: &str = "start a thread";

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
    /// Without a guard nothing is to be dropped. Otherwise the kernel is told to kill the
    /// target should we die.
    pub needs_guard: bool,
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
    expect_descriptors().map_err(|error| not_ready(pid, OPEN_MORE, error))?;
    let target = Target::examine(pid).map_err(|source| CheckpointError::Refused { pid, source })?;
    let expected_len_bytes = target.anonymous_bytes();
    // What completes later, of a ring that looks idle, is no harm while nothing is dropped.
    let may_wake = target.may_wake();
    let reading = start_reading(pid).map_err(|error| not_ready(pid, START_THREAD, error))?;
    clock.done("examine");

    let guarded = has_guard(options)?;
    let drops_as_stored = guarded && !may_wake && drops_as_stored(&pipeline, options);
    let plan = PlanOptions {
        policy: Policy {
            drop_file_pages: options.drop_file_pages,
            include_locked: options.include_locked,
            encrypted: pipeline.encrypts(),
            override_protection: features::proc_mem_force().is_ok(),
            guarded,
        },
        chunk_len_bytes: pipeline.chunk_len_bytes(),
        page_len_bytes: page_size(),
        force_proc_mem: options.proc_mem,
        keep: Vec::new(),
        batch_len_bytes: drops_as_stored.then_some(BATCH_LEN),
    };
    let mut journal = begin_journal(&pipeline, options)?;
    let memory = Arc::new(RemoteMemory::new(pid));
    let prepared = prepare(
        pipeline,
        options,
        expected_len_bytes,
        drops_as_stored,
        &memory,
    )
    .and_then(|encoder| announce(&mut journal, &encoder).map(|()| encoder));
    let details = end_reading(reading).map_err(|error| not_read(pid, error));
    let prepared = prepared.and_then(|encoder| details.map(|details| (encoder, details)));
    let ready = prepared.and_then(|ready| match options.gate.pass(Step::Prepared) {
        Ok(()) => Ok(ready),
        Err(source) => Err(CheckpointError::Barred { pid, source }),
    });
    let (mut encoder, details) = match ready {
        Ok(ready) => ready,
        Err(error) => return Err(forget(journal, error)),
    };

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
    if drops_as_stored {
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
    let drops = std::mem::take(&mut stored.summary.drops);
    let mappings = std::mem::take(&mut stored.summary.mappings);
    let mut held = stored.hold(frozen, memory, journal);
    let given_back = match take_away(&mut held, &drops, &mappings, options.needs_guard) {
        Ok(given_back) => given_back,
        Err(error) => return Err(undo(held, error)),
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
    let mut planner = Planner::new(mapped.plan, &table, emit);
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
    mapped.plan.batch_len_bytes = None;
    let summary = scan(mapped, frozen.pid(), |planned| match planned {
        Planned::Chunk(chunk) => Ok(encoder.push(chunk)?),
        // None without batches.
        Planned::Drops(_) => Ok(()),
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
        n_vmas,
    })
}

/// Whether pages are dropped while others are stored: where the image takes their place in
/// RAM, and nothing has to be known before the first one goes.
fn drops_as_stored(pipeline: &Pipeline, options: &CheckpointOptions) -> bool {
    let may = !options.verify && options.group.is_none();
    may && pipeline.stores_in_memory() && pipeline.keeps_unfinished() && pipeline.is_portable()
}

impl Mapped {
    /// The mappings of which something may be dropped.
    fn mappings(&self) -> Vec<PageRun> {
        plan::mappings(&self.details, &self.plan.policy)
    }
}

/// Whether a guard is to be had, before the plan is made: with one, less is dropped.
fn has_guard(options: &CheckpointOptions) -> Result<bool, CheckpointError> {
    match userfaultfd::probe() {
        Ok(()) => Ok(true),
        Err(source) if options.needs_guard => Err(CheckpointError::NoGuard {
            pid: options.pid,
            source,
        }),
        Err(_) => Ok(false),
    }
}

fn begin_journal(
    pipeline: &Pipeline,
    options: &CheckpointOptions,
) -> Result<Journal, CheckpointError> {
    let pid = options.pid;
    let mut record =
        Record::begin(pid, pipeline.portable_spec()).map_err(|_| CheckpointError::Refused {
            pid,
            source: Refusal::NoSuchProcess(pid),
        })?;
    record.group = options.group.clone();
    let journal = options.state_dir.begin(record);
    journal.map_err(|source| CheckpointError::Journal { pid, source })
}

/// Tells the journal of the image that is to come: should we die between its commit and
/// the drop, nobody would find it otherwise.
fn announce(journal: &mut Journal, encoder: &Encoder) -> Result<(), CheckpointError> {
    let pid = journal.record().pid;
    let Some(locator) = encoder.locator().map(str::to_owned) else {
        return Ok(());
    };
    let image = ImageRecord {
        locator,
        id: hex(&encoder.image_id()),
        len_bytes: 0,
        n_chunks: None,
    };
    let told = journal.update(|record| record.image = Some(image));
    told.map_err(|source| CheckpointError::Journal { pid, source })
}

fn prepare(
    pipeline: Pipeline,
    options: &CheckpointOptions,
    expected_len_bytes: u64,
    keep: bool,
    memory: &Arc<RemoteMemory>,
) -> Result<Encoder, CheckpointError> {
    let setup = EncodeSetup {
        pid: options.pid.cast_unsigned(),
        page_size: page_size() as u32,
        expected_len_bytes,
        fetch: memory.clone(),
        keep,
        priority: options.priority,
        cancel: options.cancel.clone(),
        progress: options.progress.clone(),
    };
    let pid = options.pid;
    pipeline
        .prepare_encode(setup)
        .map_err(|error| CheckpointError::NotReady {
            pid,
            source: Box::new(error),
        })
}

/// The kernel walks the page tables for it, 15 ms for each GiB that is resident, which is
/// as long as everything else takes that is done before the freeze: so beside it.
fn start_reading(pid: i32) -> io::Result<JoinHandle<io::Result<Details>>> {
    let thread = Builder::new().name("maps".into());
    thread.spawn(move || read_details(pid))
}

fn end_reading(reading: JoinHandle<io::Result<Details>>) -> io::Result<Details> {
    let panicked = |_| Err(io::Error::other("the thread that reads them has panicked"));
    reading.join().unwrap_or_else(panicked)
}

fn read_details(pid: i32) -> io::Result<Details> {
    Details::read(BufReader::with_capacity(
        64 * 1024,
        File::open(format!("/proc/{pid}/smaps"))?,
    ))
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
            runs: self.summary.huge,
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

/// Fails early where descriptors are short: later, what cannot be opened would look like
/// a target that is gone, or would have to be undone.
fn expect_descriptors() -> io::Result<()> {
    let one = File::open("/proc/self/stat")?;
    let more: io::Result<Vec<File>> = (0..N_DESCRIPTORS).map(|_| one.try_clone()).collect();
    more.map(drop)
}

/// Something of our own is short before the target is touched.
fn not_ready(pid: i32, doing: &str, source: io::Error) -> CheckpointError {
    let doing = doing.to_owned();
    CheckpointError::NotReady {
        pid,
        source: Box::new(PipelineError::Resource { doing, source }),
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

/// A failure to look at a target that still runs. What is gone has ended.
fn not_read(pid: i32, error: io::Error) -> CheckpointError {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => CheckpointError::TargetExited { pid },
        _ => undone(pid, error.into()),
    }
}

/// A failure of the freeze itself: whatever was stopped runs again.
fn not_frozen(pid: i32, error: FreezeError) -> CheckpointError {
    match error {
        FreezeError::Refused(source) => CheckpointError::Refused { pid, source },
        FreezeError::TargetExited(pid) => CheckpointError::TargetExited { pid },
        FreezeError::NoThread(source) => not_ready(pid, "start a thread", source),
        error => undone(pid, error.into()),
    }
}

/// A failure before the first drop: the target is let go as it is.
fn let_go(mut frozen: Frozen, error: StepError) -> CheckpointError {
    let pid = frozen.pid();
    if frozen.has_ended() {
        return CheckpointError::TargetExited { pid };
    }
    match frozen.release() {
        Ok(()) => undone(pid, error),
        Err(release) => not_frozen(pid, release),
    }
}

/// A failure behind the commit: what is gone comes back from the image, and what stands
/// in the target is taken out again.
fn undo(held: Held, error: StepError) -> CheckpointError {
    let pid = held.pid();
    match restore::restore(held, &RestoreOptions::default()) {
        Ok(_) => undone(pid, error),
        Err(failure) if failure.held.is_none() && failure.error.is_exit() => {
            CheckpointError::TargetExited { pid }
        }
        Err(failure) => CheckpointError::NotUndone {
            pid,
            step: Box::new(error),
            source: Box::new(failure.error),
        },
    }
}

/// A committed image that is not to be used, because one of the others has failed.
fn unwanted(image: OpenImage, barred: Barred) -> StepError {
    if let Err(left) = image.remove() {
        tracing::warn!("{}", causes(&left));
    }
    barred.into()
}

/// A failure before anything was begun that a journal has to tell of.
fn forget(journal: Journal, error: CheckpointError) -> CheckpointError {
    if let Err(left) = journal.remove() {
        tracing::warn!("{}", causes(&left));
    }
    error
}

fn undone(pid: i32, source: StepError) -> CheckpointError {
    CheckpointError::Undone {
        pid,
        source: Box::new(source),
    }
}

fn pass(point: &'static str) -> Result<(), StepError> {
    fault::point(point).map_err(StepError::Fault)
}
