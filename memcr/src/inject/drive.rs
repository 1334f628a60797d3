//! Letting a borrowed thread run until it has made its calls.

use std::io;
use std::time::{Duration, Instant};

use super::{Borrowed, InjectError, Result, request};
use crate::freeze;
use crate::sys::ptrace;
use crate::sys::wait::{self, Pause, WaitStatus};

/// How often a remote call that takes long is spoken of. It is waited for as long as the
/// target lives: a target without CPU time (`cpu.max` of its cgroup), or one that a
/// cgroup freezer has stopped, comes back, and nothing can be undone in a thread that
/// runs.
const SPEAK_EVERY: Duration = Duration::from_secs(10);

/// The code of a signal that was sent to one thread (sigaction(2)); not in the libc crate.
const SI_TKILL: i32 = -6;

impl Borrowed<'_> {
    /// Lets the thread run, at first with `signal` (0: none), until a stop that `is_end`
    /// accepts.
    pub(super) fn resume(
        &mut self,
        how: Resume,
        mut signal: libc::c_int,
        is_end: impl Fn(WaitStatus) -> bool,
    ) -> Result<()> {
        let tid = self.tid;
        loop {
            how.resume(tid, signal)
                .map_err(|source| request("resume", tid, source))?;
            let status = self.wait()?;
            // First of all: where the queue of the target's user is full (RLIMIT_SIGPENDING), the
            // kernel delivers a signal of ours without saying that it was for one thread.
            if is_end(status) {
                return Ok(());
            }
            let code = ptrace::signal_info(tid).map_or(0, |info| info.si_code);
            // Ours are for one thread. A target that job control has stopped is not armed by us:
            // there each counts as it comes.
            if status == WaitStatus::SignalStop(libc::SIGSTOP)
                && code != SI_TKILL
                && !self.frozen.was_stopped()
            {
                self.frozen.keep_stop();
                signal = 0;
                continue;
            }
            signal = self.pass_over(status, code)?;
        }
    }

    /// Waits for the next stop.
    fn wait(&self) -> Result<WaitStatus> {
        let tid = self.tid;
        let mut speak = Instant::now() + SPEAK_EVERY;
        let mut pause = Pause::default();
        loop {
            match wait::try_wait(tid) {
                Ok(None) if Instant::now() >= speak => {
                    tracing::warn!("still waiting for a remote call in thread {tid}");
                    speak += SPEAK_EVERY;
                }
                // Killed together with the others, it reports nothing before they were
                // waited for, which the release or the end does.
                Ok(None) if pause.is_long() && freeze::is_dead(self.frozen.pid(), tid) => {
                    return Err(InjectError::TargetExited(self.frozen.pid()));
                }
                Ok(None) => pause.wait(),
                Ok(Some(WaitStatus::Exited(_) | WaitStatus::Signaled(_))) | Err(_) => {
                    return Err(InjectError::TargetExited(self.frozen.pid()));
                }
                Ok(Some(status)) => return Ok(status),
            }
        }
    }

    /// Another stop than the one waited for; answers the signal to go on with. A SIGSTOP of ours,
    /// which gets past every mask, is delivered: the process counts as stopped from now
    /// on, but a tracee that is told to goes on all the same. A SIGTRAP that somebody
    /// sent is kept for the release.
    fn pass_over(&mut self, status: WaitStatus, code: i32) -> Result<libc::c_int> {
        match status {
            WaitStatus::SignalStop(libc::SIGSTOP) => Ok(libc::SIGSTOP),
            // It would be raised again for ever.
            WaitStatus::SignalStop(signal) if signal != libc::SIGTRAP && is_raised(code) => {
                Err(InjectError::Faulted {
                    tid: self.tid,
                    signal,
                })
            }
            WaitStatus::SignalStop(signal) => {
                self.frozen.swallowed.push((self.tid, signal));
                Ok(0)
            }
            _ => Ok(0),
        }
    }

    /// From wherever the last call left the thread into an event stop: only from there
    /// does the kernel restart the interrupted call that the registers describe.
    pub(super) fn settle(&mut self) -> Result<()> {
        let tid = self.tid;
        ptrace::interrupt(tid).map_err(|source| request("interrupt", tid, source))?;
        self.resume(Resume::Freely, 0, |status| {
            matches!(status, WaitStatus::EventStop(libc::PTRACE_EVENT_STOP, _))
        })
    }
}

/// How a thread is let run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resume {
    ToSyscall,
    Freely,
}

impl Resume {
    fn resume(self, tid: i32, signal: libc::c_int) -> io::Result<()> {
        match self {
            Self::ToSyscall => ptrace::cont_to_syscall(tid, signal),
            Self::Freely => ptrace::cont(tid, signal),
        }
    }
}

/// The code of a signal raised by an instruction, not sent by anybody: positive
/// (sigaction(2)).
fn is_raised(code: i32) -> bool {
    code > 0
}
