//! Holding: waiting for the order to restore, while the target may be told to die.
//!
//! A signal that arrives at a thread in a ptrace stop stays pending and is delivered at
//! release, with all memory there. One that ends the process by default is not worth a
//! restore: it is delivered at once, to the one thread that takes it, and the parent
//! sees the target end by that signal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Held;
use crate::freeze::Doom;
use crate::pipeline::{Cancel, CancelReason};

/// How often pending signals are looked at. Nothing tells that a signal has become
/// pending at a stopped thread; five looks a second cost next to nothing, and a target
/// that is to die anyway can wait that long.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldEvent {
    /// The descriptor is readable (or at its end): restore.
    Wake,
    /// Somebody wants memcr to end.
    Cancelled(CancelReason),
    /// The target ended, by this signal if it is known. [`crate::restore::restore`] then
    /// removes the image and says so.
    TargetExited(Option<i32>),
}

/// Why a target cannot be held any longer.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Waiting itself failed.
    #[error("cannot wait for the order to restore")]
    Poll(#[source] io::Error),
}

impl Held {
    /// Waits until `wake` is readable, `cancel` is set, or the target ends; looks after
    /// signals every `pace` ([`LOOK_EVERY`]).
    ///
    /// # Errors
    /// When waiting fails; the target is held as before.
    pub fn wait(
        &mut self,
        wake: BorrowedFd<'_>,
        pace: Duration,
        cancel: &Cancel,
    ) -> Result<HeldEvent, HoldError> {
        loop {
            if let Some(event) = self.look(cancel) {
                return Ok(event);
            }
            if self.is_readable(wake, pace)? {
                // The target may have been told to die a moment before.
                return Ok(self.look(cancel).unwrap_or(HeldEvent::Wake));
            }
        }
    }

    /// Waits for `pause`, or until `cancel` is set or the target ends.
    pub fn pause(&mut self, pause: Duration, cancel: &Cancel) -> Option<HeldEvent> {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            if let Some(event) = self.look(cancel) {
                return Some(event);
            }
            let mut fds = [PollFd::from_borrowed_fd(
                self.frozen.target().as_fd(),
                PollFlags::IN,
            )];
            // Whatever ends it, a signal included: look again.
            let _ = poll(&mut fds, Some(&timespec(LOOK_EVERY)));
        }
        None
    }

    /// Waits until `wake` or the target's descriptor is readable, or it is time to look.
    fn is_readable(&self, wake: BorrowedFd<'_>, pace: Duration) -> Result<bool, HoldError> {
        let mut fds = [
            PollFd::new(&wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.frozen.target().as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timespec(pace))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(error) => Err(HoldError::Poll(error.into())),
        }
    }

    fn look(&mut self, cancel: &Cancel) -> Option<HeldEvent> {
        if let Some(signal) = self.ended() {
            return Some(HeldEvent::TargetExited(signal));
        }
        self.frozen.arm_again();
        cancel.reason().map(HeldEvent::Cancelled)
    }

    /// `Some`: the target has ended, or was about to and has now, by this signal.
    pub(crate) fn ended(&mut self) -> Option<Option<i32>> {
        if self.frozen.has_ended() {
            return Some(self.frozen.exit_signal());
        }
        let doom: Doom = self.frozen.doom()?;
        self.frozen.let_die(doom);
        Some(Some(doom.signal))
    }
}

/// Paces are far below what a clock can hold.
fn timespec(pace: Duration) -> Timespec {
    Timespec::try_from(pace).unwrap_or_default()
}
