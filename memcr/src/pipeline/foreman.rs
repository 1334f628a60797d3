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

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::pipeline::crew::{Stop, answer};
use crate::pipeline::links::Chain;
use crate::pipeline::{PipelineError, Result};

/// Room for the deepest call of a plugin we know of, some ten times over. Only pages
/// that are used take memory.
pub(super) const STACK_LEN: usize = 1 << 20;

type Job = Box<dyn FnOnce(&mut Floor) + Send>;

/// What the foreman keeps: the reference to the handles that is dropped last.
#[derive(Default)]
pub(super) struct Floor {
    pub(super) chain: Option<Arc<Chain>>,
}

/// A thread that does jobs one by one. Dropping it waits for the last.
pub(super) struct Foreman {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// It, or a worker that holds what it would wait for, does not come back.
    abandoned: AtomicBool,
}

impl Foreman {
    pub(super) fn start() -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = spawn("memcr-foreman".into(), move || {
            let mut floor = Floor::default();
            // A job that panics drops its answer channel, which tells the caller.
            inbox
                .iter()
                .for_each(|job| drop(catch_unwind(AssertUnwindSafe(|| job(&mut floor)))));
        })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            abandoned: AtomicBool::new(false),
        })
    }

    /// Does `job` on the foreman's thread and waits for its answer.
    pub(super) fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let inbox = self.send(job)?;
        inbox.recv().unwrap_or_else(|_| Err(no_answer()))
    }

    /// The same while the target stands still: once `stop` is set the answer has to come
    /// soon, or the foreman is left to itself.
    pub(super) fn run_until<R: Send + 'static>(
        &self,
        stop: &Stop,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let inbox = self.send(job)?;
        if let Some(answer) = answer(&inbox, stop) {
            return answer;
        }
        self.abandon();
        stop.take()?;
        Err(no_answer())
    }

    /// Nothing is asked of it any more, and nobody waits for its end.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }

    fn send<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Floor) -> Result<R> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<R>>> {
        let (answer, inbox) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |floor| drop(answer.send(job(floor))));
        match &self.jobs {
            Some(jobs) if !self.is_abandoned() && jobs.send(job).is_ok() => Ok(inbox),
            _ => Err(no_answer()),
        }
    }

    /// Does `job` with the chain.
    pub(super) fn with_chain<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Chain>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run(|floor| match &floor.chain {
            Some(chain) => job(chain),
            None => Err(PipelineError::Panicked("the foreman has no chain".into())),
        })
    }
}

impl Drop for Foreman {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && !self.is_abandoned()
        {
            // Its jobs' panics are caught; a panic of a drop on it was printed by then.
            let _ = thread.join();
        }
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
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn answers_come_from_another_thread_and_a_panic_is_an_error() {
        let foreman = Foreman::start().unwrap();
        let there = foreman.run(|_| Ok(std::thread::current().id())).unwrap();
        assert_ne!(there, std::thread::current().id());
        let error = foreman
            .run(|_| -> Result<()> { panic!("ouch") })
            .unwrap_err();
        assert!(matches!(error, PipelineError::Panicked(_)), "{error}");
        assert_eq!(foreman.run(|_| Ok(7)).unwrap(), 7);
    }
}
