//! Signals that end the target by default and arrived while it stood still.

use std::time::{Duration, Instant};

use super::Frozen;
use crate::sys::procfs::{self, Status};
use crate::sys::ptrace;
use crate::sys::wait::{self, Pause, WaitStatus};

/// Signals whose default is not to end the process (signal(7)): the child and window
/// notices, urgent data, and those of job control.
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];
/// How long a process may take to end by a signal before it gets SIGKILL.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// A signal that ends the target, and the thread that will take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doom {
    /// The signal.
    pub signal: i32,
    tid: i32,
}

impl Frozen {
    /// The signal that would end the target as soon as it ran, if one is pending.
    #[must_use]
    pub fn doom(&self) -> Option<Doom> {
        let pid = self.pid();
        if !may_be_doomed(pid, self.tids()[0]) {
            return None;
        }
        self.tids().iter().find_map(|&tid| doom_of(pid, tid))
    }

    /// Lets the target take the signal, and nothing else: the thread goes on inside of
    /// the kernel, which ends the process before any of its code runs.
    pub fn let_die(&mut self, doom: Doom) {
        self.exit_signal = Some(doom.signal);
        let deadline = Instant::now() + DEATH_DEADLINE;
        let mut pause = Pause::default();
        let mut alive = ptrace::cont(doom.tid, 0).is_ok();
        while alive && Instant::now() < deadline {
            alive = match wait::try_wait(doom.tid) {
                Ok(Some(WaitStatus::SignalStop(signal))) => {
                    // Other signals that were delivered first mean nothing any more.
                    ptrace::cont(doom.tid, if signal == doom.signal { signal } else { 0 }).is_ok()
                }
                Ok(Some(WaitStatus::Exited(_) | WaitStatus::Signaled(_))) | Err(_) => false,
                Ok(Some(_)) => ptrace::cont(doom.tid, 0).is_ok(),
                Ok(None) if self.is_leader_dead() => false,
                Ok(None) => {
                    pause.wait();
                    true
                }
            };
        }
        // Nothing happens to a process that has ended by its signal.
        self.kill_now();
    }

    fn is_leader_dead(&self) -> bool {
        Status::of_process(self.pid()).map_or(true, |status| matches!(status.state(), 'Z' | 'X'))
    }
}

/// The same for a process that stands still without us: it ends when it is continued.
#[must_use]
pub fn doom_of_parked(pid: i32) -> Option<Doom> {
    if !may_be_doomed(pid, pid) {
        return None;
    }
    let tids = procfs::tids(pid).unwrap_or_default();
    tids.into_iter().find_map(|tid| doom_of(pid, tid))
}

/// Whether a look at every thread is worth its while. What is pending for one of them alone is
/// looked at only where something deadly is pending for all or for the first (the SIGSTOPs of an
/// armed target are not): usually nothing is, and a look costs one small file for each thread,
/// five times a second.
fn may_be_doomed(pid: i32, first: i32) -> bool {
    let status = Status::of_thread(pid, first);
    status.is_ok_and(|it| (it.signals("ShdPnd") | it.signals("SigPnd")) & !harmless() != 0)
}

fn doom_of(pid: i32, tid: i32) -> Option<Doom> {
    let status = Status::of_thread(pid, tid).ok()?;
    // The first process of a pid namespace, whose last number there is 1, ignores what it has no
    // handler for.
    let ids = status.field("NSpid").unwrap_or_default();
    if ids.split_whitespace().next_back() == Some("1") {
        return None;
    }
    let handled = status.signals("SigBlk") | status.signals("SigIgn") | status.signals("SigCgt");
    let deadly = (status.signals("SigPnd") | status.signals("ShdPnd")) & !handled & !harmless();
    (deadly != 0).then(|| Doom {
        signal: deadly.trailing_zeros().cast_signed() + 1,
        tid,
    })
}

fn harmless() -> u64 {
    HARMLESS
        .iter()
        .fold(0, |set, signal| set | 1 << (signal - 1))
}
