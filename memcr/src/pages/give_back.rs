//! Giving pages back to the kernel, by the target itself: madvise(2) from outside does
//! not offer MADV_DONTNEED (process_madvise(2)).

use std::io;

use memcr_parasite::Entry;

use crate::fault;
use crate::inject::{Borrowed, InjectError};
use crate::maps::plan::DropRun;
use crate::pages::{PageRun, RemoteAddr};
use crate::sys::arch::nr;

/// MADV_DONTNEED_LOCKED (Linux 5.18), not in the libc crate for every target.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// Longest run that one call gives back, bytes; it ends where its address is a multiple of
/// that, so that no huge page is split. One call cannot be interrupted, nor called off: who
/// finishes it for us keeps what it is about to drop.
pub const MAX_RUN_LEN: u64 = 8 << 20;
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
        run: PageRun,
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
    let mut drops = drops.into_iter().flat_map(parts).peekable();
    while drops.peek().is_some() {
        fault::point("checkpoint.drop").map_err(InjectError::Fault)?;
        let part: Vec<_> = drops.by_ref().take(BATCH).collect();
        let mut entries: Vec<Entry> = part.iter().map(entry).collect();
        borrowed.run(&mut entries)?;
        for (drop, entry) in part.iter().zip(&entries) {
            total.count(drop, entry.ret)?;
        }
    }
    Ok(total)
}

impl GivenBack {
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

/// The same, in runs of [`MAX_RUN_LEN`] at most.
fn parts(drop: &DropRun) -> impl Iterator<Item = DropRun> {
    let end = drop.run.end().0;
    let next = move |start: u64| (start + 1).next_multiple_of(MAX_RUN_LEN).min(end);
    let starts = std::iter::successors(Some(drop.run.addr.0), move |&start| {
        Some(next(start)).filter(|&next| next < end)
    });
    starts.map(move |start| DropRun {
        run: PageRun {
            addr: RemoteAddr(start),
            len_bytes: next(start) - start,
        },
        ..*drop
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_given_back_in_parts_that_split_no_huge_page() {
        let parts_of = |addr, len_bytes| -> Vec<(u64, u64)> {
            let run = PageRun {
                addr: RemoteAddr(addr),
                len_bytes,
            };
            let drop = DropRun {
                run,
                locked: false,
                is_file: false,
            };
            parts(&drop)
                .map(|it| (it.run.addr.0, it.run.len_bytes))
                .collect()
        };
        assert_eq!(parts_of(0x1000, 0x1000), [(0x1000, 0x1000)]);
        assert_eq!(parts_of(0, MAX_RUN_LEN), [(0, MAX_RUN_LEN)]);
        assert_eq!(
            parts_of(MAX_RUN_LEN - 0x1000, MAX_RUN_LEN + 0x2000),
            [
                (MAX_RUN_LEN - 0x1000, 0x1000),
                (MAX_RUN_LEN, MAX_RUN_LEN),
                (2 * MAX_RUN_LEN, 0x1000)
            ]
        );
    }
}
