//! The drop: from the first page that goes on, our death must not be the target's harm.

use crate::freeze::{Frozen, Missing};
use crate::inject::{Borrowed, Site};
use crate::maps::plan::DropRun;
use crate::pages::PageRun;
use crate::pages::give_back::{GivenBack, give_back};
use crate::pages::guarded::Watcher;
use crate::pipeline::{OpenImage, causes};
use crate::session::journal::{ImageRecord, Journal, State};
use crate::session::{Guarded, Held};
use crate::sys::procfs;
use crate::sys::same_cpu::Beside;

use super::error::StepError;
use super::pass;

/// Runs to drop that are too few to arrange anything for, and how long those are of which the
/// drop itself takes the time, bytes.
const FEW: usize = 32;
const SMALL: u64 = 1 << 20;

/// Why no guard stands. `made`: it was made all the same, and is in the target.
pub(super) struct NotGuarded {
    pub(super) made: Option<Guarded>,
    pub(super) error: StepError,
}

/// Drops `drops`, which lie in `mappings` as far as they are anonymous memory, and which
/// the image holds.
///
/// # Errors
/// With an unknown part of them gone.
pub(super) fn take_away(
    held: &mut Held,
    drops: &[DropRun],
    mappings: &[PageRun],
    parks: bool,
) -> Result<GivenBack, StepError> {
    pass("checkpoint.committed")?;
    let image = image_record(&held.image)?;
    held.journal.update(|record| {
        record.state = State::Dropping;
        record.was_stopped = held.frozen.was_stopped();
        record.image = Some(image);
    })?;
    let (frozen, journal) = (&mut held.frozen, &mut held.journal);
    let given_back = match stand_guard(frozen, held.site, journal, mappings, &held.huge.runs) {
        Ok(guarded) => drop_guarded(frozen, held.site, held.guarded.insert(guarded), drops)?,
        Err(NotGuarded {
            made: None,
            error: StepError::Guard(error),
        }) if !parks => {
            let pid = held.frozen.pid();
            tracing::info!(pid, "process {pid} has no guard: {}", causes(&error));
            drop_unguarded(held, drops)?
        }
        Err(NotGuarded { made, error }) => {
            held.guarded = made;
            return Err(error);
        }
    };
    end_drop(&mut held.frozen, &mut held.journal)?;
    Ok(given_back)
}

/// Makes a guard that stands over `mappings`, with a journal that tells of it and a target
/// that is armed but for its first thread, which is to work for us.
pub(super) fn stand_guard(
    frozen: &mut Frozen,
    site: Site,
    journal: &mut Journal,
    mappings: &[PageRun],
    huge: &[PageRun],
) -> Result<Guarded, NotGuarded> {
    let mut guarded = Guarded::set_up(frozen, site).map_err(|error| NotGuarded {
        made: None,
        error: error.into(),
    })?;
    let mut stand = || -> Result<(), StepError> {
        pass("checkpoint.guard_made")?;
        journal.update(|record| {
            record.huge = ranges(huge);
            guarded.note(record, mappings);
        })?;
        pass("checkpoint.journaled")?;
        arm(frozen, site, &guarded)?;
        pass("checkpoint.armed")?;
        frozen.set_missing(Missing::Guarded)?;
        guarded.register(mappings);
        pass("checkpoint.registered")
    };
    match stand() {
        Ok(()) => Ok(guarded),
        Err(error) => Err(NotGuarded {
            made: Some(guarded),
            error,
        }),
    }
}

fn drop_guarded(
    frozen: &mut Frozen,
    site: Site,
    guarded: &Guarded,
    drops: &[DropRun],
) -> Result<GivenBack, StepError> {
    let drops: Vec<_> = drops.iter().collect();
    let watcher = Watcher::start_for_drops(guarded.memory(), beside(frozen, &drops))?;
    let mut borrowed = Borrowed::take(frozen, site, Some(guarded.parasite()))?;
    let given_back = drop_some(&mut borrowed, guarded, &drops)?;
    borrowed.give_back()?;
    drop(watcher);
    Ok(given_back)
}

/// Drops what of `drops` is under the guard. Somebody is to read the events.
pub(super) fn drop_some(
    borrowed: &mut Borrowed<'_>,
    guarded: &Guarded,
    drops: &[&DropRun],
) -> Result<GivenBack, StepError> {
    // Clean pages of a file come back from it, guard or not.
    let may_go = |drop: &&DropRun| drop.is_file || guarded.covers(drop.run);
    let (may_go, stays): (Vec<_>, Vec<_>) = drops.iter().copied().partition(may_go);
    borrowed.keep_cont();
    let mut given_back = give_back(borrowed, &may_go)?;
    given_back.refused_bytes += stays.iter().map(|drop| drop.run.len_bytes).sum::<u64>();
    Ok(given_back)
}

/// All is dropped: the target is armed as a whole, and held from now on.
pub(super) fn end_drop(frozen: &mut Frozen, journal: &mut Journal) -> Result<(), StepError> {
    if frozen.missing() == Missing::Guarded {
        pass("checkpoint.dropped")?;
        frozen.arm_first()?;
    }
    let rss_held_bytes = procfs::rss_bytes(frozen.pid());
    journal.update(|record| record.hold(rss_held_bytes))?;
    pass("checkpoint.held")
}

/// The events of many small runs are read beside the thread that drops them.
pub(super) fn beside(frozen: &Frozen, drops: &[&DropRun]) -> Option<Beside> {
    let n_small = drops.iter().filter(|drop| drop.run.len_bytes <= SMALL);
    let first = frozen.tids().first().filter(|_| n_small.count() > FEW)?;
    Beside::of(frozen.pid(), *first)
}

/// Arms all threads but the first.
fn arm(frozen: &mut Frozen, site: Site, guarded: &Guarded) -> Result<(), StepError> {
    if frozen.are_many() && !frozen.was_stopped() {
        let mut borrowed = Borrowed::take(frozen, site, Some(guarded.parasite()))?;
        let is_stopped = borrowed.stop_process()?;
        borrowed.give_back()?;
        if is_stopped {
            frozen.others_are_armed();
            return Ok(());
        }
    }
    Ok(frozen.arm_others()?)
}

/// Where the kernel has no guard.
fn drop_unguarded(held: &mut Held, drops: &[DropRun]) -> Result<GivenBack, StepError> {
    held.frozen.set_missing(Missing::Unguarded)?;
    let mut borrowed = Borrowed::take(&mut held.frozen, held.site, None)?;
    borrowed.infect()?;
    let given_back = give_back(&mut borrowed, &drops.iter().collect::<Vec<_>>());
    // An undo knows of no parasite without a guard.
    borrowed.cure()?;
    borrowed.give_back()?;
    Ok(given_back?)
}

pub(super) fn ranges(runs: &[PageRun]) -> Vec<(u64, u64)> {
    runs.iter().map(|run| (run.addr.0, run.len_bytes)).collect()
}

pub(super) fn image_record(image: &OpenImage) -> Result<ImageRecord, StepError> {
    Ok(ImageRecord {
        locator: image.locator()?,
        id: image.facts().image_id.clone(),
        len_bytes: image.facts().image_bytes,
        n_chunks: None,
    })
}
