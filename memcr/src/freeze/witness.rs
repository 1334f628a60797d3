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
pub(super) struct Witness(Option<(Sender<Vec<i32>>, JoinHandle<()>)>);

/// Takes notice of deaths as long as it lives.
pub(super) struct Watch<'a>(&'a Witness);

impl Witness {
    /// Calls one, which does nothing yet.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn call() -> std::io::Result<Self> {
        let (orders, inbox) = channel();
        let thread = Builder::new()
            .name("witness".into())
            .spawn(move || obey(&inbox))?;
        Ok(Self(Some((orders, thread))))
    }

    /// From now on notice is taken of the deaths of `tids`, tracees or soon to be some.
    pub(super) fn watch(&self, tids: Vec<i32>) -> Watch<'_> {
        self.order(tids);
        Watch(self)
    }

    fn order(&self, tids: Vec<i32>) {
        if let Some((orders, _)) = &self.0 {
            // It listens until we hang up.
            let _ = orders.send(tids);
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.order(Vec::new());
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some((orders, thread)) = self.0.take() {
            drop(orders);
            // It cannot panic, and there is nothing to be learnt from it.
            let _ = thread.join();
        }
    }
}

fn obey(inbox: &Receiver<Vec<i32>>) {
    let mut tids = Vec::new();
    loop {
        let order = if tids.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(PATIENCE)
        };
        match order {
            Ok(others) => tids = others,
            Err(RecvTimeoutError::Timeout) => take_notice(&tids),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn take_notice(tids: &[i32]) {
    for &tid in tids {
        // Not one of ours, or not yet: then there is nothing to notice.
        let _ = wait::take_end(tid);
    }
}
