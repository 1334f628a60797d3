//! Stopping all threads: passes over the thread list until all that there are stand still.
//!
//! ```text
//!  list ─▶ attach to each new one ─▶ tell it to stop, wait until it does ─▶ count them
//!   ▲                                                                        │ some are missing
//!   └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The list alone proves nothing: while threads end, a reading of `/proc/PID/task` may
//! leave out others. So in the end the kernel's own count must be ours. While one thread
//! execs, the others end, their tracer has to take notice, and the one that execs goes on
//! under the id of the first one: then a thread that stood still may run again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::threads::{self, Outcome};
use super::witness::Witness;
use super::{FreezeError, Frozen, Refusal, STOP_DEADLINE, busy, target};
use crate::pipeline::{Cancel, CancelReason};
use crate::sys::procfs::{self, Status};
use crate::sys::wait::{self, Pause};
use crate::sys::{self, kcmp, ptrace};

/// How long a thread may take before it is asked whether it waits for others to end.
const SOON: Duration = Duration::from_millis(100);
/// Passes over the thread list before a target that never stops cloning is refused.
/// With clones traced two passes are enough; the limit is for a broken world.
const MAX_PASSES: usize = 1000;
/// Passes after which a thread that may not be attached to is taken at its word.
pub(super) const DENIED_PASSES: usize = 20;

/// What became of an attempt to attach to a thread.
pub(super) enum Attached {
    /// It is ours now, and runs on until it is told to stop.
    Running,
    /// It was ours already, and is about to stop: born of a thread that we trace.
    Stopping,
    /// It has ended.
    Gone,
}

impl Frozen {
    /// Stops every thread.
    ///
    /// # Errors
    /// With some threads stopped, and perhaps others told to.
    pub(super) fn stop_all(
        &mut self,
        cancel: &Cancel,
        witness: &Witness,
    ) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let mut pause = Pause::default();
        for pass in 0..MAX_PASSES {
            let denied = self.attach_to_new(witness)?;
            let is_new = !self.stopping.is_empty();
            // In the order in which they were found: the first thread stays the first.
            self.stopping.reverse();
            while let Some(&tid) = self.stopping.last() {
                self.stop(tid, cancel, &mut pause)?;
            }
            match denied {
                None if self.is_complete()? => return Ok(()),
                Some(error) if pass >= DENIED_PASSES => return Err(error),
                _ if is_new || !self.stopping.is_empty() => {}
                _ if cancel.reason().is_some() => return Err(cancelled(pid, cancel)),
                _ => pause.wait(),
            }
        }
        Err(Refusal::Unfinished {
            pid,
            passes: MAX_PASSES,
        }
        .into())
    }

    /// One pass over the list. Answers why some thread could not be attached to.
    fn attach_to_new(&mut self, witness: &Witness) -> Result<Option<FreezeError>, FreezeError> {
        let pid = self.target.pid;
        let mut listed = procfs::tids(pid).map_err(|_| FreezeError::TargetExited(pid))?;
        let known: HashSet<i32> = self.tids.iter().chain(&self.stopping).copied().collect();
        listed.retain(|tid| !known.contains(tid));
        if listed.is_empty() {
            return Ok(None);
        }
        let _watch = witness.watch(known.into_iter().chain(listed.iter().copied()).collect());
        let mut denied = None;
        let mut running = Vec::with_capacity(listed.len());
        for tid in listed {
            match self.attach(tid) {
                Ok(Attached::Running) => running.push(tid),
                Ok(Attached::Stopping) => self.stopping.push(tid),
                // Should we be its tracer all the same, it is gone only when we notice.
                Ok(Attached::Gone) => drop(wait::take_end(tid)),
                Err(error) => denied = Some(error),
            }
        }
        if self.tids.is_empty() && self.stopping.is_empty() {
            self.since = Instant::now();
        }
        running.into_iter().for_each(|tid| self.tell(tid));
        Ok(denied)
    }

    /// Tells a thread of ours to stop. One that has ended meanwhile is waited for like others.
    pub(super) fn tell(&mut self, tid: i32) {
        if let Err(error) = ptrace::interrupt(tid) {
            tracing::debug!("thread {tid} was not told to stop: {error}");
        }
        self.stopping.push(tid);
    }

    /// True when all threads that there are stand still.
    fn is_complete(&mut self) -> Result<bool, FreezeError> {
        let pid = self.target.pid;
        let status = Status::of_process(pid).map_err(|_| FreezeError::TargetExited(pid))?;
        let n_threads = status.number("Threads");
        if n_threads != Some(self.tids.len() as u64) {
            self.take_notice();
        }
        let Some(first) = self.tids.iter().position(|&tid| tid == pid) else {
            return match status.state() {
                'Z' | 'X' if self.tids.is_empty() => Err(FreezeError::TargetExited(pid)),
                'Z' | 'X' => Err(Refusal::LeaderExited(pid).into()),
                _ => Ok(false),
            };
        };
        // It may have become the thread that has made an exec. That one runs, or stands where
        // nobody has waited for it: within a clone, with registers that say that it failed.
        let regs = ptrace::registers(pid);
        if !matches!((regs, self.registers.get(&pid)), (Ok(Some(now)), Some(then)) if now.sp() == then.sp())
        {
            let tid = self.tids.remove(first);
            self.tell(tid);
            return Ok(false);
        }
        // Where it could not be attached to at once, it was found behind others.
        self.tids[..=first].rotate_right(1);
        Ok(n_threads == Some(self.tids.len() as u64))
    }

    /// Forgets threads that stood still and were ended, as by one that execs, which is not
    /// among those that stand still; before their tracer takes notice
    /// they are not gone, and an exec waits for that.
    fn take_notice(&mut self) {
        self.tids.retain(|&tid| !wait::take_end(tid));
        // Those that have not stopped yet are forgotten when they are waited for.
        for &tid in &self.stopping {
            let _ = wait::take_end(tid);
        }
    }

    /// Attaches to a thread, which runs on. An error may be that of a moment: a
    /// thread on its way out cannot be attached to, and its id may already be that of
    /// the thread that execs in its place.
    pub(super) fn attach(&self, tid: i32) -> Result<Attached, FreezeError> {
        let error = match ptrace::seize(tid, self.options) {
            Ok(()) => return Ok(Attached::Running),
            Err(error) => error,
        };
        let Ok(status) = Status::of_thread(self.target.pid, tid) else {
            return Ok(Attached::Gone);
        };
        if error.raw_os_error() == Some(libc::ESRCH) || matches!(status.state(), 'Z' | 'X') {
            return Ok(Attached::Gone);
        }
        if status.number("TracerPid") == Some(sys::gettid() as u64) {
            return Ok(Attached::Stopping);
        }
        target::check_tracer(self.target.pid, &status)?;
        if let Some(what) = busy::worker(self.target.pid, tid) {
            return Err(busy::under_way(self.target.pid, what).into());
        }
        Err(target::gone_or_forbidden(self.target.pid, error).into())
    }

    /// Waits for the last one of `stopping`, `tid`.
    pub(super) fn stop(
        &mut self,
        tid: i32,
        cancel: &Cancel,
        pause: &mut Pause,
    ) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let mut clones = Vec::new();
        let begin = Instant::now();
        let mut outcome = threads::wait_stopped(pid, tid, begin + SOON, cancel, &mut clones, pause);
        if matches!(outcome, Ok(Outcome::Late)) {
            self.take_notice();
            let deadline = begin + STOP_DEADLINE;
            outcome = threads::wait_stopped(pid, tid, deadline, cancel, &mut clones, pause);
        }
        self.check_clones(clones)?;
        match outcome.map_err(|source| self.request("stop", tid, source))? {
            Outcome::Stopped { by_job_control } => {
                self.tids.push(tid);
                self.has_seen_stop |= by_job_control;
            }
            Outcome::Gone => {}
            Outcome::Cancelled => return Err(cancelled(pid, cancel)),
            Outcome::Late => return Err(does_not_stop(pid, tid).into()),
        }
        self.stopping.pop();
        match ptrace::registers(tid) {
            Ok(None) => return Err(Refusal::ForeignAbi(tid).into()),
            Ok(Some(regs)) => drop(self.registers.insert(tid, regs)),
            // Gone; the count tells.
            Err(_) => {}
        }
        // Nobody gets the number of a thread that we trace. Until now somebody else may have.
        if tid == pid && self.target.has_ended() {
            return Err(FreezeError::TargetExited(pid));
        }
        Ok(())
    }

    /// Looks at all of them: each that is let go must be, whatever is found out about
    /// another.
    pub(super) fn check_clones(&self, clones: Vec<i32>) -> Result<(), FreezeError> {
        let checked: Vec<_> = clones.into_iter().map(|it| self.check_clone(it)).collect();
        checked.into_iter().collect()
    }

    /// A clone may be a process of its own (no CLONE_THREAD): the kernel attached us to
    /// it all the same, so it is let go. A thread is found by the next pass.
    fn check_clone(&self, child: i32) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        if self.is_thread(child) {
            return Ok(());
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        let stopped = threads::wait_stopped(
            child,
            child,
            deadline,
            &Cancel::new(),
            &mut Vec::new(),
            &mut Pause::default(),
        );
        let shares_memory = kcmp::share_memory(pid, child).unwrap_or(false);
        if matches!(stopped, Ok(Outcome::Stopped { .. })) {
            let _ = ptrace::detach(child); // it may have been killed meanwhile
        }
        if shares_memory {
            return Err(Refusal::SharedMemory { pid, other: child }.into());
        }
        Ok(())
    }
}

impl Frozen {
    /// Of the target, and not a process of its own.
    pub(super) fn is_thread(&self, tid: i32) -> bool {
        std::fs::exists(format!("/proc/{}/task/{tid}", self.target.pid)).unwrap_or(false)
    }
}

fn cancelled(pid: i32, cancel: &Cancel) -> FreezeError {
    // A token that was set stays so.
    let reason = cancel.reason().unwrap_or(CancelReason::Interrupted);
    FreezeError::Cancelled { pid, reason }
}

fn does_not_stop(pid: i32, tid: i32) -> Refusal {
    let state = Status::of_thread(pid, tid).map_or('?', |status| status.state());
    let wchan =
        std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
    Refusal::DoesNotStop {
        pid,
        tid,
        state,
        wchan,
    }
}
