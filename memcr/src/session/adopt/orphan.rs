//! A target without its memcr, on its way back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::{A_MOMENT, AdoptError, Result, has_ended, read_vmas, target};
use crate::freeze::{Frozen, Missing, Target, freeze_again};
use crate::inject::{Borrowed, Site};
use crate::pages::guarded::{GuardedMemory, Heed, Watcher};
use crate::pages::{PageRun, RemoteAddr};
use crate::pipeline::{Cancel, DecodeStats, OpenImage, Pipeline, PipelineError, Progress};
use crate::restore::{OnCorrupt, RestoreOptions, prepare, remove_all, wait_for_others};
use crate::session::journal::{Journal, Record};
use crate::session::{Guarded, TakeDownError};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::{self, Status};
use crate::sys::tgkill;

/// A target, its guard, and what its journal says.
pub(super) struct Orphan {
    pub(super) record: Record,
    guarded: Guarded,
    pidfd: OwnedFd,
    /// Whether job control is to find it stopped.
    pub(super) was_stopped: bool,
    /// As long as its threads may change the layout of its memory.
    watcher: Option<Watcher>,
    /// Once its threads are in ptrace stops of ours.
    frozen: Option<Box<Frozen>>,
}

/// A step that failed with the target as it was.
pub(super) enum StepError {
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
    pub(super) fn take(record: Record, target: &Target) -> Result<Self> {
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
    pub(super) fn stop_drop(&mut self) -> Result<()> {
        // A drop waits until its event is read.
        let watcher = self.watch(Heed::Nothing)?;
        self.freeze()?;
        drop(watcher);
        Ok(())
    }

    pub(super) fn bring_back(
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
    pub(super) fn release(
        mut self,
        image: &OpenImage,
        journal: &mut Journal,
        options: &RestoreOptions,
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
        wait_for_others(options);
        let released = frozen.release();
        released.map_err(|source| AdoptError::Freeze { pid, source })?;
        Ok(pidfd)
    }

    pub(super) fn into_frozen(mut self) -> Result<Frozen> {
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

    pub(super) fn fate(&self, on_corrupt: OnCorrupt) -> Fate {
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
pub(super) struct Fate {
    record: Record,
    pidfd: io::Result<OwnedFd>,
    on_corrupt: OnCorrupt,
}

impl Fate {
    pub(super) fn failed(self, error: StepError, image: OpenImage, journal: Journal) -> AdoptError {
        let pid = self.record.pid;
        // A process that is being killed answers oddly for a moment before it is gone.
        let pidfd = self.pidfd.as_ref().ok();
        let ended = pidfd.is_some_and(|pidfd| has_ended(pidfd.as_fd(), A_MOMENT));
        let source = match error {
            _ if ended => {
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
pub(super) fn open(pipeline: Pipeline, record: &Record) -> Result<OpenImage> {
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

fn find_site(pid: i32) -> Result<Site> {
    let vmas = read_vmas(pid)?;
    let memory = ProcMem::open(pid).map_err(|source| AdoptError::System {
        pid,
        what: "open its memory",
        source,
    })?;
    Site::find(pid, &vmas, &memory).map_err(|source| AdoptError::Inject { pid, source })
}

fn ranges(record: &Record) -> Vec<PageRun> {
    let guard = record.guard.iter();
    guard
        .flat_map(|guard| guard.ranges.iter().copied().map(run))
        .collect()
}

pub(super) fn huge_runs(record: &Record) -> Vec<PageRun> {
    record.huge.iter().copied().map(run).collect()
}

fn run((start, len_bytes): (u64, u64)) -> PageRun {
    PageRun {
        addr: RemoteAddr(start),
        len_bytes,
    }
}
