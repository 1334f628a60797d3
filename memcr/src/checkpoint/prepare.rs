//! What is done while the target still runs: everything that can fail early, and whatever
//! takes time.

use std::fs::File;
use std::io::{self, BufReader};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crate::freeze::{Refusal, Target};
use crate::inject::{Guard, Parasite};
use crate::maps::details::Details;
use crate::maps::plan::PlanOptions;
use crate::maps::policy::Policy;
use crate::pages::remote::RemoteMemory;
use crate::pipeline::{EncodeSetup, Encoder, Pipeline};
use crate::session::PhaseClock;
use crate::session::gate::Step;
use crate::session::journal::{ImageRecord, Journal, Record};
use crate::sink::hex;
use crate::sys::proc_mem::ProcMem;
use crate::sys::{features, page_size};

use super::CheckpointOptions;
use super::as_stored::BATCH_LEN;
use super::error::CheckpointError;
use super::failed::{forget, not_read, not_ready};

/// What a checkpoint and the way back have open at once, at most a dozen, and as much
/// again for stages.
const N_DESCRIPTORS: usize = 24;
const OPEN_MORE: &str = "open some more files";
const START_THREAD: &str = "start a thread";

/// All that a target can be frozen with.
pub(super) struct Prepared {
    pub(super) target: Target,
    /// With batches: pages are to be dropped while others are stored.
    pub(super) plan: PlanOptions,
    pub(super) journal: Journal,
    pub(super) encoder: Encoder,
    pub(super) details: Details,
    pub(super) memory: Arc<RemoteMemory>,
}

/// Prepares a checkpoint.
///
/// # Errors
/// With a target that was not touched.
pub(super) fn prepare(
    pipeline: Pipeline,
    options: &CheckpointOptions,
    clock: &mut PhaseClock,
) -> Result<Prepared, CheckpointError> {
    let pid = options.pid;
    expect_descriptors().map_err(|error| not_ready(pid, OPEN_MORE, error))?;
    let (target, reading) = Target::examine_beside(pid, || start_reading(pid))
        .map_err(|source| CheckpointError::Refused { pid, source })?;
    let reading = reading.map_err(|error| not_ready(pid, START_THREAD, error))?;
    let expected_len_bytes = target.anonymous_bytes();
    // What a ring completes later is no harm while nothing is dropped. One that is made
    // before the freeze is found there.
    let may_wake = target.may_wake();
    clock.done("examine");

    let guarded = has_guard(options)?;
    if guarded && target.suspends_filter() {
        tracing::info!(
            "process {pid} has a seccomp filter, which may end it if memcr is killed while it \
             takes its memory away or gives it back"
        );
    }
    let drops_as_stored = guarded && !may_wake && drops_as_stored(&pipeline, options);
    let mut plan = PlanOptions {
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
        batch_len_bytes: None,
    };
    let mut journal = begin_journal(&pipeline, options)?;
    let memory = Arc::new(RemoteMemory::new(pid, options.proc_mem));
    let encoder = open_encoder(
        pipeline,
        options,
        expected_len_bytes,
        drops_as_stored,
        &memory,
    );
    if let Ok(encoder) = &encoder
        && drops_as_stored
        && encoder.only_here().is_none()
    {
        plan.batch_len_bytes = Some(BATCH_LEN);
    }
    let prepared = encoder.and_then(|encoder| announce(&mut journal, &encoder).map(|()| encoder));
    let details = end_reading(reading).map_err(|error| not_read(pid, error));
    let details = details.and_then(|details| match is_held(pid, &details) {
        false => Ok(details),
        true => Err(CheckpointError::HeldElsewhere { pid }),
    });
    let prepared = prepared.and_then(|encoder| details.map(|details| (encoder, details)));
    let ready = prepared.and_then(|ready| match options.gate.pass(Step::Prepared) {
        Ok(()) => Ok(ready),
        Err(source) => Err(CheckpointError::Barred { pid, source }),
    });
    match ready {
        Ok((encoder, details)) => Ok(Prepared {
            target,
            plan,
            journal,
            encoder,
            details,
            memory,
        }),
        Err(error) => Err(forget(journal, error)),
    }
}

/// Whether pages are dropped while others are stored: where the image takes their place in
/// RAM, nothing has to be known before the first one goes, and another memcr can read what is
/// written of it.
fn drops_as_stored(pipeline: &Pipeline, options: &CheckpointOptions) -> bool {
    let is_wanted = pipeline.stores_in_memory() && !options.verify && options.group.is_none();
    is_wanted && pipeline.keeps_unfinished() && pipeline.is_portable()
}

/// Whether a guard is to be had, before the plan is made: with one, less is dropped.
fn has_guard(options: &CheckpointOptions) -> Result<bool, CheckpointError> {
    match Guard::probe(options.pid) {
        Ok(()) => Ok(true),
        Err(source) if options.parks => Err(CheckpointError::NoGuard {
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

fn open_encoder(
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
    let encoder = pipeline.prepare_encode(setup);
    let encoder = encoder.map_err(|error| CheckpointError::NotReady {
        pid,
        source: Box::new(error),
    })?;
    if !options.parks {
        return Ok(encoder);
    }
    let elsewhere = encoder.expect_elsewhere();
    elsewhere.map_err(|error| CheckpointError::OnlyHere {
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

pub(crate) fn read_details(pid: i32) -> io::Result<Details> {
    Details::read(BufReader::with_capacity(
        64 * 1024,
        File::open(format!("/proc/{pid}/smaps"))?,
    ))
}

/// Whether a memcr is in the target already: its parasite, and its guard over something. A child
/// of a target that was continued inherits the one alone.
fn is_held(pid: i32, details: &Details) -> bool {
    let is_guarded = details.iter().any(|(_, details)| details.flags.userfault);
    let has_parasite = |memory| Parasite::find(details.vmas(), &memory).is_some();
    is_guarded && ProcMem::open(pid).is_ok_and(has_parasite)
}

/// Fails early where descriptors are short: later, what cannot be opened would look like
/// a target that is gone, or would have to be undone.
fn expect_descriptors() -> io::Result<()> {
    let one = File::open("/proc/self/stat")?;
    let more: io::Result<Vec<File>> = (0..N_DESCRIPTORS).map(|_| one.try_clone()).collect();
    more.map(drop)
}
