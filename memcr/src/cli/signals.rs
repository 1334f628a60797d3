//! Signals and the time limit: what ends the work early.
//!
//! ```text
//!   main ── block INT TERM HUP QUIT ──▶ every thread after it inherits the mask
//!     └── thread "signals": signalfd ──signal──▶ cancel(Interrupted)
//!                           poll ──deadline──▶ cancel(TimedOut), unless disarmed
//!                           eventfd ──end()──▶ the thread ends, signals stay pending
//! ```
//!
//! What a signal does depends on when it comes:
//!
//! * during the checkpoint it stops the work, which is undone: the target runs on;
//! * while the target is held it ends the waiting, like Enter: the target is restored.
//!   Going away and leaving it frozen would serve nobody, and killing it even less;
//! * during the restore it changes nothing. There is no better end than the restore's,
//!   and half of one would be none.
//!
//! A blocked signal cannot interrupt a system call in the rooms that touch the target,
//! so no call there needs to expect one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::pipeline::{Cancel, CancelReason};

/// The signals by which people and supervisors end a program.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// The thread that watches. Dropped, it watches on until the process ends.
#[derive(Debug)]
pub(crate) struct Watch {
    limit: Limit,
    ending: OwnedFd,
    thread: JoinHandle<()>,
}

impl Watch {
    /// The work is done: the limit no longer counts. Afterwards the token is not set
    /// because of it any more.
    pub(crate) fn disarm(&self) {
        self.limit.disarm();
    }

    /// Ends the thread: what is held for hours needs none. Signals that come later are
    /// blocked and stay pending.
    pub(crate) fn end(self) {
        self.disarm();
        // It fails only where the counter is full, and then the thread wakes up as well.
        let _ = rustix::io::write(&self.ending, &1u64.to_ne_bytes());
        if self.thread.join().is_err() {
            tracing::warn!("the thread that watched for signals has panicked");
        }
    }
}

/// The time limit as long as it stands.
#[derive(Debug, Clone)]
struct Limit(Arc<Mutex<Option<Instant>>>);

impl Limit {
    fn disarm(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How long to wait; `None`: for ever.
    fn left(&self) -> Option<Duration> {
        let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Sets the token if the limit has passed and still stands. The lock is held over
    /// both, so that `disarm` cannot come in between.
    fn enforce(&self, cancel: &Cancel) {
        let mut deadline = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            cancel.cancel(CancelReason::TimedOut);
            *deadline = None;
        }
    }
}

/// Sets `cancel` when a signal arrives or `limit` has passed. To be called before any
/// other thread is started.
///
/// # Errors
/// When the kernel gives no descriptor or no thread.
pub(crate) fn watch(cancel: &Cancel, limit: Option<Duration>) -> io::Result<Watch> {
    let signals = listen()?;
    let limit = Limit(Arc::new(Mutex::new(
        limit.and_then(|limit| Instant::now().checked_add(limit)),
    )));
    let ending = eventfd(0, EventfdFlags::CLOEXEC)?;
    let end = ending.try_clone()?;
    let (thread_limit, cancel) = (limit.clone(), cancel.clone());
    let thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || wait(&signals, &end, &thread_limit, &cancel))?;
    Ok(Watch {
        limit,
        ending,
        thread,
    })
}

/// A descriptor for the signals that end a program. From now on this thread, and all that it
/// starts, have them blocked.
///
/// # Errors
/// When the kernel gives no descriptor.
pub(crate) fn listen() -> io::Result<SignalFd> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| {
        let text = format!("cannot read /proc/self/status: {error}");
        io::Error::new(error.kind(), text)
    })?;
    let mask = wanted(&status);
    mask.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&mask, flags)?)
}

/// The signals to watch. Who started us with one ignored (`nohup`, a shell's `&`) meant
/// that, but a signal that is blocked reaches a signalfd although it is ignored.
fn wanted(status: &str) -> SigSet {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let bit = |signal: &Signal| 1u64 << (*signal as i32 - 1);
    ENDING
        .into_iter()
        .filter(|signal| ignored & bit(signal) == 0)
        .collect()
}

fn wait(signals: &SignalFd, end: &OwnedFd, limit: &Limit, cancel: &Cancel) {
    loop {
        // Rounded up by a millisecond: waking before the deadline would only mean
        // another round.
        let left = limit.left().map(|left| left + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        // An error here (EINTR after a stop and continue) is a round without news.
        let heard = poll(&mut fds, timeout.as_ref()).is_ok();
        if heard && !fds[1].revents().is_empty() {
            return;
        }
        limit.enforce(cancel);
        while let Ok(Some(info)) = signals.read_signal() {
            tracing::debug!("signal {} from pid {}", info.ssi_signo, info.ssi_pid);
            cancel.cancel(CancelReason::Interrupted);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limit(from_now: Duration) -> Limit {
        Limit(Arc::new(Mutex::new(Some(Instant::now() + from_now))))
    }

    #[test]
    fn a_limit_that_has_passed_cancels() {
        let cancel = Cancel::new();
        limit(Duration::ZERO).enforce(&cancel);
        assert_eq!(cancel.reason(), Some(CancelReason::TimedOut));
    }

    #[test]
    fn a_limit_that_stands_or_was_disarmed_does_not() {
        let cancel = Cancel::new();
        limit(Duration::from_secs(3600)).enforce(&cancel);
        let disarmed = limit(Duration::ZERO);
        disarmed.disarm();
        disarmed.enforce(&cancel);
        assert_eq!((cancel.reason(), disarmed.left()), (None, None));
    }

    #[test]
    fn ignored_signals_stay_ignored() {
        // SIGHUP is 1, SIGINT 2.
        let set = wanted("Name:\tx\nSigIgn:\t0000000000000003\n");
        assert!(!set.contains(Signal::SIGHUP) && !set.contains(Signal::SIGINT));
        assert!(set.contains(Signal::SIGTERM) && set.contains(Signal::SIGQUIT));
    }
}
