//! memcr on the same way as the others.

use std::time::Instant;

use memcr_harness::Result;

use super::{Traveller, Trip};
use crate::args::Args;
use crate::bound::Volumes;
use crate::case::Case;
use crate::cycle::{Memcr, Program};
use crate::stat::millis;

/// Checkpoints and restores a target of its own.
pub(super) fn trip(program: &Program, case: &Case, size_mib: u64, args: &Args) -> Result<Trip> {
    let mut target = Traveller::ready(size_mib, args)?;
    let begin = Instant::now();
    let mut memcr = Memcr::start(program, target.victim.pid(), &case.words(args))?;
    memcr.until_held()?;
    let out_millis = millis(begin.elapsed());

    let won_kib = target.away()?;
    target.call()?;
    let begin = Instant::now();
    memcr.enter()?;
    let (word_millis, read_millis) = target.back(begin)?;
    let report = memcr.finish()?;
    target.verify(args)?;
    Ok(Trip {
        out_millis,
        word_millis,
        read_millis,
        held_bytes: Volumes::of(&report)?.image_bytes,
        won_kib,
    })
}
