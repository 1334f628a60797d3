//! Freeze: every thread of the target stands still, and goes on as if nothing had been.
//!
//! ```text
//! Target ──freeze()──▶ Frozen ──release()──▶ (the target runs)
//!   examine             │ threads, each in a ptrace event stop
//!                       │ drop: released as well, unless memory is missing (`arm`)
//! ```
//!
//! Threads are listed until a pass finds nothing new; clones are traced meanwhile, so
//! that a thread born during the freeze arrives stopped. All ptrace requests of a
//! session come from the one OS thread that froze (the kernel demands it), so
//! [`Frozen`] is not `Send`.

mod arm;
mod busy;
mod doom;
mod filter;
mod orphan;
mod rest;
mod restart;
mod ring;
mod stop;
mod target;
mod threads;
mod witness;

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

pub use arm::Missing;
pub(crate) use arm::is_stop;
pub use doom::{Doom, doom_of_parked};
pub use orphan::stop_awake;
pub(crate) use target::frozen_by;
pub use target::{Refusal, Target};

use crate::pipeline::{Cancel, CancelReason};
use crate::sys::arch::Regs;
use crate::sys::ptrace::{self, Options};
use crate::sys::wait::{Pause, WaitStatus};
use crate::sys::{self, wait};
use restart::Sleepers;
use threads::Outcome;
use witness::Witness;

pub(crate) use threads::is_dead;

/// How long a thread may take to stop, since the one before it did. Sleeps and running
/// code stop in microseconds; a disk that is slow to answer keeps a thread
/// uninterruptible for a while, and thousands of threads wait for a CPU in turn.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// How long a failed freeze waits for each thread that has not stopped yet; for all of
/// them no longer than [`STOP_DEADLINE`].
const LATE_DEADLINE: Duration = Duration::from_millis(50);

const EXITKILL: i32 = Options::PTRACE_O_EXITKILL.bits();

/// Why a freeze did not come about, or did not hold.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The target cannot be frozen.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The target ended.
    #[error("process {0} ended while it was being frozen")]
    TargetExited(i32),
    /// The user gave up.
    #[error("{reason} while process {pid} was being frozen")]
    Cancelled {
        /// The target.
        pid: i32,
        /// How the user did.
        reason: CancelReason,
    },
    /// No thread of our own was to be had. The target was not touched.
    #[error("cannot start a thread")]
    NoThread(#[source] io::Error),
    /// A request to the kernel failed.
    #[error("cannot {what} thread {tid}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// Of which thread.
        tid: i32,
        /// Why not.
        source: io::Error,
    },
}

/// The registers of threads as they were when they stopped.
type Registers = HashMap<i32, Regs>;

/// A target whose every thread stands still.
#[derive(Debug)]
pub struct Frozen {
    target: Target,
    /// When the first thread was told to stop.
    since: Instant,
    tids: Vec<i32>,
    /// Of all threads, until somebody changes them; then empty.
    registers: Registers,
    /// Attached to, and told to stop, but not seen standing still yet.
    stopping: Vec<i32>,
    sleepers: Sleepers,
    /// No thread has run since the target was examined.
    has_slept: bool,
    options: i32,
    /// The thread whose seccomp filter is off, as it makes calls for us.
    suspended: Option<i32>,
    missing: Missing,
    /// Job control had stopped it.
    was_stopped: bool,
    /// Some thread was, when it came to stand still.
    has_seen_stop: bool,
    is_armed: bool,
    /// Signals to the whole process that ours have taken away.
    owed: Vec<i32>,
    /// How the target ended, as far as we have seen it.
    exit_signal: Option<i32>,
    /// Signals that a thread would have taken while it made a call for us, sent again when it
    /// has: a SIGTRAP that somebody sent in that very moment (its handler sees us), a SIGSYS.
    pub(crate) swallowed: Vec<(i32, i32)>,
    /// Bound to the thread that traces.
    not_send: PhantomData<*const ()>,
}

/// Freezes `target`.
///
/// # Errors
/// With the target running as before, unless it ended by itself.
pub fn freeze(target: Target, cancel: &Cancel) -> Result<Frozen, FreezeError> {
    let mut frozen = freeze_again(target, cancel)?;
    frozen.look_again()?;
    frozen.was_stopped = frozen.is_stopped_by_job_control();
    // The first thread stood still already when another one took the signal. Whether the process
    // comes to be stopped by it nobody can tell yet: it is armed as any other, and told again.
    if frozen.has_seen_stop && !frozen.was_stopped && !frozen.is_to_continue() {
        frozen.keep_stop();
    }
    // Now, and not when they are let go: should we die, nobody else would do it.
    frozen.rewind();
    Ok(frozen)
}

/// Freezes a target whose memory another memcr has taken away: whatever it has become
/// since, it is to be given back.
///
/// # Errors
/// With the target as before.
pub fn freeze_again(target: Target, cancel: &Cancel) -> Result<Frozen, FreezeError> {
    let witness = Witness::call().map_err(FreezeError::NoThread)?;
    let mut frozen = Frozen::none_of(target)?;
    // On any failure `frozen` is dropped, which lets go of whatever was stopped.
    frozen.freeze_others(cancel, &witness)?;
    Ok(frozen)
}

impl Frozen {
    /// No thread was told to stop yet.
    ///
    /// # Errors
    /// [`Refusal::Seccomp`], where it is known beforehand.
    fn none_of(target: Target) -> Result<Self, FreezeError> {
        filter::check(target.pid)?;
        let sleepers = Sleepers::note(target.pid);
        Ok(Self {
            target,
            since: Instant::now(),
            tids: Vec::new(),
            registers: Registers::new(),
            stopping: Vec::new(),
            sleepers,
            has_slept: false,
            options: (Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD).bits(),
            suspended: None,
            missing: Missing::Nothing,
            was_stopped: false,
            has_seen_stop: false,
            is_armed: false,
            owed: Vec::new(),
            exit_signal: None,
            swallowed: Vec::new(),
            not_send: PhantomData,
        })
    }

    fn freeze_others(&mut self, cancel: &Cancel, witness: &Witness) -> Result<(), FreezeError> {
        self.stop_all(cancel, witness)?;
        self.sleepers.threads_stopped(self.target.pid);
        self.suspend_filter()
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// When the first thread was told to stop.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.target.pid
    }

    /// The threads: the first one of the process first, the others as they were found.
    #[must_use]
    pub fn tids(&self) -> &[i32] {
        &self.tids
    }

    /// Whether the target has done nothing since it was examined: then what was read of
    /// it afterwards, while it could run, still holds.
    #[must_use]
    pub fn has_slept(&self) -> bool {
        self.has_slept
    }

    /// Says what is missing, before the first drop and after the last populate; see
    /// [`Missing`] for what follows from it.
    ///
    /// # Errors
    /// When the kernel refuses; nothing may be dropped then.
    pub fn set_missing(&mut self, missing: Missing) -> Result<(), FreezeError> {
        let kill = |missing| {
            if missing == Missing::Unguarded {
                EXITKILL
            } else {
                0
            }
        };
        if kill(missing) != kill(self.missing) {
            for &tid in &self.tids {
                self.set_options(tid, kill(missing))
                    .map_err(|source| self.request("set options of", tid, source))?;
            }
        }
        self.missing = missing;
        Ok(())
    }

    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> Missing {
        self.missing
    }

    /// Lets the target run on. Interrupted calls go on, a target that was stopped stays
    /// stopped.
    ///
    /// # Errors
    /// When some thread could not be let go; the others were.
    pub fn release(mut self) -> Result<(), FreezeError> {
        self.let_go()
    }

    /// Ends the target. For bytes that are provably lost, and nothing else.
    pub fn kill(mut self) {
        self.kill_now();
    }

    /// True once the target has ended; its threads are then reaped, so that its parent
    /// hears of it.
    pub fn has_exited(&mut self) -> bool {
        // Whatever ends a process ends all its threads. The first one is reported last,
        // so the last one speaks for the others.
        let Some(&last) = self.tids.last() else {
            return true;
        };
        match wait::try_wait(last) {
            Ok(Some(WaitStatus::Signaled(signal))) => self.exit_signal = Some(signal),
            Ok(Some(WaitStatus::Exited(_))) | Err(_) => {}
            Ok(_) => return false,
        }
        self.reap();
        true
    }

    /// The same, after a failure that the target's death may be behind: a process that
    /// has given its memory back is about to end, and is waited for.
    pub fn has_ended(&mut self) -> bool {
        let deadline = Instant::now() + STOP_DEADLINE;
        let mut pause = Pause::default();
        while !self.has_exited() {
            if target::has_memory(self.target.pid) || Instant::now() >= deadline {
                return false;
            }
            pause.wait();
        }
        true
    }

    /// The signal that ended the target, if one did and we have seen it.
    #[must_use]
    pub fn exit_signal(&self) -> Option<i32> {
        self.exit_signal
    }

    /// Looks for input or output that has completed since the freeze, without a thread.
    ///
    /// # Errors
    /// [`Refusal::IoUnderWay`].
    pub fn check_idle(&self) -> Result<(), FreezeError> {
        Ok(self.target.check_idle()?)
    }

    /// There is something by which the kernel may change pages all the same: an io_uring that
    /// looks idle.
    #[must_use]
    pub fn may_wake(&self) -> bool {
        self.target.may_wake()
    }

    /// What the target may have changed since it was examined.
    fn look_again(&mut self) -> Result<(), FreezeError> {
        let is_known = self.registers.len() == self.tids.len();
        self.has_slept = self.target.has_slept(&self.registers) && is_known;
        tracing::debug!(
            "the target has slept since it was examined: {}",
            self.has_slept
        );
        Ok(self.target.check_frozen(self.has_slept)?)
    }

    fn kill_now(&mut self) {
        // SIGKILL to a process that we have a descriptor of cannot fail but by its death.
        let _ = rustix::process::pidfd_send_signal(&self.target, rustix::process::Signal::KILL);
        self.reap();
    }

    fn let_go(&mut self) -> Result<(), FreezeError> {
        self.set_missing(Missing::Nothing)?;
        self.send_swallowed();
        if self.is_to_continue() {
            self.forget_stops();
        }
        for signal in std::mem::take(&mut self.owed) {
            self.send(signal)?;
        }
        let mut result = Ok(());
        let pid = self.target.pid;
        self.collect_late_ones();
        for tid in std::mem::take(&mut self.tids) {
            self.sleepers.rewind(pid, tid, true);
            match ptrace::detach(tid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    result = Err(self.request("let go of", tid, error));
                }
                _ => {}
            }
        }
        result
    }

    /// Sends what was dequeued by a thread that made calls for us and was not for us.
    pub(crate) fn send_swallowed(&mut self) {
        for (tid, signal) in std::mem::take(&mut self.swallowed) {
            // Gone meanwhile: then nobody misses it.
            let _ = sys::tgkill(self.target.pid, tid, signal);
        }
    }

    /// The event stop of a thread that job control has stopped tells the signal that did
    /// it, that of any other SIGTRAP (ptrace(2), PTRACE_EVENT_STOP).
    fn is_stopped_by_job_control(&self) -> bool {
        let first = self.tids.first().map(|&tid| ptrace::signal_info(tid));
        matches!(first, Some(Ok(info)) if info.si_signo != libc::SIGTRAP)
    }

    /// After a failed freeze: threads that were told to stop must not do so for ever. One
    /// that does not stop even now (uninterruptible) stays attached until the thread that
    /// traces ends; the kernel then lets it go.
    fn collect_late_ones(&mut self) {
        let end = Instant::now() + STOP_DEADLINE;
        let mut clones = Vec::new();
        while let Some(tid) = self.stopping.pop() {
            let stopped = threads::wait_stopped(
                self.target.pid,
                tid,
                end.min(Instant::now() + LATE_DEADLINE),
                &Cancel::new(),
                &mut clones,
                &mut Pause::default(),
            );
            if matches!(stopped, Ok(Outcome::Stopped { .. })) {
                self.tids.push(tid);
            }
            // A thread that was born meanwhile stops too, and is let go like the others.
            let (threads, others) = clones.drain(..).partition(|&it| self.is_thread(it));
            self.stopping.extend::<Vec<i32>>(threads);
            let _ = self.check_clones(others);
        }
    }

    /// Takes notice of the death of all threads: the first one last, as the kernel
    /// reports it only when the others are gone.
    fn reap(&mut self) {
        let deadline = Instant::now() + STOP_DEADLINE;
        let tids = std::mem::take(&mut self.tids);
        let mut pause = Pause::default();
        for &tid in tids.iter().skip(1).chain(tids.first()) {
            while let Ok(status) = wait::try_wait(tid) {
                match status {
                    Some(WaitStatus::Exited(_) | WaitStatus::Signaled(_)) => break,
                    // A thread that the kernel cannot end yet (a core dump, a dead disk)
                    // is left to it: when we end, its parent becomes its tracer again.
                    None if Instant::now() >= deadline => break,
                    None => pause.wait(),
                    Some(_) => {}
                }
            }
        }
        self.missing = Missing::Nothing;
    }

    fn request(&self, what: &'static str, tid: i32, source: io::Error) -> FreezeError {
        if source.raw_os_error() == Some(libc::ESRCH) {
            return FreezeError::TargetExited(self.target.pid);
        }
        FreezeError::Request { what, tid, source }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // With memory missing nothing is let go: when this thread ends, the target stops
        // itself, or the kernel ends it, which is better than wrong memory.
        if self.missing == Missing::Nothing
            && let Err(error) = self.let_go()
        {
            tracing::warn!("{error}");
        }
    }
}
