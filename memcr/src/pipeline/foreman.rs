//! The one thread that makes and ends the handles of a pipeline.
//!
//! ```text
//!   tracer thread                    foreman                      workers
//!   ──run(job)──▶ channel ──▶ create, begin_*, open, commit,     encode, decode,
//!   ◀──answer─────────────    locator, remove, destroy           write_at, read_at
//!   (waits)
//! ```
//!
//! The caller is the tracer of a frozen target: all its ptrace calls must come from its
//! one thread, and a plugin that ran there could wait in it, unblock its signals or take
//! its exits. So no call into a plugin is ever made on it, not even by a drop: whatever
//! holds the last reference to a handle, the [`Floor`] outlives it and is dropped here.
//!
//! A call that does not come back takes the foreman with it: his caller goes on after the
//! stall limit, and nobody waits for his end. Should he come back he takes up the next job.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::pipeline::calls::Calls;
use crate::pipeline::crew::{GLANCE, Stop, answer};
use crate::pipeline::links::{Chain, Link};
use crate::pipeline::{PipelineError, Result};

/// Room for the deepest call of a plugin we know of, some ten times over. Only pages
/// that are used take memory.
pub(super) const STACK_LEN: usize = 1 << 20;

/// How long the end of handles may take beside a call that was left behind, which may be
/// the foreman's own. It takes microseconds, but for a sink that unmounts something.
const SETTLE: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce(&mut Floor) + Send>;

/// What the foreman keeps: the reference to the handles that is dropped last.
#[derive(Default)]
pub(super) struct Floor {
    pub(super) chain: Option<Arc<Chain>>,
}

impl Floor {
    /// The sink of his chain.
    pub(super) fn sink(&self) -> Result<&Link> {
        self.chain()?.sink()
    }

    /// All of it.
    pub(super) fn chain(&self) -> Result<&Arc<Chain>> {
        let missing = || PipelineError::Panicked("the foreman has no chain".into());
        self.chain.as_ref().ok_or_else(missing)
    }
}

/// A thread that does jobs one by one. Dropping it waits for the last.
pub(super) struct Foreman {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Ends with the thread.
    gone: Mutex<mpsc::Receiver<()>>,
    calls: Arc<Calls>,
    /// Jobs that were sent and have not ended.
    n_jobs: Arc<AtomicUsize>,
}

impl Foreman {
    /// A foreman that is waited for as long as `calls` come back.
    pub(super) fn start(calls: Arc<Calls>) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (here, gone) = mpsc::channel();
        let thread = spawn("memcr-foreman".into(), move || {
            let mut floor = Floor::default();
            // A job that panics drops its answer channel, which tells the caller.
            inbox
                .iter()
                .for_each(|job| drop(catch_unwind(AssertUnwindSafe(|| job(&mut floor)))));
            drop((floor, here));
        })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            gone: Mutex::new(gone),
            calls,
            n_jobs: Arc::default(),
        })
    }

    /// The calls he waits for.
    pub(super) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Does `job` on the foreman's thread and waits for its answer, as long as anything
    /// comes back.
    pub(super) fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if let Some(left) = self.calls.left() {
            return Err(left);
        }
        self.wait(&self.send(job)?)
    }

    /// The same for a job that concerns the sink alone: other stages may hang meanwhile.
    pub(super) fn run_in_sink<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if let Some(left) = self.calls.left_in_sink() {
            return Err(left);
        }
        // He may be the one that hangs in a stage.
        if let Some(left) = self.calls.left().filter(|_| self.n_jobs.load(SeqCst) > 0) {
            return Err(left);
        }
        self.wait(&self.send(job)?)
    }

    fn wait<R>(&self, inbox: &mpsc::Receiver<Result<R>>) -> Result<R> {
        loop {
            match inbox.recv_timeout(GLANCE) {
                Ok(answer) => return answer,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(no_answer()),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Some(stalled) = self.calls.stalled() {
                self.calls.leave();
                return Err(stalled);
            }
        }
    }

    /// The same for what somebody may stop: once `stop` is set the answer has to come
    /// soon, or the foreman is left behind.
    pub(super) fn run_until<R: Send + 'static>(
        &self,
        stop: &Stop,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if let Some(left) = self.calls.left() {
            return Err(left);
        }
        let inbox = self.send(job)?;
        if let Some(answer) = answer(&inbox, stop) {
            return answer;
        }
        self.calls.leave();
        stop.take()?;
        Err(no_answer())
    }

    /// Does `job` when he comes to it, whatever was left behind. Nobody waits.
    pub(super) fn post(&self, job: impl FnOnce(&mut Floor) + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // A foreman who is gone has nothing any more that a job could be about.
            let _ = jobs.send(Box::new(job));
        }
    }

    fn send<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<R>>> {
        let (answer, inbox) = mpsc::sync_channel(1);
        let ended = Ended(Arc::clone(&self.n_jobs));
        self.n_jobs.fetch_add(1, SeqCst);
        let job: Job = Box::new(move |floor| {
            let result = job(floor);
            drop(ended);
            drop(answer.send(result));
        });
        match &self.jobs {
            Some(jobs) if jobs.send(job).is_ok() => Ok(inbox),
            _ => Err(no_answer()),
        }
    }

    /// Does `job` with the chain.
    pub(super) fn with_chain<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Chain>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run(|floor| job(floor.chain()?))
    }

    /// Does `job` with the sink.
    pub(super) fn with_sink<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Link) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run_in_sink(|floor| job(floor.sink()?))
    }
}

impl Drop for Foreman {
    fn drop(&mut self) {
        self.jobs = None;
        let gone = self.gone.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = self.calls.left().is_some();
            match gone.recv_timeout(if left { SETTLE } else { GLANCE }) {
                Err(mpsc::RecvTimeoutError::Timeout) if !left && self.calls.stalled().is_none() => {
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return,
                _ => break,
            }
        }
        if let Some(thread) = self.thread.take() {
            // Its jobs' panics are caught; a panic of a drop on it was printed by then.
            let _ = thread.join();
        }
    }
}

/// One job less, also when it panics or is never begun.
struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn no_answer() -> PipelineError {
    PipelineError::Panicked("the foreman gave no answer".into())
}

pub(super) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let doing = format!("start the thread {name}");
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK_LEN)
        .spawn(body)
        .map_err(|source| PipelineError::Resource { doing, source })
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pipeline::calls::Who;

    #[test]
    fn answers_come_from_another_thread_and_a_panic_is_an_error() {
        let foreman = Foreman::start(Arc::new(Calls::new(None))).unwrap();
        let there = foreman.run(|_| Ok(std::thread::current().id())).unwrap();
        assert_ne!(there, std::thread::current().id());
        let error = foreman
            .run(|_| -> Result<()> { panic!("ouch") })
            .unwrap_err();
        assert!(matches!(error, PipelineError::Panicked(_)), "{error}");
        assert_eq!(foreman.run(|_| Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_job_that_hangs_is_left_and_asked_for_again_when_it_came_back() {
        let calls = Arc::new(Calls::new(Some(Duration::from_millis(50))));
        let foreman = Foreman::start(Arc::clone(&calls)).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (watched, came_back) = (Arc::clone(&calls), mpsc::channel());
        let job = move |_: &mut Floor| {
            let under_way = watched.enter(&Who::sink("nfs"), "sink_read_at");
            let _ = held.recv();
            drop(under_way);
            let _ = came_back.0.send(());
            Ok(())
        };
        let error = foreman.run(job).unwrap_err();
        assert!(matches!(&error, PipelineError::Stalled { who, .. } if who == "sink `nfs`"));
        let again = foreman.run(|_| Ok(1)).unwrap_err();
        assert!(matches!(again, PipelineError::Stalled { .. }), "{again}");
        drop(release);
        came_back.1.recv().unwrap();
        assert_eq!(foreman.run(|_| Ok(2)).unwrap(), 2);
    }

    #[test]
    fn a_foreman_that_hangs_is_not_waited_for() {
        let calls = Arc::new(Calls::new(Some(Duration::from_millis(50))));
        let foreman = Foreman::start(Arc::clone(&calls)).unwrap();
        let (_release, held) = mpsc::channel::<()>();
        foreman.post(move |_| {
            let _under_way = calls.enter(&Who::sink("nfs"), "destroy");
            let _ = held.recv();
        });
        drop(foreman);
    }
}
