//! Adopting: finishing a session whose memcr has gone, on purpose or not.
//!
//! ```text
//!   journal ─▶ same process? ─▶ fetch the guard ─▶ open the image, is it the one?
//!                                                      │
//!      dropping: stop and rescue the first thread ◀────┤
//!                                                      ▼
//!      populate what is missing ─▶ end the guard ─▶ freeze ─▶ take down ─▶ release
//!      └ children forked meanwhile, too
//! ```
//!
//! The target is not frozen while pages come back, but for its first thread if that was in
//! the middle of the drop: somebody may have continued it, and a thread that waits for a page
//! inside of the kernel stops for nobody before it has got it. One that was continued is told
//! to stop, so that it does not fork and move on for ever meanwhile; whatever its threads are
//! in the middle of, they finish.
//!
//! | journal says | what is missing | what is done |
//! |---|---|---|
//! | storing | nothing: the target ran on when its memcr died | the unfinished image goes |
//! | dropping, held, restoring; a guard | what the guard waits for | it comes back |
//! | the same, no guard | nothing, or the kernel has killed the target | what stands in the target is taken out, the image goes |

mod error;
mod orphan;
mod own_drop;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use error::AdoptError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::journal::{Journal, Record, State};
use super::{PhaseClock, put_huge_pages_back};
use crate::checkpoint::read_details;
use crate::freeze::{Doom, Refusal, Target, doom_of_parked, freeze_again};
use crate::inject::{Borrowed, Parasite, Site, leftovers};
use crate::maps::vma::{self, Vma};
use crate::pipeline::{Cancel, OpenImage, Pipeline, PipelineSpec, SearchPath, causes};
use crate::restore::{RestoreOptions, RestoreReport, expect_room, remove_all};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs;
use orphan::{Orphan, huge_runs, open};

type Result<T> = std::result::Result<T, AdoptError>;

/// How long after a failure the end of the target is waited for that may be behind it.
const A_MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// How long a target may take to end by a signal that is pending.
const DEATH_TIME: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// Brings back what is missing of the target of `journal`, and lets it run on. `pipeline`
/// is loaded as the journal says. Where nothing is missing, see [`settle`].
///
/// # Errors
/// [`AdoptError`]; the journal stays where it is unless the target has ended.
pub fn restore(
    mut journal: Journal,
    pipeline: Pipeline,
    search: &SearchPath,
    options: &RestoreOptions,
) -> Result<RestoreReport> {
    let record = journal.record().clone();
    let pid = record.pid;
    let mut clock = PhaseClock::start();
    let target = target(&record)?;
    let pidfd = duplicate(&target)?;
    if let Some(doom) = doom_of_parked(pid) {
        let_die(&target, doom);
        bury(journal, search)?;
        return Err(AdoptError::TargetExited { pid });
    }
    let (mut orphan, image) = match ready(&journal, &target, pipeline) {
        Ok(ready) => ready,
        Err(error) => return Err(or_ended(error, pidfd.as_fd(), journal, search)),
    };
    expect_room(journal.record(), &image).map_err(|source| AdoptError::NoRoom { pid, source })?;
    clock.done("open image");
    if let Err(error) = journal.update(|record| record.state = State::Restoring) {
        // It says that the target is held, and what follows from that is the same.
        tracing::warn!("{}", causes(&error));
    }
    let fate = orphan.fate(options.on_corrupt);
    let stats = match orphan.bring_back(&image, &options.progress) {
        Ok(stats) => stats,
        Err(error) => return Err(fate.failed(error, image, journal)),
    };
    clock.done("populate");
    let huge = huge_runs(&orphan.record);
    let pidfd = match orphan.release(&image, &mut journal, options) {
        Ok(pidfd) => pidfd,
        Err(error) => return Err(fate.failed(error, image, journal)),
    };
    clock.done("release");
    put_huge_pages_back(pidfd.as_fd(), &huge);
    clock.done("huge pages");
    let rss_after_bytes = procfs::rss_bytes(pid);
    let image_left = remove_all(image, journal);
    clock.done("remove image");
    Ok(RestoreReport {
        pid,
        raw_bytes: stats.raw_bytes,
        stored_bytes: stats.stored_bytes,
        rss_after_bytes,
        phases: clock.phases().to_vec(),
        truncated_bytes: 0,
        image_left,
    })
}

/// Whether the target of this session has all its memory: then no stage is needed to
/// finish it, and [`settle`] does.
#[must_use]
pub fn misses_nothing(record: &Record) -> bool {
    record.state == State::Storing || record.guard.is_none()
}

/// Finishes a session whose target misses nothing: what stands in the target is taken
/// out, the image goes. `search` finds the sink of its pipeline.
///
/// # Errors
/// [`AdoptError`].
pub fn settle(journal: Journal, search: &SearchPath) -> Result<()> {
    let target = target(journal.record())?;
    let pidfd = duplicate(&target)?;
    match cure(journal.record(), target) {
        Ok(()) => bury(journal, search),
        Err(error) => Err(or_ended(error, pidfd.as_fd(), journal, search)),
    }
}

fn duplicate(target: &Target) -> Result<OwnedFd> {
    let pid = target.pid;
    let pidfd = target.as_fd().try_clone_to_owned();
    pidfd.map_err(|source| AdoptError::System {
        pid,
        what: "keep a descriptor of it",
        source,
    })
}

/// A signal that ends the target is pending: it is not worth a restore. Continued, it takes
/// the signal, and what else it would do waits for its memory.
fn let_die(target: &Target, doom: Doom) {
    let pid = target.pid;
    // It can only have ended already.
    let _ = pidfd_send_signal(target, Signal::CONT);
    if !has_ended(target.as_fd(), DEATH_TIME) {
        let _ = pidfd_send_signal(target, Signal::KILL);
        has_ended(target.as_fd(), DEATH_TIME);
    }
    tracing::info!("signal {} has ended process {pid}", doom.signal);
}

/// Of a failure with a target that misses nothing of what it had: then nothing that it had of us
/// is needed any more.
fn or_ended(
    error: AdoptError,
    pidfd: BorrowedFd<'_>,
    journal: Journal,
    search: &SearchPath,
) -> AdoptError {
    match end_of(pidfd, journal.record()) {
        Some(end) => bury(journal, search).map_or_else(|left| left, |()| end),
        None => error,
    }
}

/// The end of the memory that is held of the process behind `pidfd`, should that be what is
/// behind a failure. A process that is being killed answers oddly for a moment before it is gone.
fn end_of(pidfd: BorrowedFd<'_>, record: &Record) -> Option<AdoptError> {
    let pid = record.pid;
    if has_ended(pidfd, A_MOMENT) {
        return Some(AdoptError::TargetExited { pid });
    }
    if !is_another_program(pid) {
        return None;
    }
    if record.state == State::Restoring {
        // That it stop until it is whole was said by us, or by who died over it.
        let _ = pidfd_send_signal(pidfd, Signal::CONT);
    }
    Some(AdoptError::AnotherProgram { pid })
}

/// Whether a process that is held has called execve(2): neither the parasite nor a guard is in
/// its memory. One of the two would be there but for that, whatever it does with the other.
fn is_another_program(pid: i32) -> bool {
    let (Ok(details), Ok(memory)) = (read_details(pid), ProcMem::open(pid)) else {
        return false;
    };
    // A process that ends has no mappings.
    !details.vmas().is_empty()
        && !details.iter().any(|(_, details)| details.flags.userfault)
        && Parasite::find(details.vmas(), &memory).is_none()
}

/// Waits for the end of the process behind `pidfd`, but not for long.
fn has_ended(pidfd: BorrowedFd<'_>, patience: Timespec) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&patience)), Ok(1..))
}

/// Fetches the guard, opens the image, and ends a drop that is under way.
fn ready(journal: &Journal, target: &Target, pipeline: Pipeline) -> Result<(Orphan, OpenImage)> {
    let mut orphan = Orphan::take(journal, target)?;
    let image = open(pipeline, &orphan.record)?;
    if orphan.record.state == State::Dropping {
        orphan.stop_drop()?;
    }
    Ok((orphan, image))
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
    let frozen = freeze_again(target, &Cancel::new());
    let mut frozen = frozen.map_err(|source| AdoptError::Freeze { pid, source })?;
    let ours = leftovers(pid, &memory, parasite).map_err(system("read its memory"))?;
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
    if record.state == State::Dropping {
        // What is left to be dropped stays. Nothing is touched: a layout that changes from
        // here on is for whoever brings the memory back.
        journal.update(|record| {
            record.parked = true;
            record.rss_held_bytes = procfs::rss_bytes(pid);
        })?;
        return Ok(());
    }
    let target = target(&record)?;
    let orphan = Orphan::take(&journal, &target)?;
    let was_stopped = orphan.was_stopped;
    let frozen = orphan.into_frozen()?;
    let failed = |source| AdoptError::Freeze { pid, source };
    let mut armed = frozen.arm_all().map_err(failed)?;
    let owed = armed.take_owed();
    armed.park().map_err(failed)?;
    journal.update(|record| {
        record.parked = true;
        record.owed.extend(owed);
        record.was_stopped = was_stopped;
        record.hold(procfs::rss_bytes(pid));
    })?;
    Ok(())
}

/// Ends the target of `journal`, which nobody wants any more, and removes what its session
/// has left.
///
/// # Errors
/// [`AdoptError`].
pub fn kill(journal: Journal, search: &SearchPath) -> Result<()> {
    let target = target(journal.record())?;
    // A process that we have a descriptor of can only have ended already.
    let _ = pidfd_send_signal(&target, Signal::KILL);
    has_ended(target.as_fd(), DEATH_TIME);
    bury(journal, search)
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

fn target(record: &Record) -> Result<Target> {
    let pid = record.pid;
    Target::of_session(pid, record.start_time).map_err(|source| match source {
        Refusal::NoSuchProcess(_) => AdoptError::TargetExited { pid },
        source => AdoptError::Refused { pid, source },
    })
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
