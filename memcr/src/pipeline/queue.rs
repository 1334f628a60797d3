//! Chunks that wait for a worker: a queue whose end holds the caller back, until half of it is
//! gone. To be woken for each chunk would cost a worker its CPU each time.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::pages::{ChunkPlan, PageRun};
use crate::pipeline::crew::{GLANCE, Stop, Stopped, guard};

/// One chunk to encode.
pub(super) struct Job {
    pub(super) index: u64,
    /// No chunk follows.
    pub(super) last: bool,
    pub(super) plan: ChunkPlan,
}

/// A bounded queue from one caller to many workers, and the way back of emptied vectors.
pub(super) struct Queue {
    state: Mutex<State>,
    cap: usize,
    /// How long a wait lasts that nobody ends: [`GLANCE`].
    glance: Duration,
    /// A job or the end came.
    work: Condvar,
    /// Half of the jobs went, or the last of those that are there.
    room: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    /// Workers that wait for one, and whether the caller waits for them. To wake somebody takes a
    /// system call, be there anybody or not.
    n_idle: usize,
    is_caller_waiting: bool,
    closed: bool,
    spare: Vec<Vec<PageRun>>,
}

impl Queue {
    /// `cap` jobs wait at most. Room for as many spare vectors again, those of the workers.
    pub(super) fn new(cap: usize) -> Self {
        let state = State {
            jobs: VecDeque::with_capacity(cap),
            n_idle: 0,
            is_caller_waiting: false,
            closed: false,
            spare: Vec::with_capacity(2 * cap + 2),
        };
        Self {
            state: Mutex::new(state),
            cap,
            glance: GLANCE,
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// Waits, when it is full, until it is half empty.
    pub(super) fn push(&self, job: Job, stop: &Stop) -> Result<(), Stopped> {
        let mut state = guard(&self.state);
        loop {
            stop.check()?;
            if state.jobs.len() < self.cap {
                state.jobs.push_back(job);
                let is_waited_for = state.n_idle > 0;
                drop(state);
                if is_waited_for {
                    self.work.notify_one();
                }
                return Ok(());
            }
            state = self.wait_for_room(state);
        }
    }

    /// Waits until workers have taken all jobs that are there.
    pub(super) fn drain(&self, stop: &Stop) -> Result<(), Stopped> {
        let mut state = guard(&self.state);
        loop {
            stop.check()?;
            if state.jobs.is_empty() {
                return Ok(());
            }
            state = self.wait_for_room(state);
        }
    }

    /// Waits for a job; `None` at the end.
    pub(super) fn pop(&self, stop: &Stop) -> Result<Option<Job>, Stopped> {
        let mut state = guard(&self.state);
        loop {
            stop.check()?;
            if let Some(job) = state.jobs.pop_front() {
                let is_room = [0, self.cap / 2].contains(&state.jobs.len());
                let is_awaited = is_room && state.is_caller_waiting;
                // Whom it wakes wants it.
                drop(state);
                // There is one caller, and it cannot miss this: jobs go one at a time.
                if is_awaited {
                    self.room.notify_one();
                }
                return Ok(Some(job));
            }
            if state.closed {
                return Ok(None);
            }
            state.n_idle += 1;
            state = self.glance(&self.work, state);
            state.n_idle -= 1;
        }
    }

    fn wait_for_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.is_caller_waiting = true;
        state = self.glance(&self.room, state);
        state.is_caller_waiting = false;
        state
    }

    /// No job follows.
    pub(super) fn close(&self) {
        guard(&self.state).closed = true;
        self.work.notify_all();
    }

    /// Gives a vector back that a worker is done with.
    pub(super) fn give_back(&self, mut runs: Vec<PageRun>) {
        runs.clear();
        let mut state = guard(&self.state);
        if state.spare.len() < state.spare.capacity() {
            state.spare.push(runs);
        }
    }

    pub(super) fn spare(&self) -> Vec<PageRun> {
        guard(&self.state).spare.pop().unwrap_or_default()
    }

    fn glance<'a>(&self, condvar: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        condvar
            .wait_timeout(state, self.glance)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pages::{ChunkClass, RemoteAddr};
    use crate::pipeline::{Cancel, CancelReason};
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    fn calls() -> std::sync::Arc<crate::pipeline::calls::Calls> {
        std::sync::Arc::new(crate::pipeline::calls::Calls::new(None))
    }

    fn job(index: u64) -> Job {
        let class = ChunkClass {
            through_proc_mem: false,
            elide_zero: false,
            huge: false,
        };
        let runs = vec![PageRun {
            addr: RemoteAddr(4096),
            len_bytes: 4096,
        }];
        Job {
            index,
            last: false,
            plan: ChunkPlan { class, runs },
        }
    }

    #[test]
    fn the_caller_waits_while_the_queue_is_full() {
        let (queue, stop) = (Queue::new(2), Stop::new(Cancel::new(), calls()));
        let pushed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for index in 0..100 {
                    queue.push(job(index), &stop).unwrap();
                    pushed.fetch_add(1, SeqCst);
                }
                queue.close();
            });
            let mut next = 0;
            while let Some(job) = queue.pop(&stop).unwrap() {
                assert_eq!(job.index, next);
                next += 1;
                // Taken, waiting in the queue, and one whose count is yet to come.
                assert!(pushed.load(SeqCst) <= next + 2);
                queue.give_back(job.plan.runs);
            }
            assert_eq!(next, 100);
        });
        assert!(queue.spare().capacity() > 0);
    }

    #[test]
    fn the_caller_is_woken_when_half_is_gone() {
        let (mut queue, stop) = (Queue::new(4), Stop::new(Cancel::new(), calls()));
        // Whoever is not woken waits for ever.
        queue.glance = Duration::MAX;
        (0..4).for_each(|index| queue.push(job(index), &stop).unwrap());
        std::thread::scope(|scope| {
            let pusher = scope.spawn(|| (4..12).try_for_each(|i| queue.push(job(i), &stop)));
            for _ in 0..12 {
                queue.pop(&stop).unwrap().unwrap();
            }
            pusher.join().unwrap().unwrap();
        });
    }

    #[test]
    fn the_caller_is_woken_when_all_are_gone() {
        let (mut queue, stop) = (Queue::new(8), Stop::new(Cancel::new(), calls()));
        queue.glance = Duration::MAX;
        queue.drain(&stop).unwrap();
        (0..3).for_each(|index| queue.push(job(index), &stop).unwrap());
        let until = |is_so: &dyn Fn(&State) -> bool| {
            while !is_so(&guard(&queue.state)) {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| queue.drain(&stop));
            until(&|state| state.is_caller_waiting);
            (0..3).for_each(|_| drop(queue.pop(&stop).unwrap().unwrap()));
            caller.join().unwrap().unwrap();
            // And a worker, whose wait nobody else ends.
            let worker = scope.spawn(|| queue.pop(&stop));
            until(&|state| state.n_idle == 1);
            queue.push(job(3), &stop).unwrap();
            assert!(worker.join().unwrap().unwrap().is_some());
        });
    }

    #[test]
    fn both_sides_leave_when_cancelled() {
        let cancel = Cancel::new();
        let (queue, stop) = (Queue::new(1), Stop::new(cancel.clone(), calls()));
        queue.push(job(0), &stop).unwrap();
        std::thread::scope(|scope| {
            let pusher = scope.spawn(|| queue.push(job(1), &stop));
            cancel.cancel(CancelReason::Interrupted);
            assert_eq!(pusher.join().unwrap(), Err(Stopped));
        });
        assert!(queue.pop(&stop).is_err());
    }
}
