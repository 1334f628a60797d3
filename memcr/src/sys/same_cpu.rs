//! Two threads on one CPU, while they do nothing but wait for each other.
//!
//! ```text
//!   CPU of both      drop ─▶ read ─▶ drop ─▶ read …    a switch each time: 2 µs
//!   the others       kept busy, so that nobody is moved there to be woken from afar, which
//!                    takes 15 µs, and 50 where a CPU has fallen asleep (in a guest)
//! ```
//!
//! The kernel wakes a thread on a CPU that has nothing to do, if there is one. A mask would
//! keep it from that (sched_setaffinity(2)), but whose thread it is must not find itself
//! with one should we die.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::background::step_back;

/// CPUs of a machine on which it pays to keep all others busy.
const FEW: usize = 4;
/// As far back as nice(2) goes: who wants the CPU has it, all but a hundredth.
const LAST: i32 = 19;
/// Looks between two looks at the order to stop.
const SPINS: u32 = 1000;

/// Keeps all CPUs but one busy, until it is dropped.
#[derive(Debug)]
pub struct OthersBusy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl OthersBusy {
    /// Keeps all CPUs that we may use busy, but for `cpu`. `None`: there are too many, or it
    /// is none of them, or no thread is to be had.
    #[must_use]
    pub fn but(cpu: usize) -> Option<Self> {
        let ours = sched_getaffinity(None).ok()?;
        if !ours.is_set(cpu) || ours.count() as usize > FEW {
            return None;
        }
        let mut busy = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let others = (0..CpuSet::MAX_CPU).filter(|&other| other != cpu && ours.is_set(other));
        for other in others {
            busy.threads.push(busy.keep(other).ok()?);
        }
        Some(busy)
    }

    fn keep(&self, cpu: usize) -> io::Result<JoinHandle<()>> {
        let until = Arc::clone(&self.stop);
        let thread = Builder::new().name("busy".into());
        thread.spawn(move || {
            // Elsewhere, or before others, it would do more harm than good.
            if step_back(LAST).is_ok() && stay_on(cpu).is_ok() {
                while !until.load(Relaxed) {
                    (0..SPINS).for_each(|_| std::hint::spin_loop());
                }
            }
        })
    }
}

impl Drop for OthersBusy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic, and there is nothing to be learnt from it.
            let _ = thread.join();
        }
    }
}

/// Lets the calling thread run on `cpu` only.
///
/// # Errors
/// EINVAL: it may not be used.
pub fn stay_on(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_others_are_busy_and_one_is_not() {
        let ours = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| ours.is_set(cpu)).unwrap();
        match OthersBusy::but(cpu) {
            Some(busy) => assert_eq!(busy.threads.len() + 1, ours.count() as usize),
            None => assert!(ours.count() as usize > FEW),
        }
        let none = (0..CpuSet::MAX_CPU).find(|&cpu| !ours.is_set(cpu)).unwrap();
        assert!(OthersBusy::but(none).is_none());
    }

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let ours = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| ours.is_set(cpu)).unwrap();
        let there = std::thread::spawn(move || {
            stay_on(cpu).unwrap();
            sched_getaffinity(None).unwrap()
        });
        let there = there.join().unwrap();
        assert!(there.count() == 1 && there.is_set(cpu));
    }
}
