//! Whether the target has done anything since it was looked at.
//!
//! ```text
//!  note: every thread asleep in a call          stopped: still in the same call, from
//!        (number, arguments, place in the code) which our stop alone has woken it
//!        they went to sleep m times             m times, and once more each, to stop
//! ```
//!
//! If so for every thread, and no thread is new, then no code of the target has run in
//! between: it has mapped, locked, registered, opened, filtered and forked nothing, and
//! all that was read of it while it could run still holds. If not, it is read again, with
//! the target frozen. What that costs, measured: 15 ms per GiB of resident memory for
//! smaps, 6 µs per descriptor.
//!
//! A thread that was woken, went once around its loop and was stopped between the entry of
//! the same call and the sleep in it is taken for one that has slept: an instant that the
//! order to stop must hit exactly. And what others may do to the target unseen is little:
//! one that shares its descriptors (CLONE_FILES) may open some, one that has a userfaultfd
//! of it may register memory.

use std::collections::HashMap;

use super::Registers;
use crate::sys::arch::Regs;
use crate::sys::procfs::{self, Place, Status};
use crate::sys::taskstats::TaskStats;

/// Where every thread slept.
#[derive(Debug, Default)]
pub(super) struct Rest(Option<Noted>);

#[derive(Debug)]
struct Noted {
    places: HashMap<i32, Place>,
    n_sleeps: Sleeps,
}

/// How often threads had gone to sleep.
#[derive(Debug)]
enum Sleeps {
    /// All of them together. Each does so once when it is stopped: if together they did so as
    /// often as there are threads, none did so more often. (What a thread did that was
    /// counted and ended before it was noted is missing: another one would have to have run
    /// just as often.)
    Together(TaskStats, u64),
    /// Each of them: where the kernel does not add them up, or not for us.
    Each(HashMap<i32, u64>),
}

impl Rest {
    /// Notes where the threads sleep, if all of them do.
    pub(super) fn note(pid: i32) -> Self {
        // The counts first: a thread that runs in between counts as one that has run.
        let together = TaskStats::open().and_then(|stats| Ok((stats.n_sleeps(pid)?, stats)));
        let tids = procfs::tids(pid).unwrap_or_default();
        let n_sleeps = match together {
            Ok((n_sleeps, stats)) => Some(Sleeps::Together(stats, n_sleeps)),
            Err(error) => {
                tracing::debug!("sleeps are counted for each thread: {error}");
                Sleeps::of_each(pid, &tids)
            }
        };
        let place = |tid| Some((tid, procfs::call_of(pid, tid)?));
        let places: Option<_> = tids.into_iter().map(place).collect();
        let noted = n_sleeps.zip(places);
        Self(noted.map(|(n_sleeps, places)| Noted { places, n_sleeps }))
    }

    /// True when the stopped `threads`, which are all that there are, have slept until they
    /// were stopped.
    pub(super) fn lasted(&self, pid: i32, threads: &Registers) -> bool {
        self.0.as_ref().is_some_and(|noted| {
            let are_there = |(tid, regs): (&i32, &Regs)| {
                let place = noted.places.get(tid);
                place.is_some_and(|place| is_there(place, regs))
            };
            noted.places.len() == threads.len()
                && threads.iter().all(are_there)
                && noted.n_sleeps.are_one_more(pid, threads)
        })
    }
}

/// Whether a stopped thread is still in the call.
fn is_there(place: &Place, regs: &Regs) -> bool {
    let call = regs.interrupted_call();
    call.is_some_and(|call| {
        let now = Place {
            nr: call.nr,
            args: call.args,
            sp: regs.sp(),
            pc: regs.pc(),
        };
        now == *place
    })
}

impl Sleeps {
    fn of_each(pid: i32, tids: &[i32]) -> Option<Self> {
        let each = tids.iter().map(|&tid| Some((tid, n_sleeps(pid, tid)?)));
        each.collect::<Option<_>>().map(Self::Each)
    }

    /// Whether each of `threads` went to sleep once since, for its stop.
    fn are_one_more(&self, pid: i32, threads: &Registers) -> bool {
        match self {
            Self::Together(stats, before) => {
                let now = stats.n_sleeps(pid).ok();
                now == Some(before + threads.len() as u64)
            }
            Self::Each(before) => threads.keys().all(|&tid| {
                let before = before.get(&tid);
                before.is_some_and(|before| n_sleeps(pid, tid) == Some(before + 1))
            }),
        }
    }
}

/// Voluntary switches (proc_pid_status(5)). The stop is one.
fn n_sleeps(pid: i32, tid: i32) -> Option<u64> {
    let status = Status::of_thread(pid, tid).ok()?;
    status.number("voluntary_ctxt_switches")
}
