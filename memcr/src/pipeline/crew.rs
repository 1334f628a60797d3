//! The workers of an encoder or decoder: starting and ending them, the first failure,
//! and taking turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::pipeline::calls::Calls;
use crate::pipeline::foreman::{panic_text, spawn};
use crate::pipeline::{Cancel, PipelineError, Priority, Result};
use crate::sys::gettid;

/// How long a wait lasts before the cancel token is looked at again. What is waited for
/// ends it at once.
pub(super) const GLANCE: Duration = Duration::from_millis(20);

/// How long work that was stopped may take to come to an end. A stage or a sink that has
/// not come back by then is left behind: the target must not stand still because of it.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// The work was stopped; why is in its [`Stop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

/// How a step of a worker ends early.
#[derive(Debug)]
pub(super) enum Halt {
    Failed(PipelineError),
    Stopped,
}

impl From<PipelineError> for Halt {
    fn from(error: PipelineError) -> Self {
        Self::Failed(error)
    }
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Why work stopped: the first failure, shared by the workers and their caller.
pub(super) struct Stop {
    cancel: Cancel,
    calls: Arc<Calls>,
    failed: AtomicBool,
    first: Mutex<Option<PipelineError>>,
}

impl Stop {
    pub(super) fn new(cancel: Cancel, calls: Arc<Calls>) -> Self {
        Self {
            cancel,
            calls,
            failed: AtomicBool::new(false),
            first: Mutex::new(None),
        }
    }

    /// The calls that the work is made of.
    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Whether to go on. The first to see the cancel token, or that nothing comes back
    /// any more, makes it the failure.
    pub(super) fn check(&self) -> std::result::Result<(), Stopped> {
        if let Some(reason) = self.cancel.reason() {
            self.fail(PipelineError::Cancelled(reason));
        }
        if let Some(stalled) = self.calls.stalled() {
            self.fail(stalled);
        }
        if self.failed.load(Relaxed) {
            Err(Stopped)
        } else {
            Ok(())
        }
    }

    /// The first failure stays, but for one thing: that the bytes are lost counts more
    /// than that somebody cancelled or a page could not be written.
    pub(super) fn fail(&self, error: PipelineError) {
        let mut first = guard(&self.first);
        let was_failed = self.failed.swap(true, Relaxed);
        let worse = error.is_corrupt() && !first.as_ref().is_some_and(PipelineError::is_corrupt);
        if !was_failed || (worse && first.is_some()) {
            *first = Some(error);
        }
    }

    /// The failure, once; afterwards only that there was one.
    pub(super) fn take(&self) -> Result<()> {
        match guard(&self.first).take() {
            Some(error) => Err(error),
            None if self.failed.load(Relaxed) => {
                Err(PipelineError::Ended("its failure was reported before"))
            }
            None => Ok(()),
        }
    }

    /// Keeps a failure of a step, if it was one.
    pub(super) fn note(
        &self,
        ended: std::result::Result<(), Halt>,
    ) -> std::result::Result<(), Stopped> {
        match ended {
            Ok(()) => Ok(()),
            Err(Halt::Stopped) => Err(Stopped),
            Err(Halt::Failed(error)) => {
                self.fail(error);
                Err(Stopped)
            }
        }
    }
}

/// Lets workers through one by one, in the order of their numbers. A worker waits only
/// for lower numbers, and numbers are handed out in order, so the lowest never waits.
pub(super) struct Turnstile {
    next: Mutex<u64>,
    moved: Condvar,
}

impl Turnstile {
    pub(super) fn new() -> Self {
        Self {
            next: Mutex::new(0),
            moved: Condvar::new(),
        }
    }

    /// Waits until it is `number`'s turn.
    pub(super) fn wait(&self, number: u64, stop: &Stop) -> std::result::Result<(), Stopped> {
        let mut next = guard(&self.next);
        loop {
            stop.check()?;
            if *next == number {
                return Ok(());
            }
            next = self
                .moved
                .wait_timeout(next, GLANCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends the turn of the worker that is through.
    pub(super) fn pass(&self) {
        *guard(&self.next) += 1;
        self.moved.notify_all();
    }
}

/// Threads that do the same work.
pub(super) struct Crew {
    threads: Vec<JoinHandle<()>>,
    tids: Arc<[i32]>,
    /// Ends when every thread has dropped its end.
    gone: mpsc::Receiver<()>,
}

impl Crew {
    /// Starts `n` threads of this priority. Each makes its tools and reports; then it works.
    /// Answers when all are ready; when one cannot be, all have ended.
    pub(super) fn start<T>(
        n: usize,
        priority: Priority,
        stop: &Arc<Stop>,
        tools: impl Fn() -> Result<T> + Send + Sync + 'static,
        work: impl Fn(usize, T) + Send + Sync + 'static,
    ) -> Result<Self> {
        let (ready, inbox) = mpsc::channel();
        let (here, gone) = mpsc::channel();
        let body = Arc::new((tools, work));
        let mut crew = Self {
            threads: Vec::with_capacity(n),
            tids: Arc::default(),
            gone,
        };
        let mut failure = None;
        for number in 0..n {
            let (ready, body, stop) = (ready.clone(), Arc::clone(&body), Arc::clone(stop));
            let here = here.clone();
            match spawn(format!("memcr-worker-{number}"), move || {
                hold_back(number, priority);
                worker(number, ready, &body, &stop);
                drop((body, here));
            }) {
                Ok(thread) => crew.threads.push(thread),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        drop((ready, here));
        let ready = match failure {
            None => all_ready(&inbox, n, stop),
            Some(error) => Err(error),
        };
        match ready {
            Ok(tids) => {
                crew.tids = tids.into();
                Ok(crew)
            }
            Err(error) => {
                stop.fail(PipelineError::Ended("the crew was not complete"));
                crew.leave(stop);
                Err(error)
            }
        }
    }

    /// The ids of its threads.
    pub(super) fn tids(&self) -> &Arc<[i32]> {
        &self.tids
    }

    /// Waits until all threads have ended. `false`: the work was stopped, and some thread
    /// has not come back from a stage within [`GRACE`]; it is left to itself.
    pub(super) fn leave(self, stop: &Stop) -> bool {
        // Nobody sends: the answer is that all ends are gone, or that time has run out.
        let _ = answer(&self.gone, stop);
        let gone = matches!(self.gone.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        if !gone {
            stop.calls.leave();
            return false;
        }
        for thread in self.threads {
            // Panics were caught and noted by `worker`.
            let _ = thread.join();
        }
        true
    }
}

/// Waits until `n` threads have said that they are ready, and who they are, or one that it cannot
/// be.
fn all_ready(inbox: &mpsc::Receiver<Result<i32>>, n: usize, stop: &Stop) -> Result<Vec<i32>> {
    let mut tids = Vec::with_capacity(n);
    for _ in 0..n {
        match answer(inbox, stop) {
            Some(ready) => tids.push(ready?),
            // It panicked, which is noted, or does not come back.
            None => {
                stop.take()?;
                break;
            }
        }
    }
    Ok(tids)
}

/// Waits for an answer on `inbox`. Once the work is stopped it has to come within
/// [`GRACE`]; `None`: it did not, or nobody is there to give it.
pub(super) fn answer<T>(inbox: &mpsc::Receiver<T>, stop: &Stop) -> Option<T> {
    let mut deadline = None;
    loop {
        match inbox.recv_timeout(GLANCE) {
            Ok(answer) => return Some(answer),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) if stop.check().is_ok() => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if now >= *deadline.get_or_insert(now + GRACE) {
                    return None;
                }
            }
        }
    }
}

/// A priority that cannot be had costs others some time and the target nothing: it is told,
/// once, and the work is done.
fn hold_back(number: usize, priority: Priority) {
    if let Err(error) = priority.take()
        && number == 0
    {
        tracing::warn!("the checkpoint does not let others go first: {error}");
    }
}

/// A panic of ours on a worker ends the work as a failure, not the process.
fn worker<T>(
    number: usize,
    ready: mpsc::Sender<Result<i32>>,
    body: &(impl Fn() -> Result<T>, impl Fn(usize, T)),
    stop: &Stop,
) {
    let run = catch_unwind(AssertUnwindSafe(|| match (body.0)() {
        Ok(tools) => {
            let _ = ready.send(Ok(gettid()));
            drop(ready);
            (body.1)(number, tools);
        }
        Err(error) => drop(ready.send(Err(error))),
    }));
    if let Err(panic) = run {
        stop.fail(PipelineError::Panicked(panic_text(&*panic)));
    }
}

/// The data behind our locks stays consistent at every step, and a panic becomes the
/// failure of the whole work: so a poisoned lock is only a lock.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pipeline::{CancelReason, Place};

    fn stop() -> Arc<Stop> {
        Arc::new(Stop::new(Cancel::new(), Arc::new(Calls::new(None))))
    }

    fn corrupt() -> PipelineError {
        PipelineError::Corrupt {
            place: Place::Step("test"),
            what: "x".into(),
        }
    }

    #[test]
    fn turns_are_taken_in_order() {
        let (turnstile, stop, seen) = (Turnstile::new(), stop(), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for number in [3, 1, 0, 2] {
                let (turnstile, stop, seen) = (&turnstile, &stop, &seen);
                scope.spawn(move || {
                    turnstile.wait(number, stop).unwrap();
                    guard(seen).push(number);
                    turnstile.pass();
                });
            }
        });
        assert_eq!(*guard(&seen), [0, 1, 2, 3]);
    }

    #[test]
    fn a_waiting_worker_leaves_when_the_work_is_cancelled() {
        let cancel = Cancel::new();
        let stop = Stop::new(cancel.clone(), Arc::new(Calls::new(None)));
        let turnstile = Turnstile::new();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| turnstile.wait(5, &stop));
            cancel.cancel(CancelReason::TimedOut);
            cancel.cancel(CancelReason::Interrupted);
            assert_eq!(waiter.join().unwrap(), Err(Stopped));
        });
        assert!(matches!(
            stop.take(),
            Err(PipelineError::Cancelled(CancelReason::TimedOut))
        ));
    }

    #[test]
    fn the_first_failure_stays_unless_bytes_are_lost() {
        let stop = stop();
        stop.fail(PipelineError::Panicked("first".into()));
        stop.fail(PipelineError::Panicked("second".into()));
        assert!(matches!(stop.take(), Err(PipelineError::Panicked(text)) if text == "first"));
        stop.fail(corrupt());
        assert!(
            !stop.take().unwrap_err().is_corrupt(),
            "it was reported before"
        );
        let stop = self::stop();
        stop.fail(PipelineError::Panicked("first".into()));
        stop.fail(corrupt());
        stop.fail(PipelineError::Panicked("third".into()));
        assert!(stop.take().unwrap_err().is_corrupt());
    }

    #[test]
    fn a_crew_with_a_member_that_cannot_start_ends() {
        let n = Arc::new(Mutex::new(0));
        let count = Arc::clone(&n);
        let tools = move || {
            let mut n = guard(&count);
            *n += 1;
            if *n == 2 { Err(corrupt()) } else { Ok(()) }
        };
        assert!(
            Crew::start(3, Priority::Normal, &stop(), tools, |_, ()| {})
                .is_err_and(|e| e.is_corrupt())
        );
        assert_eq!(*guard(&n), 3);
    }

    #[test]
    fn a_worker_that_does_not_come_back_is_left_behind() {
        let stop = stop();
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let work = move |number, ()| {
            if number == 0 {
                let _ = guard(&held).recv();
            }
        };
        let crew = Crew::start(2, Priority::Normal, &stop, || Ok(()), work).unwrap();
        stop.fail(corrupt());
        assert!(!crew.leave(&stop));
        drop(release);
        let crew = Crew::start(2, Priority::Normal, &stop, || Ok(()), |_, ()| {}).unwrap();
        assert!(crew.leave(&stop));
    }

    #[test]
    fn a_panic_of_a_worker_is_the_failure() {
        let stop = stop();
        let work = |number, ()| assert_eq!(number, 0, "wrong number");
        let crew = Crew::start(2, Priority::Normal, &stop, || Ok(()), work).unwrap();
        assert!(crew.leave(&stop));
        assert!(
            matches!(stop.take(), Err(PipelineError::Panicked(text)) if text.contains("wrong number"))
        );
    }
}
