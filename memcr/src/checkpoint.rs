//! Checkpoint: the story of a target's memory on its way out.
//!
//! ```text
//! examine ─ prepare ─┃─ freeze ─ scan+store ─ commit ─ drop ─┃─ hold
//!      target runs   ┃       target stands still             ┃  session
//! ```
//!
//! Nothing is dropped before the image is complete and committed. So every failure up
//! to there costs the target nothing but the time it stood still; a failure of the drop
//! itself is undone from the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::sync::Arc;

use serde::Serialize;

use crate::freeze::{FreezeError, Frozen, Refusal, Target, freeze};
use crate::inject::{Borrowed, InjectError, Site};
use crate::maps::MapsError;
use crate::maps::details::Details;
use crate::maps::plan::{PlanOptions, PlanSummary, Planner};
use crate::maps::policy::{LeftBecause, Policy};
use crate::maps::vma::{self, Vma};
use crate::pages::give_back::{DropError, GivenBack, give_back};
use crate::pages::remote::RemoteMemory;
use crate::pages::table::KernelPageTable;
use crate::pipeline::{Cancel, EncodeSetup, Encoder, OpenImage, Pipeline, PipelineError, Progress};
use crate::restore::{self, RestoreError};
use crate::session::{Held, HugePages, Phase, PhaseClock};
use crate::sink::{ImageMeta, Protection, TargetIdentity, VmaRecord};
use crate::sys::{features, page_size, procfs};

/// What a checkpoint and the way back have open at once, at most a dozen, and as much
/// again for stages.
const N_DESCRIPTORS: usize = 24;
const OPEN_MORE: &str = "open some more files";

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
    /// Stops the work.
    pub cancel: Cancel,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

/// What a checkpoint did. All lengths in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointReport {
    /// The target.
    pub pid: i32,
    /// Where the image is.
    pub image: String,
    /// Number of threads.
    pub n_threads: usize,
    /// Number of mappings.
    pub n_vmas: usize,
    /// Pages that were stored.
    pub raw_bytes: u64,
    /// Pages of zeros that were dropped without being stored.
    pub zero_bytes: u64,
    /// Length of the image.
    pub image_bytes: u64,
    /// Stored pages over the image; 0 when nothing was stored.
    pub ratio: f64,
    /// Given back to the kernel, absent pages in between included.
    pub given_back_bytes: u64,
    /// Clean file pages that were dropped and not stored (`-f`).
    pub dropped_file_bytes: u64,
    /// What stayed in RAM, by reason.
    pub left_bytes: BTreeMap<LeftBecause, u64>,
    /// Resident memory before the freeze.
    pub rss_before_bytes: u64,
    /// Resident memory while held.
    pub rss_held_bytes: u64,
    /// How long the target stood still until it was held, milliseconds.
    pub frozen_millis: f64,
    /// How long each phase took.
    pub phases: Vec<Phase>,
}

/// Why a checkpoint did not come about. The target runs, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The target cannot be checkpointed. It was not touched, or runs again.
    #[error("cannot checkpoint process {pid}")]
    Refused {
        /// The target.
        pid: i32,
        /// Why not.
        source: Refusal,
    },
    /// The pipeline is not ready. The target was not touched.
    #[error("the pipeline is not ready; process {pid} was not touched")]
    NotReady {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// The target ended by itself.
    #[error("process {pid} ended during the checkpoint")]
    TargetExited {
        /// The target.
        pid: i32,
    },
    /// It failed on the way, and was undone.
    #[error("the checkpoint of process {pid} failed and was undone; the process runs on")]
    Undone {
        /// The target.
        pid: i32,
        /// What failed.
        source: Box<StepError>,
    },
    /// It failed on the way, and undoing it failed too.
    #[error(
        "the checkpoint of process {pid} failed ({step}), and putting its memory back failed too"
    )]
    NotUndone {
        /// The target.
        pid: i32,
        /// What failed first.
        step: Box<StepError>,
        /// What failed then.
        source: Box<RestoreError>,
    },
}

/// A step that failed while the target stood still.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Freezing.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Reading what the target has mapped.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Reading the target's state.
    #[error("cannot read the mappings of the target")]
    Proc(#[from] io::Error),
    /// Moving the pages.
    #[error(transparent)]
    Pipeline(Box<PipelineError>),
    /// Making calls in the target.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// Dropping the pages.
    #[error(transparent)]
    Drop(#[from] DropError),
}

impl From<PipelineError> for StepError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(Box::new(error))
    }
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
    let rss_before_bytes = procfs::rss_bytes(pid);
    let details = read_details(pid).map_err(|error| not_read(pid, error))?;
    clock.done("examine");

    let plan = PlanOptions {
        policy: Policy {
            drop_file_pages: options.drop_file_pages,
            include_locked: options.include_locked,
            encrypted: pipeline.encrypts(),
            override_protection: features::proc_mem_force().is_ok(),
        },
        chunk_len_bytes: pipeline.chunk_len_bytes(),
        page_len_bytes: page_size(),
        force_proc_mem: options.proc_mem,
    };
    let memory = Arc::new(RemoteMemory::new(pid));
    let encoder = prepare(pipeline, options, &details, &memory)?;
    clock.done("prepare");

    let mut frozen = freeze(target, &options.cancel).map_err(|error| not_frozen(pid, error))?;
    clock.done("freeze");

    let stored = match store(&frozen, encoder, plan, details, &memory, &mut clock) {
        Ok(stored) => stored,
        // Dropping the encoder has removed the partial image; nothing was dropped.
        Err(error) => return Err(let_go(frozen, error)),
    };
    let given_back = match drop_pages(&mut frozen, &stored) {
        Ok(given_back) => given_back,
        Err(error) => return Err(undo_drop(stored.hold(frozen, memory), error)),
    };
    clock.done("drop");

    let mut held = stored.hold(frozen, memory);
    held.report.rss_before_bytes = rss_before_bytes;
    held.report.given_back_bytes = given_back.taken_bytes;
    if given_back.refused_bytes > 0 {
        held.report
            .left_bytes
            .insert(LeftBecause::DropRefused, given_back.refused_bytes);
    }
    held.report.frozen_millis = clock.millis_since("freeze");
    held.report.phases = clock.phases().to_vec();
    Ok(held)
}

/// What stands in the image, and what must be known of it later.
struct Stored {
    image: OpenImage,
    site: Site,
    summary: PlanSummary,
    n_vmas: usize,
}

/// Scans the target's pages and moves them into a committed image.
fn store(
    frozen: &Frozen,
    mut encoder: Encoder,
    plan: PlanOptions,
    mut details: Details,
    memory: &RemoteMemory,
    clock: &mut PhaseClock,
) -> Result<Stored, StepError> {
    let pid = frozen.pid();
    let proc_mem = memory.open()?;
    let vmas = vma::parse(&std::fs::read(format!("/proc/{pid}/maps"))?)?;
    let site = Site::find(pid, &vmas, proc_mem)?;
    if !frozen.has_slept() || vmas.iter().any(|vma| details.of(vma).is_none()) {
        details = read_details(pid)?;
    }
    encoder.begin(describe(frozen, &vmas)?)?;
    clock.done("map");

    let table = KernelPageTable::open(pid)?;
    let mut planner = Planner::new(plan, &table, |chunk| {
        Ok::<(), StepError>(encoder.push(chunk)?)
    });
    for vma in &vmas {
        planner.add(vma, &details.of(vma).unwrap_or_default())?;
    }
    let summary = planner.finish()?;
    frozen.check_idle()?;
    clock.done("scan and store");

    let image = encoder.finish()?;
    clock.done("commit");
    Ok(Stored {
        image,
        site,
        summary,
        n_vmas: vmas.len(),
    })
}

/// Gives the pages back to the kernel. From here on our death would be the target's.
fn drop_pages(frozen: &mut Frozen, stored: &Stored) -> Result<GivenBack, StepError> {
    frozen.set_memory_missing(true)?;
    let mut borrowed = Borrowed::take(frozen, &stored.site)?;
    let given_back = give_back(&mut borrowed, &stored.summary.drops)?;
    borrowed.give_back()?;
    Ok(given_back)
}

fn prepare(
    pipeline: Pipeline,
    options: &CheckpointOptions,
    details: &Details,
    memory: &Arc<RemoteMemory>,
) -> Result<Encoder, CheckpointError> {
    let setup = EncodeSetup {
        pid: options.pid.cast_unsigned(),
        page_size: page_size() as u32,
        expected_len_bytes: details.anonymous_bytes(),
        fetch: memory.clone(),
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

fn read_details(pid: i32) -> io::Result<Details> {
    Details::read(BufReader::with_capacity(
        64 * 1024,
        File::open(format!("/proc/{pid}/smaps"))?,
    ))
}

fn describe(frozen: &Frozen, vmas: &[Vma]) -> io::Result<ImageMeta> {
    let pid = frozen.pid();
    let mut meta = ImageMeta {
        target: TargetIdentity {
            pid: pid.cast_unsigned(),
            start_time: frozen.target().start_time,
            boot_id: parse_boot_id(&procfs::boot_id()?),
            comm: std::fs::read(format!("/proc/{pid}/comm"))?
                .trim_ascii_end()
                .to_vec(),
            exe: exe(pid),
        },
        ..ImageMeta::default()
    };
    for vma in vmas {
        meta.vmas.push(&record(vma));
    }
    Ok(meta)
}

/// The link is empty for a program whose file system is gone: then so is the field.
fn exe(pid: i32) -> Vec<u8> {
    use std::os::unix::ffi::OsStringExt;
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map(|path| path.into_os_string().into_vec())
        .unwrap_or_default()
}

/// A UUID in text (random(4)); what is not one becomes zeros, which no boot has.
fn parse_boot_id(text: &str) -> [u8; 16] {
    u128::from_str_radix(&text.replace('-', ""), 16)
        .unwrap_or_default()
        .to_be_bytes()
}

fn record(vma: &Vma) -> VmaRecord<'_> {
    VmaRecord {
        start: vma.start,
        end: vma.end,
        protection: Protection {
            read: vma.perms.read,
            write: vma.perms.write,
            execute: vma.perms.exec,
            shared: vma.perms.shared,
        },
        offset: vma.offset,
        dev_major: vma.device.0,
        dev_minor: vma.device.1,
        inode: vma.inode,
        name: &vma.name,
    }
}

impl Stored {
    fn hold(self, frozen: Frozen, memory: Arc<RemoteMemory>) -> Held {
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
            rss_before_bytes: 0,
            rss_held_bytes: procfs::rss_bytes(frozen.pid()),
            frozen_millis: 0.0,
            phases: Vec::new(),
        };
        let huge = HugePages {
            has_huge: self.summary.has_huge,
            has_small_in_thp: self.summary.has_small_in_thp,
        };
        Held {
            frozen,
            image: self.image,
            memory,
            site: self.site,
            huge,
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

/// A failure of the drop: what is gone comes back from the image.
fn undo_drop(held: Held, error: StepError) -> CheckpointError {
    let pid = held.pid();
    match restore::restore(held, &Arc::default()) {
        Ok(_) => undone(pid, error),
        Err(failure) => CheckpointError::NotUndone {
            pid,
            step: Box::new(error),
            source: Box::new(failure.error),
        },
    }
}

fn undone(pid: i32, source: StepError) -> CheckpointError {
    CheckpointError::Undone {
        pid,
        source: Box::new(source),
    }
}
