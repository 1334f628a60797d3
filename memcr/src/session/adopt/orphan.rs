//! A target without its memcr, on its way back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::own_drop::{Kept, own_drop};
use super::{AdoptError, Result, end_of, is_another_program, read_vmas, target};
use crate::checkpoint::read_details;
use crate::freeze::{Frozen, Missing, Target, freeze_again, is_stop, stop_awake};
use crate::inject::{Borrowed, Site};
use crate::pages::guarded::{GuardedMemory, Heed, Watcher};
use crate::pages::{PageRun, RemoteAddr};
use crate::pipeline::{Cancel, DecodeStats, OpenImage, Pipeline, PipelineError, Progress};
use crate::restore::{OnCorrupt, RestoreOptions, prepare, remove_all, wait_for_others};
use crate::session::journal::{Journal, Record, State};
use crate::session::{Guarded, TakeDownError};
use crate::sys::hurry::Hurry;
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::{self, Status};
use crate::sys::tgkill;

/// Threads that are looked at to learn whether many run.
const ENOUGH: usize = 64;

/// A target, its guard, and what its journal says.
pub(super) struct Orphan {
    pub(super) record: Record,
    guarded: Guarded,
    pidfd: OwnedFd,
    /// Whether job control is to find it stopped.
    pub(super) was_stopped: bool,
    /// Somebody has continued it.
    is_continued: bool,
    /// As long as its threads may change the layout of its memory.
    watcher: Option<Watcher>,
    /// As long as its threads keep others from the CPU.
    _ahead: Option<Hurry>,
    /// Once its first thread, or all of them, are in ptrace stops of ours.
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
    pub(super) fn take(journal: &Journal, target: &Target) -> Result<Self> {
        let mut record = journal.record().clone();
        let pid = record.pid;
        let failed = |source| AdoptError::Guard { pid, source };
        let (known, notebook) = journal.layout()?;
        let guarded = Guarded::fetch(target.as_fd(), &record, known, notebook).map_err(failed)?;
        let pidfd = target.as_fd().try_clone_to_owned().map_err(failed)?;
        let at_work = record.state == State::Dropping
            && Borrowed::is_at_work(pid, guarded.parasite()).unwrap_or(false);
        let is_continued = is_continued(pid, at_work);
        if is_continued {
            // Who has continued it has called those off.
            record.owed.retain(|signal| !is_stop(*signal));
        }
        let orphan = Self {
            was_stopped: record.was_stopped && !is_continued,
            is_continued,
            record,
            guarded,
            pidfd,
            _ahead: some(pid, |state| state == 'R').then(Hurry::ahead).flatten(),
            watcher: None,
            frozen: None,
        };
        // One that sleeps may do so in the kernel, for a page: with a signal pending it
        // would look for it without a pause (`handle_userfault()` of mm/userfaultfd.c), and
        // hundreds of those leave no CPU to us. It is told when all pages are there.
        orphan.stop_again(|state| state == 'R');
        Ok(orphan)
    }

    /// One that somebody has continued is to run afterwards, but not now. A SIGSTOP to
    /// each thread, as one to the process might be somebody else's wish.
    fn stop_again(&self, whom: impl Fn(char) -> bool) {
        let pid = self.record.pid;
        if !self.is_continued {
            return;
        }
        for tid in procfs::tids(pid).unwrap_or_default() {
            if Status::of_thread(pid, tid).is_ok_and(|status| whom(status.state())) {
                // Gone meanwhile: then it does nothing any more.
                let _ = tgkill(pid, tid, libc::SIGSTOP);
            }
        }
    }

    /// Its first thread may be dropping pages still: it is stopped, and put back to where
    /// it was when it was borrowed. The others may wait for pages, and stop for nobody.
    pub(super) fn stop_drop(&mut self) -> Result<()> {
        let (pid, parasite) = (self.record.pid, self.guarded.parasite());
        let inject = |source| AdoptError::Inject { pid, source };
        let freeze = |source| AdoptError::Freeze { pid, source };
        if !Borrowed::is_at_work(pid, parasite).map_err(inject)? {
            return Ok(());
        }
        let system = |what| move |source| AdoptError::System { pid, what, source };
        let own_drop = |is_told| {
            let own = own_drop(pid, parasite, is_told);
            own.map_err(system("find out what it drops"))
        };
        let keep = |own: Option<PageRun>| {
            let kept = own.map_or_else(|| Ok(Kept::default()), |run| Kept::of(pid, run));
            kept.map_err(system("read what it drops"))
        };
        let mut frozen = stop_awake(target(&self.record)?).map_err(freeze)?;
        // Should we fail, nothing is let go by us that is not whole.
        frozen.set_missing(Missing::Guarded).map_err(freeze)?;
        // What they have written there since they were continued is in no image.
        let expected = own_drop(false)?;
        let mut kept = keep(expected)?;
        let vmas = read_vmas(pid)?;
        frozen.stop_first(self.is_continued).map_err(freeze)?;
        let own = own_drop(true)?;
        if own != expected {
            kept = keep(own)?;
        }
        let memory = Arc::clone(self.guarded.memory());
        memory.expect_drop(own.map(|run| kept.drop_of(run, &vmas)));
        // Its call ends when the event was read.
        self.watcher = Some(self.watch(Heed::Everything)?);
        frozen.wait_for_first().map_err(freeze)?;
        let known = memory.end_drop();
        known.map_err(system("write down what it has done to its memory"))?;
        let back = kept.put_back(pid, &memory);
        back.map_err(system("put back what it had written"))?;
        let set = frozen.die_with_us(pid, false);
        set.map_err(system("set options of its first thread"))?;
        Borrowed::rescue(&mut frozen, parasite).map_err(inject)?;
        self.frozen = Some(Box::new(frozen));
        Ok(())
    }

    pub(super) fn bring_back(
        &mut self,
        image: &OpenImage,
        progress: &Arc<Progress>,
    ) -> std::result::Result<DecodeStats, StepError> {
        if self.watcher.is_none() {
            self.watcher = Some(self.watch(Heed::Everything)?);
        }
        let stats = populate(image, self.guarded.memory(), progress)?;
        // So that it does not fork and move on for ever.
        self.stop_again(|_| true);
        self.serve_children(image)?;
        // Whoever waits for a page that never was goes on, and can be frozen.
        self.unguard()?;
        Ok(stats)
    }

    fn unguard(&self) -> Result<()> {
        let (memory, ranges) = (self.guarded.memory(), ranges(&self.record));
        let ended = if some(self.record.pid, |state| state != 'T') {
            memory.unguard_grown(&ranges, &self.guarded_mappings()?)
        } else {
            memory.unguard(&ranges)
        };
        ended.map_err(|error| self.not_unguarded(error))
    }

    /// As they are now: of one that has grown in place no event tells.
    fn guarded_mappings(&self) -> Result<Vec<PageRun>> {
        let pid = self.record.pid;
        let details = read_details(pid).map_err(|source| AdoptError::System {
            pid,
            what: "read its mappings",
            source,
        })?;
        let guarded = details.iter().filter(|(_, it)| it.flags.userfault);
        Ok(guarded
            .map(|(vma, _)| run((vma.start, vma.len_bytes())))
            .collect())
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
            ..
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

    /// Stops all threads, or all but the first.
    fn freeze(&mut self) -> Result<()> {
        let pid = self.record.pid;
        let failed = |source| AdoptError::Freeze { pid, source };
        if let Some(frozen) = &mut self.frozen {
            return frozen.stop_others().map_err(failed);
        }
        let mut frozen = freeze_again(target(&self.record)?, &Cancel::new()).map_err(failed)?;
        if is_another_program(pid) {
            // Which lacks nothing, and is let go.
            return Err(AdoptError::AnotherProgram { pid });
        }
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
        let pidfd = self.pidfd.as_ref().ok();
        if let Some(end) = pidfd.and_then(|pidfd| end_of(pidfd.as_fd(), journal.record())) {
            let _ = remove_all(image, journal);
            return end;
        }
        let source = match error {
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

/// Job control does not hold the process `pid` any more: its first thread is neither stopped
/// nor about to be. Of one that makes calls for us (`at_work`) the others tell; without others
/// nobody can have done anything.
fn is_continued(pid: i32, at_work: bool) -> bool {
    let is_held = |tid| {
        let status = Status::of_thread(pid, tid);
        status.is_ok_and(|it| {
            it.state() == 'T' || it.signals("SigPnd") & 1 << (libc::SIGSTOP - 1) != 0
        })
    };
    if !at_work {
        return !is_held(pid);
    }
    let mut others = procfs::tids(pid).unwrap_or_default();
    others.retain(|&tid| tid != pid);
    !others.is_empty() && !others.into_iter().any(is_held)
}

/// Whether some of its threads are in such a state. 'R' are those that run, or look for a page
/// without a pause: those that are told to stop while they wait for it inside of the kernel.
fn some(pid: i32, is_such: impl Fn(char) -> bool) -> bool {
    let tids = procfs::tids(pid).unwrap_or_default();
    let mut some = tids.iter().step_by(tids.len() / ENOUGH + 1);
    some.any(|&tid| Status::of_thread(pid, tid).is_ok_and(|it| is_such(it.state())))
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
    let image = match wanted.mark() {
        None => pipeline.open_image(&wanted.locator),
        Some(mark) => pipeline.open_part(&wanted.locator, mark),
    };
    let image = image.map_err(held)?;
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
