//! Whether the target has done anything since it was looked at.
//!
//! ```text
//!  note: every thread asleep in a call          stopped: still in the same call, from
//!        (number, arguments, place in the code) which our stop alone has woken it
//!        scheduled in n times                   scheduled in n + 1 times, or more often
//!        slept m times                            if preempted on its way, but slept m + 1
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

/// Where every thread slept.
#[derive(Debug, Default)]
pub(super) struct Rest(Option<HashMap<i32, Asleep>>);

#[derive(Debug, PartialEq, Eq)]
struct Asleep {
    call: Place,
    /// How often it was given a CPU.
    n_runs: u64,
    /// How often it gave one up.
    n_sleeps: u64,
}

impl Rest {
    /// Notes where the threads sleep, if all of them do.
    pub(super) fn note(pid: i32) -> Self {
        let tids = procfs::tids(pid).unwrap_or_default();
        let note = |tid| Some((tid, Asleep::note(pid, tid)?));
        Self(tids.into_iter().map(note).collect())
    }

    /// True when the stopped `threads`, which are all that there are, have slept until they
    /// were stopped.
    pub(super) fn lasted(&self, pid: i32, threads: &Registers) -> bool {
        self.0.as_ref().is_some_and(|noted| {
            let slept = |(tid, regs): (&i32, &Regs)| {
                let asleep = noted.get(tid);
                asleep.is_some_and(|asleep| asleep.lasted(pid, *tid, regs))
            };
            noted.len() == threads.len() && threads.iter().all(slept)
        })
    }
}

impl Asleep {
    fn note(pid: i32, tid: i32) -> Option<Self> {
        // The counts first: a thread that runs in between counts as one that has run.
        let (n_sleeps, n_runs) = (n_sleeps(pid, tid)?, n_runs(pid, tid)?);
        let call = procfs::call_of(pid, tid)?;
        Some(Self {
            call,
            n_runs,
            n_sleeps,
        })
    }

    fn lasted(&self, pid: i32, tid: i32, regs: &Regs) -> bool {
        let call = regs.interrupted_call().map(|call| Place {
            nr: call.nr,
            args: call.args,
            sp: regs.sp(),
            pc: regs.pc(),
        });
        // Of hundreds of threads some are preempted before they stand still. The other
        // count knows better, but is in a file that takes longer.
        call == Some(self.call)
            && (n_runs(pid, tid) == Some(self.n_runs + 1)
                || n_sleeps(pid, tid) == Some(self.n_sleeps + 1))
    }
}

/// Voluntary switches (proc_pid_status(5)). The stop is one.
fn n_sleeps(pid: i32, tid: i32) -> Option<u64> {
    let status = Status::of_thread(pid, tid).ok()?;
    status.number("voluntary_ctxt_switches")
}

/// The third figure of `/proc/PID/task/TID/schedstat`
/// (Documentation/scheduler/sched-stats.rst). All are 0 where the kernel does not count.
fn n_runs(pid: i32, tid: i32) -> Option<u64> {
    let text = procfs::read_lossy(&format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    let n_runs = text.split_whitespace().nth(2)?.parse().ok()?;
    (n_runs > 0).then_some(n_runs)
}
