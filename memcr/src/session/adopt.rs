//! Adopting: finishing a session whose memcr has gone, on purpose or not.
//!
//! ```text
//!   journal ─▶ same process? ─▶ fetch the guard ─▶ open the image, is it the one?
//!                                                      │
//!      dropping: freeze, rescue the first thread ◀─────┤
//!                                                      ▼
//!      populate what is missing ─▶ end the guard ─▶ freeze ─▶ take down ─▶ release
//!      └ children forked meanwhile, too
//! ```
//!
//! The target is not frozen while pages come back, unless its own drop was under way:
//! somebody may have continued it, and a thread that waits for a page inside of the kernel
//! stops for nobody before it has got it. One that was continued is told to stop, so that
//! it does not fork and move on for ever meanwhile; whatever its threads are in the middle
//! of, they finish.
//!
//! | journal says | what is missing | what is done |
//! |---|---|---|
//! | storing | nothing: the target ran on when its memcr died | the unfinished image goes |
//! | dropping, held, restoring; a guard | what the guard waits for | it comes back |
//! | the same, no guard | nothing, or the kernel has killed the target | what stands in the target is taken out, the image goes |

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::journal::{Journal, JournalError, Record, State};
use super::{Guarded, PhaseClock, TakeDownError, put_huge_pages_back};
use crate::freeze::{FreezeError, Frozen, Missing, Refusal, Target, freeze_again};
use crate::inject::{Borrowed, InjectError, Parasite, Site, leftovers};
use crate::maps::vma::{self, Vma};
use crate::pages::guarded::{GuardedMemory, Heed, Watcher};
use crate::pages::{PageRun, RemoteAddr};
use crate::pipeline::{
    Cancel, DecodeStats, OpenImage, Pipeline, PipelineError, PipelineSpec, Progress, SearchPath,
};
use crate::restore::{OnCorrupt, RestoreReport, prepare, remove_all};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::{self, Status};
use crate::sys::tgkill;

/// What became of a session that was adopted.
#[derive(Debug)]
pub enum Adopted {
    /// Its memory is back and it runs on.
    Restored(RestoreReport),
    /// Nothing of its memory was missing: what the session had begun is gone.
    NothingMissing,
}

/// Why a session could not be finished. Unless the text says otherwise the target is as it
/// was, and another try is possible.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It cannot be worked on.
    #[error("process {pid} is held, but cannot be restored now")]
    Refused {
        /// The target.
        pid: i32,
        /// Why not.
        source: Refusal,
    },
    /// Its guard is not there.
    #[error("the guard of process {pid} cannot be fetched")]
    Guard {
        /// The target.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// Its image cannot be read now.
    #[error("process {pid} could not be restored and is held")]
    Held {
        /// The target.
        pid: i32,
        /// Why not.
        source: Box<PipelineError>,
    },
    /// Nothing of its memory is missing, but its image cannot be removed.
    #[error("the image of process {pid}, which does not need it any more, stays behind")]
    Image {
        /// The target.
        pid: i32,
        /// Why.
        source: Box<PipelineError>,
    },
    /// What is in the place of its image is another one.
    #[error(
        "process {pid} is held: its image {locator} is not the one that was made of it \
         (found {found}, wanted {wanted})"
    )]
    OtherImage {
        /// The target.
        pid: i32,
        /// Where the image should be.
        locator: String,
        /// Id of what is there.
        found: String,
        /// Id of the image.
        wanted: String,
    },
    /// Its image is damaged, and it is held on all the same.
    #[error("process {pid} is held: its image is damaged")]
    Corrupt {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// Its image is damaged, and it was killed.
    #[error("process {pid} was killed: its memory is lost")]
    Lost {
        /// The target.
        pid: i32,
        /// The proof.
        source: Box<PipelineError>,
    },
    /// It ended meanwhile.
    #[error("process {pid} ended while it was held")]
    TargetExited {
        /// The target.
        pid: i32,
    },
    /// It could not be frozen, or not be let go.
    #[error("process {pid} is held")]
    Freeze {
        /// The target.
        pid: i32,
        /// Why not.
        source: FreezeError,
    },
    /// A call in the target failed.
    #[error("process {pid} is held")]
    Inject {
        /// The target.
        pid: i32,
        /// Why.
        source: InjectError,
    },
    /// All memory is back, but what held it could not be taken out.
    #[error("process {pid} has its memory back, but is not rid of what held it")]
    TakeDown {
        /// The target.
        pid: i32,
        /// Why not.
        source: TakeDownError,
    },
    /// The system refused something else.
    #[error("process {pid} is held: cannot {what}")]
    System {
        /// The target.
        pid: i32,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The journal could not be written or removed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

type Result<T> = std::result::Result<T, AdoptError>;

/// Brings back what is missing of the target of `journal`, and lets it run on. `pipeline`
/// is loaded as the journal says.
///
/// # Errors
/// [`AdoptError`]; the journal stays where it is unless the target has ended.
pub fn restore(
    mut journal: Journal,
    pipeline: Pipeline,
    search: &SearchPath,
    on_corrupt: OnCorrupt,
    progress: &Arc<Progress>,
) -> Result<Adopted> {
    let record = journal.record().clone();
    let pid = record.pid;
    let mut clock = PhaseClock::start();
    let target = target(&record)?;
    if record.state == State::Storing || record.guard.is_none() {
        cure(&record, target)?;
        bury(journal, search)?;
        return Ok(Adopted::NothingMissing);
    }
    let mut orphan = Orphan::take(record, &target)?;
    let image = open(pipeline, &orphan.record)?;
    clock.done("open image");
    if orphan.record.state == State::Dropping {
        orphan.stop_drop()?;
    }
    journal.update(|record| record.state = State::Restoring)?;
    let fate = orphan.fate(on_corrupt);
    let stats = match orphan.bring_back(&image, progress) {
        Ok(stats) => stats,
        Err(error) => return Err(fate.failed(error, image, journal)),
    };
    clock.done("populate");
    let huge = huge_runs(&orphan.record);
    let pidfd = match orphan.release(&image, &mut journal) {
        Ok(pidfd) => pidfd,
        Err(error) => return Err(fate.failed(error, image, journal)),
    };
    clock.done("release");
    put_huge_pages_back(pidfd.as_fd(), &huge);
    clock.done("huge pages");
    let rss_after_bytes = procfs::rss_bytes(pid);
    let image_left = remove_all(image, journal);
    clock.done("remove image");
    Ok(Adopted::Restored(RestoreReport {
        pid,
        raw_bytes: stats.raw_bytes,
        stored_bytes: stats.stored_bytes,
        rss_after_bytes,
        phases: clock.phases().to_vec(),
        truncated_bytes: 0,
        image_left,
    }))
}

/// With nothing missing: takes out of the target what a memcr has left there that died
/// while it made the guard or took it down, and lets it run.
fn cure(record: &Record, target: Target) -> Result<()> {
    let pid = record.pid;
    let system = |what| move |source| AdoptError::System { pid, what, source };
    let inject = |source| AdoptError::Inject { pid, source };
    let vmas = read_vmas(pid)?;
    let memory = ProcMem::open(pid).map_err(system("open its memory"))?;
    let Some(parasite) = Parasite::find(&vmas, &memory) else {
        return Ok(());
    };
    let is_open_as = |number: i32, kind: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}"));
        link.is_ok_and(|link| link.to_string_lossy().starts_with(kind))
    };
    let mut ours = leftovers(&memory, parasite, is_open_as).map_err(system("read its memory"))?;
    let told = record.leftover.iter().copied();
    ours.extend(told.filter(|number| is_open_as(*number, "anon_inode:[userfaultfd]")));
    ours.sort_unstable();
    ours.dedup();

    let frozen = freeze_again(target, &Cancel::new());
    let mut frozen = frozen.map_err(|source| AdoptError::Freeze { pid, source })?;
    Borrowed::rescue(&mut frozen, parasite).map_err(inject)?;
    frozen.inherit(record.was_stopped, &record.owed);
    let site = Site::find(pid, &vmas, &memory).map_err(inject)?;
    let take_down = |source| AdoptError::TakeDown { pid, source };
    let mut borrowed = Borrowed::take(&mut frozen, site, Some(parasite)).map_err(inject)?;
    borrowed.disarm().map_err(|error| take_down(error.into()))?;
    borrowed
        .close(&ours)
        .map_err(|error| take_down(error.into()))?;
    borrowed.cure().map_err(inject)?;
    borrowed.give_back().map_err(inject)?;
    frozen
        .release()
        .map_err(|source| AdoptError::Freeze { pid, source })
}

/// Leaves the target of `journal` held, whatever its memcr was about to do.
///
/// # Errors
/// [`AdoptError`].
pub fn hold(mut journal: Journal) -> Result<()> {
    let record = journal.record().clone();
    let pid = record.pid;
    let target = target(&record)?;
    let was_dropping = record.state == State::Dropping;
    let mut orphan = Orphan::take(record, &target)?;
    if was_dropping {
        orphan.stop_drop()?;
    }
    let frozen = orphan.into_frozen()?;
    frozen
        .arm_all()
        .and_then(|armed| armed.park())
        .map_err(|source| AdoptError::Freeze { pid, source })?;
    journal.update(|record| {
        record.parked = true;
        record.hold(procfs::rss_bytes(pid));
    })?;
    Ok(())
}

/// Removes what a session has left whose target needs none of it any more. `search` finds
/// the sink of its pipeline.
///
/// # Errors
/// With the journal still there when the image is.
pub fn bury(journal: Journal, search: &SearchPath) -> Result<()> {
    let record = journal.record();
    let pid = record.pid;
    if let Some(image) = &record.image {
        let spec = PipelineSpec::from(&record.pipeline);
        let removed = Pipeline::discard(&spec, search, &image.locator, &image.id);
        removed.map_err(|error| AdoptError::Image {
            pid,
            source: Box::new(error),
        })?;
    }
    Ok(journal.remove()?)
}

/// A target without its memcr.
struct Orphan {
    record: Record,
    guarded: Guarded,
    pidfd: OwnedFd,
    /// Whether job control is to find it stopped.
    was_stopped: bool,
    /// As long as its threads may change the layout of its memory.
    watcher: Option<Watcher>,
    /// Once its threads are in ptrace stops of ours.
    frozen: Option<Box<Frozen>>,
}

/// A step that failed with the target as it was.
enum StepError {
    Pipeline(PipelineError),
    Adopt(AdoptError),
}

impl From<PipelineError> for StepError {
    fn from(error: PipelineError) -> Self {
        Self::Pipeline(error)
    }
}

impl From<AdoptError> for StepError {
    fn from(error: AdoptError) -> Self {
        Self::Adopt(error)
    }
}

impl Orphan {
    fn take(record: Record, target: &Target) -> Result<Self> {
        let pid = record.pid;
        let failed = |source| AdoptError::Guard { pid, source };
        let guarded = Guarded::fetch(target.as_fd(), &record).map_err(failed)?;
        let pidfd = target.as_fd().try_clone_to_owned().map_err(failed)?;
        let mut orphan = Self {
            was_stopped: record.was_stopped,
            record,
            guarded,
            pidfd,
            watcher: None,
            frozen: None,
        };
        orphan.stop_again();
        Ok(orphan)
    }

    /// Somebody has continued it: then it is to run afterwards, but not now. A SIGSTOP to
    /// each thread, as one to the process might be somebody else's wish.
    fn stop_again(&mut self) {
        let pid = self.record.pid;
        if Status::of_process(pid).is_ok_and(|status| status.state() == 'T') {
            return;
        }
        self.was_stopped = false;
        for tid in procfs::tids(pid).unwrap_or_default() {
            // Gone meanwhile: then it does nothing any more.
            let _ = tgkill(pid, tid, libc::SIGSTOP);
        }
    }

    /// Its first thread may be dropping pages still: it is stopped, and put back to where
    /// it was when it was borrowed.
    fn stop_drop(&mut self) -> Result<()> {
        // A drop waits until its event is read.
        let watcher = self.watch(Heed::Nothing)?;
        self.freeze()?;
        drop(watcher);
        Ok(())
    }

    fn bring_back(
        &mut self,
        image: &OpenImage,
        progress: &Arc<Progress>,
    ) -> std::result::Result<DecodeStats, StepError> {
        self.watcher = Some(self.watch(Heed::Everything)?);
        let stats = populate(image, self.guarded.memory(), progress)?;
        self.serve_children(image)?;
        // Whoever waits for a page that never was goes on, and can be frozen.
        let ended = self.guarded.memory().unguard(&ranges(&self.record));
        ended.map_err(|error| self.not_unguarded(error))?;
        Ok(stats)
    }

    /// Children that were forked meanwhile lack the pages that their parent lacked then.
    fn serve_children(&self, image: &OpenImage) -> std::result::Result<(), StepError> {
        while let Some(child) = self.watcher.as_ref().and_then(Watcher::next_child) {
            tracing::info!("a child of process {} gets its memory too", self.record.pid);
            populate(image, &child, &Arc::default())?;
            let ended = child.unguard(&ranges(&self.record));
            ended.map_err(|error| self.not_unguarded(error))?;
        }
        Ok(())
    }

    /// With all memory back: takes out of the target what held it, and lets it run.
    fn release(
        mut self,
        image: &OpenImage,
        journal: &mut Journal,
    ) -> std::result::Result<OwnedFd, StepError> {
        let pid = self.record.pid;
        self.freeze()?;
        // Of the last moment before it was frozen: children, and where its memory went.
        self.serve_children(image)?;
        let Self {
            record,
            guarded,
            pidfd,
            was_stopped,
            watcher,
            frozen,
        } = self;
        drop(watcher);
        let take_down = |source| AdoptError::TakeDown { pid, source };
        guarded.unguard(journal).map_err(take_down)?;
        let Some(mut frozen) = frozen else {
            return Ok(pidfd);
        };
        frozen.inherit(was_stopped, &record.owed);
        let site = find_site(pid)?;
        guarded.take_down(&mut frozen, site).map_err(take_down)?;
        let released = frozen.release();
        released.map_err(|source| AdoptError::Freeze { pid, source })?;
        Ok(pidfd)
    }

    fn into_frozen(mut self) -> Result<Frozen> {
        self.freeze()?;
        let pid = self.record.pid;
        let mut frozen = self.frozen.ok_or(AdoptError::TargetExited { pid })?;
        frozen.inherit(self.was_stopped, &[]);
        Ok(*frozen)
    }

    fn freeze(&mut self) -> Result<()> {
        if self.frozen.is_some() {
            return Ok(());
        }
        let pid = self.record.pid;
        let failed = |source| AdoptError::Freeze { pid, source };
        let mut frozen = freeze_again(target(&self.record)?, &Cancel::new()).map_err(failed)?;
        // Should we fail, nothing is let go by us that is not whole.
        frozen.set_missing(Missing::Guarded).map_err(failed)?;
        Borrowed::rescue(&mut frozen, self.guarded.parasite())
            .map_err(|source| AdoptError::Inject { pid, source })?;
        self.frozen = Some(Box::new(frozen));
        Ok(())
    }

    fn watch(&self, heed: Heed) -> Result<Watcher> {
        Watcher::start(self.guarded.memory(), heed).map_err(|source| AdoptError::System {
            pid: self.record.pid,
            what: "watch its memory",
            source,
        })
    }

    fn fate(&self, on_corrupt: OnCorrupt) -> Fate {
        Fate {
            record: self.record.clone(),
            pidfd: self.pidfd.try_clone(),
            on_corrupt,
        }
    }

    fn not_unguarded(&self, source: io::Error) -> AdoptError {
        AdoptError::TakeDown {
            pid: self.record.pid,
            source: TakeDownError::Unregister(source),
        }
    }
}

/// What becomes of a target whose restore failed.
struct Fate {
    record: Record,
    pidfd: io::Result<OwnedFd>,
    on_corrupt: OnCorrupt,
}

impl Fate {
    fn failed(self, error: StepError, image: OpenImage, journal: Journal) -> AdoptError {
        let pid = self.record.pid;
        let has_ended = target(&self.record).is_err();
        let source = match error {
            _ if has_ended => {
                let _ = remove_all(image, journal);
                return AdoptError::TargetExited { pid };
            }
            StepError::Adopt(error) => return error,
            StepError::Pipeline(source) => Box::new(source),
        };
        match self.on_corrupt {
            _ if !source.is_corrupt() => AdoptError::Held { pid, source },
            OnCorrupt::Hold => AdoptError::Corrupt { pid, source },
            OnCorrupt::Kill => {
                // A process that we have a descriptor of can only have ended already.
                let _ = self
                    .pidfd
                    .map(|pidfd| pidfd_send_signal(&pidfd, Signal::KILL));
                if let Some(left) = remove_all(image, journal) {
                    tracing::warn!(
                        "of process {pid}, which was killed, something stays behind: {left}"
                    );
                }
                AdoptError::Lost { pid, source }
            }
        }
    }
}

fn populate(
    image: &OpenImage,
    memory: &Arc<GuardedMemory>,
    progress: &Arc<Progress>,
) -> std::result::Result<DecodeStats, PipelineError> {
    let mut decoder = prepare(image, memory.clone(), progress)?;
    decoder.pass(|_| true)?;
    decoder.finish()
}

/// The image that the journal tells of, if it is that of its target.
fn open(pipeline: Pipeline, record: &Record) -> Result<OpenImage> {
    let pid = record.pid;
    let held = |source| AdoptError::Held {
        pid,
        source: Box::new(source),
    };
    let Some(wanted) = &record.image else {
        let what = "open its image, which the journal does not tell of";
        let source = io::ErrorKind::InvalidData.into();
        return Err(AdoptError::System { pid, what, source });
    };
    let image = pipeline.open_image(&wanted.locator).map_err(held)?;
    if image.facts().image_id == wanted.id {
        return Ok(image);
    }
    Err(AdoptError::OtherImage {
        pid,
        locator: wanted.locator.clone(),
        found: image.facts().image_id.clone(),
        wanted: wanted.id.clone(),
    })
}

fn target(record: &Record) -> Result<Target> {
    let pid = record.pid;
    Target::of_session(pid, record.start_time).map_err(|source| match source {
        Refusal::NoSuchProcess(_) => AdoptError::TargetExited { pid },
        source => AdoptError::Refused { pid, source },
    })
}

fn find_site(pid: i32) -> Result<Site> {
    let vmas = read_vmas(pid)?;
    let memory = ProcMem::open(pid).map_err(|source| AdoptError::System {
        pid,
        what: "open its memory",
        source,
    })?;
    Site::find(pid, &vmas, &memory).map_err(|source| AdoptError::Inject { pid, source })
}

fn read_vmas(pid: i32) -> Result<Vec<Vma>> {
    let failed = |source| AdoptError::System {
        pid,
        what: "read its mappings",
        source,
    };
    let maps = std::fs::read(format!("/proc/{pid}/maps")).map_err(failed)?;
    vma::parse(&maps).map_err(|error| failed(io::Error::other(error)))
}

fn ranges(record: &Record) -> Vec<PageRun> {
    let guard = record.guard.iter();
    guard
        .flat_map(|guard| guard.ranges.iter().copied().map(run))
        .collect()
}

fn huge_runs(record: &Record) -> Vec<PageRun> {
    record.huge.iter().copied().map(run).collect()
}

fn run((start, len_bytes): (u64, u64)) -> PageRun {
    PageRun {
        addr: RemoteAddr(start),
        len_bytes,
    }
}
