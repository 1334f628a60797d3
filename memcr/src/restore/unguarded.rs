//! The way back without a guard: huge pages are written as such, in a pass of their own.
//!
//! The kernel puts a huge page under the first byte that is written into an empty huge range.
//! So small pages come first, with huge ones switched off for the process
//! (PR_SET_THP_DISABLE), then the huge ones with them on: each range is backed as it was, and
//! the resident size does not grow.

use std::sync::Arc;

use super::{StepError, prepare};
use crate::inject::{Borrowed, InjectError};
use crate::pipeline::{DecodeStats, Progress};
use crate::session::{Held, PhaseClock};
use crate::sys::arch::nr;

/// Gives all pages back to a target that stands still.
pub(super) fn bring_back(
    held: &mut Held,
    progress: &Arc<Progress>,
    clock: &mut PhaseClock,
) -> Result<DecodeStats, StepError> {
    let mut decoder = prepare(&held.image, held.memory.clone(), progress)?;
    clock.done("open image");
    let before = if held.huge.has_small_in_thp {
        Some(disable_huge_pages(held)?)
    } else {
        None
    };
    let small = decoder.pass(|class| !class.huge);
    // On failure too: another try, or an undo, starts from the same state.
    if let Some(before) = before {
        set_huge_pages(held, before)?;
    }
    small?;
    if !held.huge.runs.is_empty() {
        decoder.pass(|class| class.huge)?;
    }
    let stats = decoder.finish()?;
    Ok(stats)
}

/// Switches huge pages off for the target; answers the setting before (prctl(2)).
fn disable_huge_pages(held: &mut Held) -> Result<i64, InjectError> {
    let mut borrowed = Borrowed::take(&mut held.frozen, held.site, None)?;
    let before = borrowed.call(nr::PRCTL, [libc::PR_GET_THP_DISABLE as u64, 0, 0, 0, 0, 0])?;
    borrowed.call(nr::PRCTL, [libc::PR_SET_THP_DISABLE as u64, 1, 0, 0, 0, 0])?;
    borrowed.give_back()?;
    Ok(before)
}

/// Sets huge pages to what PR_GET_THP_DISABLE answered: bit 0 disabled, the bits above
/// it the flags of Linux 6.18.
fn set_huge_pages(held: &mut Held, setting: i64) -> Result<(), InjectError> {
    // An error answer means a kernel without the call: then nothing was switched off.
    if setting < 0 {
        return Ok(());
    }
    let setting = setting.cast_unsigned();
    let mut borrowed = Borrowed::take(&mut held.frozen, held.site, None)?;
    borrowed.call(
        nr::PRCTL,
        [
            libc::PR_SET_THP_DISABLE as u64,
            setting & 1,
            setting & !1,
            0,
            0,
            0,
        ],
    )?;
    borrowed.give_back()
}
