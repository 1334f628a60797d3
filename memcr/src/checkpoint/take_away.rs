//! The drop: from the first page that goes on, our death must not be the target's harm.

use std::io;

use crate::freeze::{Frozen, Missing};
use crate::inject::{Borrowed, Site};
use crate::maps::plan::DropRun;
use crate::pages::PageRun;
use crate::pages::give_back::{GivenBack, give_back};
use crate::pages::guarded::Watcher;
use crate::pipeline::{OpenImage, causes};
use crate::session::journal::{ImageRecord, State};
use crate::session::{Guarded, Held};
use crate::sys::procfs;
use crate::sys::same_cpu::Beside;

use super::error::StepError;
use super::pass;

/// Runs to drop that are too few to arrange anything for, and how long those are of which the
/// drop itself takes the time, bytes.
const FEW: usize = 256;
const SMALL: u64 = 1 << 20;

/// Drops `drops`, which lie in `mappings` as far as they are anonymous memory, and which
/// the image holds.
///
/// # Errors
/// With an unknown part of them gone.
pub(super) fn take_away(
    held: &mut Held,
    drops: &[DropRun],
    mappings: &[PageRun],
    needs_guard: bool,
) -> Result<GivenBack, StepError> {
    pass("checkpoint.committed")?;
    let image = image_record(&held.image)?;
    held.journal.update(|record| {
        record.state = State::Dropping;
        record.was_stopped = held.frozen.was_stopped();
        record.image = Some(image);
    })?;
    let given_back = match Guarded::set_up(&mut held.frozen, held.site) {
        Ok(guarded) => {
            held.guarded = Some(guarded);
            drop_guarded(held, drops, mappings)?
        }
        Err(error) if needs_guard => return Err(error.into()),
        Err(error) => {
            let pid = held.frozen.pid();
            tracing::info!(pid, "process {pid} has no guard: {}", causes(&error));
            drop_unguarded(held, drops)?
        }
    };
    let rss_held_bytes = procfs::rss_bytes(held.frozen.pid());
    held.journal.update(|record| record.hold(rss_held_bytes))?;
    pass("checkpoint.held")?;
    Ok(given_back)
}

fn drop_guarded(
    held: &mut Held,
    drops: &[DropRun],
    mappings: &[PageRun],
) -> Result<GivenBack, StepError> {
    let Some(guarded) = &mut held.guarded else {
        return Ok(GivenBack::default());
    };
    pass("checkpoint.guard_made")?;
    held.journal.update(|record| {
        let huge = held.huge.runs.iter();
        record.huge = huge.map(|run| (run.addr.0, run.len_bytes)).collect();
        guarded.note(record, mappings);
    })?;
    pass("checkpoint.journaled")?;
    arm(&mut held.frozen, held.site, guarded)?;
    pass("checkpoint.armed")?;
    held.frozen.set_missing(Missing::Guarded)?;
    guarded.register(mappings);
    pass("checkpoint.registered")?;
    // Clean pages of a file come back from it, guard or not.
    let may_go = |drop: &&DropRun| drop.is_file || guarded.covers(drop.run);
    let (may_go, stays): (Vec<_>, Vec<_>) = drops.iter().partition(may_go);
    let watching = watch(&held.frozen, guarded, &may_go)?;
    let mut borrowed = Borrowed::take(&mut held.frozen, held.site, Some(guarded.parasite()))?;
    let mut given_back = give_back(&mut borrowed, may_go)?;
    borrowed.give_back()?;
    drop(watching);
    given_back.refused_bytes += stays.iter().map(|drop| drop.run.len_bytes).sum::<u64>();
    pass("checkpoint.dropped")?;
    held.frozen.arm_first()?;
    Ok(given_back)
}

/// Starts to read the events of drops: of many small runs beside the thread that drops them.
fn watch(frozen: &Frozen, guarded: &Guarded, drops: &[&DropRun]) -> io::Result<Watcher> {
    let n_small = drops.iter().filter(|drop| drop.run.len_bytes <= SMALL);
    let beside = match frozen.tids().first() {
        Some(&first) if n_small.count() > FEW => Beside::of(frozen.pid(), first),
        _ => None,
    };
    Watcher::start_for_drops(guarded.memory(), beside)
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
    let given_back = give_back(&mut borrowed, drops)?;
    borrowed.cure()?;
    borrowed.give_back()?;
    Ok(given_back)
}

fn image_record(image: &OpenImage) -> Result<ImageRecord, StepError> {
    Ok(ImageRecord {
        locator: image.locator()?,
        id: image.facts().image_id.clone(),
        len_bytes: image.facts().image_bytes,
    })
}
