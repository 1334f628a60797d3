//! An exec of the target that must not wait for us while we wait for it.
//!
//! ```text
//!  thread of the target           we
//!  execve: takes cred_guard_mutex
//!    ends the other threads ───▶  one that we trace is dead, and waits to be noticed
//!    waits until they are gone    PTRACE_SEIZE of the next one: waits for that mutex
//! ```
//!
//! Both would wait for ever (ptrace(2), "BUGS"), and the request cannot be interrupted
//! for good. Any thread of ours may take notice of the death, so another one does as long
//! as we attach.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::sys::wait;

/// A request that takes so long may be waiting for an exec. Most take microseconds.
const PATIENCE: Duration = Duration::from_millis(20);

/// The other thread. It ends when this is dropped.
pub(super) struct Witness(Option<(Sender<()>, JoinHandle<()>)>);

impl Witness {
    /// Calls one that takes notice of the deaths of `tids`, tracees or soon to be some.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn call(tids: Vec<i32>) -> std::io::Result<Self> {
        let (stay, end) = channel();
        let thread = Builder::new()
            .name("witness".into())
            .spawn(move || watch(&tids, &end))?;
        Ok(Self(Some((stay, thread))))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some((stay, thread)) = self.0.take() {
            drop(stay);
            // It cannot panic, and there is nothing to be learnt from it.
            let _ = thread.join();
        }
    }
}

fn watch(tids: &[i32], end: &Receiver<()>) {
    while end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        for &tid in tids {
            // Not one of ours, or not yet: then there is nothing to notice.
            let _ = wait::take_end(tid);
        }
    }
}
