//! Giving pages back to the kernel, by the target itself: madvise(2) from outside does
//! not offer MADV_DONTNEED (process_madvise(2)).

use std::io;

use memcr_parasite::Entry;

use crate::fault;
use crate::inject::{Borrowed, InjectError};
use crate::maps::plan::DropRun;
use crate::sys::arch::nr;

/// MADV_DONTNEED_LOCKED (Linux 5.18), not in the libc crate for every target.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// Calls handed over at once; the table of the parasite takes about as many.
const BATCH: usize = 1020;

/// What was given back, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// Length of the runs that the kernel took.
    pub taken_bytes: u64,
    /// Length of the runs that it left: locked or sealed after all. Their pages are
    /// still there and still right.
    pub refused_bytes: u64,
}

/// Why pages could not be given back. Some may be gone already.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// The thread could not make the calls.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// The kernel refused for a reason that should not be.
    #[error("madvise of {run:?} failed in the target")]
    Refused {
        /// Which pages.
        run: crate::pages::PageRun,
        /// Why.
        source: io::Error,
    },
}

/// Gives `drops` back.
///
/// # Errors
/// With an unknown part of the pages gone: the caller populates all of them again.
pub fn give_back<'d>(
    borrowed: &mut Borrowed<'_>,
    drops: impl IntoIterator<Item = &'d DropRun>,
) -> Result<GivenBack, DropError> {
    let mut total = GivenBack::default();
    let mut drops = drops.into_iter().peekable();
    while drops.peek().is_some() {
        fault::point("checkpoint.drop").map_err(InjectError::Fault)?;
        let part: Vec<_> = drops.by_ref().take(BATCH).collect();
        let mut entries: Vec<Entry> = part.iter().copied().map(entry).collect();
        borrowed.run(&mut entries)?;
        for (drop, entry) in part.into_iter().zip(&entries) {
            total.count(drop, entry.ret)?;
        }
    }
    Ok(total)
}

impl GivenBack {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.taken_bytes += other.taken_bytes;
        self.refused_bytes += other.refused_bytes;
    }

    fn count(&mut self, drop: &DropRun, answer: i64) -> Result<(), DropError> {
        let run = drop.run;
        match answer {
            0 => self.taken_bytes += run.len_bytes,
            // EINVAL: locked since the flags were read. EPERM: sealed (mseal(2)).
            _ if answer == -i64::from(libc::EINVAL) || answer == -i64::from(libc::EPERM) => {
                self.refused_bytes += run.len_bytes;
            }
            _ => {
                return Err(DropError::Refused {
                    run,
                    source: io::Error::from_raw_os_error(-answer as i32),
                });
            }
        }
        Ok(())
    }
}

fn entry(drop: &DropRun) -> Entry {
    let advice = if drop.locked {
        MADV_DONTNEED_LOCKED
    } else {
        libc::MADV_DONTNEED as u64
    };
    Entry {
        nr: nr::MADVISE,
        args: [drop.run.addr.0, drop.run.len_bytes, advice, 0, 0, 0],
        ret: 0,
    }
}
