//! Arming: a target that stops itself should we die.
//!
//! ```text
//!   arm      a SIGSTOP to each thread, pending while they stand in their ptrace stops
//!   we die   the kernel lets go of the threads; each finds its SIGSTOP before any of its
//!            own code, and the whole process stands still
//!            (of many threads one takes its SIGSTOP while it works for us: the process
//!            is stopped then, and the kernel lets each thread go into that stop)
//!   disarm   a SIGCONT takes the pending ones away (signal(7)), and goes itself with
//!            the next SIGSTOP
//!   park     the threads are let go, armed: the target stands still without us
//! ```
//!
//! A SIGSTOP costs the kernel a look at every thread's queue (prepare_signal() of
//! kernel/signal.c), so one for each of 5,000 threads costs a second. Hence the other way
//! for many ([`Frozen::are_many`]), whose end the target's parent may hear of: when the
//! stop is continued it gets a SIGCHLD more, and waitpid(2) with WCONTINUED an answer.
//!
//! A SIGSTOP for each thread, and not one for the process: that one might be somebody
//! else's, who wants the target to be stopped afterwards. Legacy signals are queued once
//! only, so the two could not be told apart. What others send meanwhile, and our signals
//! would take away, is owed to the target and sent again at its release.
//!
//! The guard is the second line: SIGCONT from anybody lets an armed or parked target run,
//! until it touches a page that is missing.

use std::time::Instant;

use super::{FreezeError, Frozen, STOP_DEADLINE};
use crate::sys::procfs::Status;
use crate::sys::wait::Pause;
use crate::sys::{self, ptrace};

/// What is missing of the target's memory, and what keeps it from running without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// Nothing.
    #[default]
    Nothing,
    /// The target is armed, and the guard stands over all that is missing.
    Guarded,
    /// There is no guard: should we die, the kernel kills the target (PTRACE_O_EXITKILL).
    /// Every thread needs the option: the kernel lets go of one tracee after the other,
    /// and those before the first with the option would run meanwhile.
    Unguarded,
}

/// Threads that are armed one by one: some 12 ms for all of them.
const FEW: usize = 512;

const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// One that stops a process unless it is handled (signal(7)).
pub(crate) fn is_stop(signal: i32) -> bool {
    STOPS.contains(&signal)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

impl Frozen {
    /// Whether job control had stopped the target when it was frozen.
    #[must_use]
    pub fn was_stopped(&self) -> bool {
        self.was_stopped
    }

    /// Gives the threads the registers with which they are to go on, whoever continues
    /// the process: calls that a stop makes answer EINTR are set back. After it those that
    /// were read when they stopped are out of date.
    pub(super) fn rewind(&mut self) {
        for (tid, regs) in std::mem::take(&mut self.registers) {
            self.sleepers
                .rewind_from(self.target.pid, tid, &regs, false);
        }
    }

    /// So many threads that to arm each of them would take longer than all the rest.
    #[must_use]
    pub fn are_many(&self) -> bool {
        self.tids.len() > FEW
    }

    /// A thread that works for us has stopped the process: that arms all the others.
    pub fn others_are_armed(&mut self) {
        self.is_armed = true;
    }

    /// Arms all threads but the first, which is about to work for us.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn arm_others(&mut self) -> Result<(), FreezeError> {
        self.keep_cont();
        for &tid in self.tids.iter().skip(1) {
            self.stop_later(tid)?;
        }
        self.is_armed = true;
        Ok(())
    }

    /// Arms all threads.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn arm_all(mut self) -> Result<Self, FreezeError> {
        self.arm_others().and_then(|()| self.arm_first())?;
        Ok(self)
    }

    /// Arms the first thread too, which has done its work.
    ///
    /// # Errors
    /// When it is gone.
    pub fn arm_first(&mut self) -> Result<(), FreezeError> {
        self.keep_cont();
        self.tids
            .first()
            .map_or(Ok(()), |&tid| self.stop_later(tid))
    }

    /// Arms anew what a SIGCONT that somebody sent has disarmed.
    pub fn arm_again(&mut self) {
        let Some(&first) = self.tids.first().filter(|_| self.is_armed) else {
            return;
        };
        let status = Status::of_thread(self.target.pid, first);
        let is_pending =
            status.is_ok_and(|status| status.signals("SigPnd") & bit(libc::SIGSTOP) != 0);
        if !is_pending && !self.was_stopped {
            self.keep_cont();
            // A thread that is gone needs none.
            self.tids.iter().for_each(|&tid| drop(self.stop_later(tid)));
        }
    }

    /// Takes the pending SIGSTOPs away, and a stop of the whole process that they have
    /// become. The SIGCONT that does it is pending afterwards, until the next SIGSTOP:
    /// that at the end of a remote call.
    ///
    /// # Errors
    /// When the target is gone.
    pub(crate) fn disarm(&mut self) -> Result<(), FreezeError> {
        if self.was_stopped {
            return Ok(());
        }
        let pending = self.pending();
        let stops = STOPS.iter().filter(|&&signal| pending & bit(signal) != 0);
        self.owed.extend(stops);
        self.is_armed = false;
        self.send(libc::SIGCONT)
    }

    /// A SIGCONT that somebody sent is taken away by our next SIGSTOP, and owed. It has disarmed
    /// all threads: those that do not work for us are armed anew.
    pub(crate) fn keep_cont(&mut self) {
        if !self.is_to_continue() {
            return;
        }
        self.forget_stops();
        self.owed.retain(|&signal| signal != libc::SIGCONT);
        self.owed.push(libc::SIGCONT);
        let others = self.tids.iter().skip(1).filter(|_| self.is_armed);
        // A thread that is gone needs none.
        others.for_each(|&tid| drop(self.stop_later(tid)));
    }

    /// What a SIGCONT that came later has called off is not owed any more.
    pub(super) fn forget_stops(&mut self) {
        self.owed.retain(|signal| !is_stop(*signal));
    }

    /// A SIGCONT is pending.
    pub(super) fn is_to_continue(&self) -> bool {
        self.pending() & bit(libc::SIGCONT) != 0
    }

    /// A SIGSTOP that somebody else sent has reached a thread that works for us, which goes on:
    /// the target is to stop when it is let go.
    pub(crate) fn keep_stop(&mut self) {
        self.owed.push(libc::SIGSTOP);
    }

    /// The signals that are owed to the target: from now on its journal's.
    #[must_use]
    pub fn take_owed(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.owed)
    }

    /// What an earlier session knew of the target.
    pub fn inherit(&mut self, was_stopped: bool, owed: &[i32]) {
        self.was_stopped = was_stopped;
        self.owed.extend(owed);
    }

    /// From now on the kernel kills the target should we die, by this one thread: for a
    /// moment in which nothing is missing.
    pub(crate) fn die_with_us(&self, tid: i32, on: bool) -> std::io::Result<()> {
        if self.missing == Missing::Unguarded {
            return Ok(());
        }
        let kill = if on { super::EXITKILL } else { 0 };
        self.set_options(tid, kill)
    }

    /// Lets an armed target go: it stands still without us.
    ///
    /// # Errors
    /// When some thread could not be let go, or the process does not stand still.
    pub fn park(mut self) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        self.send_swallowed();
        let mut result = Ok(());
        for tid in std::mem::take(&mut self.tids) {
            match ptrace::detach(tid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    result = Err(self.request("let go of", tid, error));
                }
                _ => {}
            }
        }
        self.missing = Missing::Nothing;
        result.and(wait_until_still(pid))
    }

    /// What was sent to the target as a whole and is pending.
    fn pending(&self) -> u64 {
        Status::of_process(self.target.pid).map_or(0, |status| status.signals("ShdPnd"))
    }

    fn stop_later(&self, tid: i32) -> Result<(), FreezeError> {
        if self.was_stopped {
            return Ok(());
        }
        sys::tgkill(self.target.pid, tid, libc::SIGSTOP)
            .map_err(|source| self.request("arm", tid, source))
    }

    pub(super) fn send(&self, signal: i32) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let signal = rustix::process::Signal::from_named_raw(signal);
        signal
            .map_or(Err(rustix::io::Errno::INVAL), |signal| {
                rustix::process::pidfd_send_signal(&self.target, signal)
            })
            .map_err(|source| self.request("signal the process of", pid, source.into()))
    }
}

/// The threads that were just let go stop by themselves, in microseconds.
fn wait_until_still(pid: i32) -> Result<(), FreezeError> {
    let deadline = Instant::now() + STOP_DEADLINE;
    let mut pause = Pause::default();
    loop {
        match Status::of_process(pid).map(|status| status.state()) {
            Ok('T' | 't') => return Ok(()),
            Err(_) | Ok('Z' | 'X') => return Err(FreezeError::TargetExited(pid)),
            // Somebody has continued it already: the guard holds it.
            Ok(_) if Instant::now() >= deadline => return Ok(()),
            Ok(_) => pause.wait(),
        }
    }
}
