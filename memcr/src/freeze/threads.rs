//! Stopping one thread, whatever it is doing when the order arrives.
//!
//! ```text
//!  SEIZE ─▶ INTERRUPT ─▶ wait ─┬─ event stop (SIGTRAP)     stopped: done
//!                              ├─ event stop (SIGSTOP …)   was stopped by job control: done
//!                              ├─ signal stop              deliver it, INTERRUPT again, wait
//!                              ├─ clone event              note the new thread, INTERRUPT again, wait
//!                              └─ exited, signaled, zombie gone
//! ```
//!
//! A signal that was on its way is delivered before the thread stops: its handler's
//! frame is set up, no instruction of it has run. So every thread ends in an event
//! stop, from which the kernel restarts an interrupted call by itself (ptrace(2)).
//! Any stop cancels a pending INTERRUPT, so it is given anew each time.

use std::io;
use std::time::Instant;

use crate::pipeline::Cancel;
use crate::sys::procfs::Status;
use crate::sys::ptrace;
use crate::sys::wait::{self, Pause, WaitStatus};

/// What became of a thread that was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It stands still; by job control: the whole process does, or is about to.
    Stopped { by_job_control: bool },
    /// It has ended.
    Gone,
    /// It did not stop before the deadline.
    Late,
    /// The user gave up.
    Cancelled,
}

/// Waits until `tid` stands still. New threads that it makes meanwhile go to `clones`.
pub(super) fn wait_stopped(
    pid: i32,
    tid: i32,
    deadline: Instant,
    cancel: &Cancel,
    clones: &mut Vec<i32>,
    pause: &mut Pause,
) -> io::Result<Outcome> {
    loop {
        match wait::try_wait(tid) {
            Ok(Some(status)) => {
                if let Some(outcome) = take(tid, status, clones)? {
                    return Ok(outcome);
                }
            }
            // Rare, and a look takes as long as most stops do.
            Ok(None) if pause.is_long() && is_dead(pid, tid) => return Ok(Outcome::Gone),
            Ok(None) if cancel.reason().is_some() => return Ok(Outcome::Cancelled),
            Ok(None) if Instant::now() >= deadline => return Ok(Outcome::Late),
            Ok(None) => pause.wait(),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Outcome::Gone),
            Err(error) => return Err(error),
        }
    }
}

/// Handles one stop on the way. `Some`: the way has ended.
fn take(tid: i32, status: WaitStatus, clones: &mut Vec<i32>) -> io::Result<Option<Outcome>> {
    match status {
        WaitStatus::Exited(_) | WaitStatus::Signaled(_) => Ok(Some(Outcome::Gone)),
        // The signal is the one that has stopped the process, or that of any other trap.
        WaitStatus::EventStop(libc::PTRACE_EVENT_STOP, signal) => Ok(Some(Outcome::Stopped {
            by_job_control: signal != libc::SIGTRAP,
        })),
        WaitStatus::EventStop(event, _) => {
            if event == libc::PTRACE_EVENT_CLONE {
                clones.push(ptrace::event_message(tid)? as i32);
            }
            go_on(tid, 0)
        }
        WaitStatus::SignalStop(signal) => go_on(tid, signal),
        WaitStatus::SyscallStop => go_on(tid, 0),
    }
}

fn go_on(tid: i32, signal: i32) -> io::Result<Option<Outcome>> {
    // ESRCH: killed meanwhile; the next wait says so.
    match ptrace::interrupt(tid).and_then(|()| ptrace::cont(tid, signal)) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(None),
    }
}

/// A first thread that ended before the others reports nothing until they have ended and
/// were waited for too.
pub(crate) fn is_dead(pid: i32, tid: i32) -> bool {
    Status::of_thread(pid, tid).map_or(true, |status| matches!(status.state(), 'Z' | 'X'))
}
