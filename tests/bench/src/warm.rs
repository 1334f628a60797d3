//! Memory that costs what memory costs.
//!
//! A guest may hand free pages back to its host (free page reporting). The next touch of
//! such a page then waits for the host, several times as long as for a page that is
//! merely free, and the first step to need memory would pay for all. So as much as a
//! step is going to need is touched and freed just before it.

use memcr_harness::{Context, Result};
use memmap2::{Advice, MmapMut};

/// Bytes between two touches: no page is smaller.
const STRIDE: usize = 4096;

/// Beyond what a step needs, bytes: for page tables, for others, and because the kernel
/// does not give out the last pages freed first.
const MARGIN: usize = 64 << 20;

/// Touches as much fresh memory as a step needs that takes `len_bytes`, and frees it again.
///
/// # Errors
/// When there is not so much.
pub(crate) fn warm(len_bytes: usize) -> Result {
    touched(len_bytes + len_bytes / 4 + MARGIN).map(drop)
}

/// Fresh memory, every page of it there.
///
/// # Errors
/// When there is not so much.
pub(crate) fn touched(len_bytes: usize) -> Result<MmapMut> {
    let mut memory = absent(len_bytes)?;
    // Huge pages are touched several times faster; without them it works as well.
    let _ = memory.advise(Advice::HugePage);
    for byte in memory.iter_mut().step_by(STRIDE) {
        *byte = 1;
    }
    Ok(memory)
}

/// Fresh memory, no page of it there, to be backed by small pages.
///
/// # Errors
/// When there is not so much address space.
pub(crate) fn absent(len_bytes: usize) -> Result<MmapMut> {
    let memory = MmapMut::map_anon(len_bytes).context(format!("map {len_bytes} bytes"))?;
    // Fails on a kernel without huge pages, where all pages are small anyway.
    let _ = memory.advise(Advice::NoHugePage);
    Ok(memory)
}
