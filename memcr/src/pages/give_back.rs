//! Giving pages back to the kernel, by the target itself: madvise(2) from outside does
//! not offer MADV_DONTNEED (process_madvise(2)).
//!
//! ```text
//! mappings  |  rw  | r |  rw  |    | rw | r |
//! runs      [======|===|======]    [====|===]    one call each where they touch
//! events       1     2    3          1    2      under a guard; the call waits for each
//! ```

use std::io;

use memcr_parasite::Entry;

use crate::fault;
use crate::inject::{Borrowed, InjectError};
use crate::maps::plan::DropRun;
use crate::pages::PageRun;
use crate::sys::arch::nr;

/// MADV_DONTNEED_LOCKED (Linux 5.18), not in the libc crate for every target.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// Calls handed over at once; the table of the parasite takes about as many.
const BATCH: usize = 1020;
/// How long runs are together at the most that are given back by one call, bytes: whoever finishes
/// that call for us keeps what it has yet to drop.
const CALL_LEN: u64 = 8 << 20;

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

/// Gives `drops` back, which are ascending.
///
/// # Errors
/// With an unknown part of the pages gone: the caller populates all of them again.
pub fn give_back(borrowed: &mut Borrowed<'_>, drops: &[&DropRun]) -> Result<GivenBack, DropError> {
    let mut total = GivenBack::default();
    let mut refused = Vec::new();
    let pieces: Vec<_> = pieces(drops).collect();
    for part in pieces.chunks(BATCH) {
        for (drops, answer) in part.iter().zip(advise(borrowed, part)?) {
            // Of several it is not known which; some may be gone, which they may be twice.
            match answer {
                answer if answer != 0 && drops.len() > 1 => refused.extend(*drops),
                answer => total.count(whole(drops), answer)?,
            }
        }
    }
    let alone: Vec<_> = refused.chunks(1).collect();
    for part in alone.chunks(BATCH) {
        for (drops, answer) in part.iter().zip(advise(borrowed, part)?) {
            total.count(whole(drops), answer)?;
        }
    }
    Ok(total)
}

/// Runs that are given back by one call. The order is kept.
fn pieces<'a, 'd>(drops: &'a [&'d DropRun]) -> impl Iterator<Item = &'a [&'d DropRun]> {
    let mut len_bytes = 0;
    drops.chunk_by(move |one, next| {
        let touch = one.run.end() == next.run.addr && one.locked == next.locked;
        len_bytes += one.run.len_bytes;
        let fits = len_bytes + next.run.len_bytes <= CALL_LEN;
        let is_one = touch && fits && !one.is_file && !next.is_file;
        if !is_one {
            len_bytes = 0;
        }
        is_one
    })
}

/// From the first to the last of runs that touch.
fn whole(drops: &[&DropRun]) -> PageRun {
    PageRun {
        addr: drops[0].run.addr,
        len_bytes: drops.iter().map(|drop| drop.run.len_bytes).sum(),
    }
}

/// Answers what the kernel answered, for each piece.
fn advise(borrowed: &mut Borrowed<'_>, pieces: &[&[&DropRun]]) -> Result<Vec<i64>, DropError> {
    fault::point("checkpoint.drop").map_err(InjectError::Fault)?;
    let mut entries: Vec<Entry> = pieces.iter().map(|drops| entry(drops)).collect();
    borrowed.run(&mut entries)?;
    Ok(entries.into_iter().map(|entry| entry.ret).collect())
}

impl GivenBack {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.taken_bytes += other.taken_bytes;
        self.refused_bytes += other.refused_bytes;
    }

    fn count(&mut self, run: PageRun, answer: i64) -> Result<(), DropError> {
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

fn entry(drops: &[&DropRun]) -> Entry {
    let advice = if drops[0].locked {
        MADV_DONTNEED_LOCKED
    } else {
        libc::MADV_DONTNEED as u64
    };
    let run = whole(drops);
    Entry {
        nr: nr::MADVISE,
        args: [run.addr.0, run.len_bytes, advice, 0, 0, 0],
        ret: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::RemoteAddr;

    fn drop(start: u64, n_pages: u64) -> DropRun {
        DropRun {
            run: PageRun {
                addr: RemoteAddr(start << 12),
                len_bytes: n_pages << 12,
            },
            locked: false,
            is_file: false,
        }
    }

    fn pieces_of(drops: &[DropRun]) -> Vec<PageRun> {
        let drops: Vec<_> = drops.iter().collect();
        pieces(&drops).map(whole).collect()
    }

    #[test]
    fn runs_that_touch_are_given_back_together() {
        let drops = [drop(1, 2), drop(3, 1), drop(5, 1), drop(6, 64), drop(70, 1)];
        assert_eq!(pieces_of(&drops), [drop(1, 3).run, drop(5, 66).run]);
        let locked = DropRun {
            locked: true,
            ..drop(2, 1)
        };
        let file = DropRun {
            is_file: true,
            ..drop(4, 1)
        };
        let apart = [drop(1, 1), locked, drop(3, 1), file, drop(5, 1)];
        assert_eq!(pieces_of(&apart), apart.map(|drop| drop.run));
        assert_eq!(pieces_of(&[]), []);
    }

    #[test]
    fn not_too_much_is_given_back_by_one_call() {
        let most = CALL_LEN >> 12;
        let drops = [
            drop(0, most),
            drop(most, most / 2),
            drop(most / 2 * 3, most / 2),
        ];
        let together = [drop(0, most).run, drop(most, most).run];
        assert_eq!(pieces_of(&drops), together);
        let many: Vec<_> = (0..2 * most + 1).map(|at| drop(at, 1)).collect();
        let lens: Vec<_> = pieces_of(&many).iter().map(|run| run.len_bytes).collect();
        assert_eq!(lens, [CALL_LEN, CALL_LEN, 1 << 12]);
    }
}
