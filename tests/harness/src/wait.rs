//! Waiting for conditions. The only place of the tests with a sleep in it, and that one
//! only paces the polling of things the kernel offers no event for.

use crate::{Result, Trouble};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung. Never reached in a good run,
/// so it is generous: test machines are slow and shared.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Pace of polling.
const PACE: Duration = Duration::from_millis(2);

/// Waits until `done` answers true.
///
/// # Errors
/// `what` after [`DEADLINE`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) -> Result {
    until_some(what, || done().then_some(()))
}

/// Waits until `found` answers something.
///
/// # Errors
/// `what` after [`DEADLINE`].
pub fn until_some<T>(what: &str, found: impl FnMut() -> Option<T>) -> Result<T> {
    within(DEADLINE, what, found)
}

/// Waits until `found` answers something, for what comes soon or never.
///
/// # Errors
/// `what` after `deadline`.
pub fn within<T>(
    deadline: Duration,
    what: &str,
    mut found: impl FnMut() -> Option<T>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if begin.elapsed() > deadline {
            return Err(Trouble::Failed(format!(
                "waited {} s for: {what}",
                deadline.as_secs()
            )));
        }
        std::thread::sleep(PACE);
    }
}
