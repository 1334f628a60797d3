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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::background::step_back;
use super::procfs::Stat;

/// CPUs of a machine on which it pays to keep all others busy.
const FEW: usize = 4;
/// As far back as nice(2) goes: who wants the CPU has it, all but a hundredth.
const LAST: i32 = 19;
/// Looks between two looks at the order to stop.
const SPINS: u32 = 1000;
/// Meetings after which it is looked whether both still are on one CPU: what takes longer in
/// the mean seems not to be.
const N_MEETINGS: u32 = 16;
const LONG: Duration = Duration::from_micros(15);

/// Keeps the calling thread on the CPU of another one, with which it does nothing but wait in
/// turns, and all other CPUs busy, until it is dropped.
#[derive(Debug)]
pub struct Beside {
    pid: i32,
    tid: i32,
    busy: OthersBusy,
    n_meetings: u32,
    since: Instant,
}

impl Beside {
    /// Beside thread `tid` of process `pid`. `None`: there are too many CPUs, or it is on
    /// none of ours, or no thread is to be had.
    #[must_use]
    pub fn of(pid: i32, tid: i32) -> Option<Self> {
        let cpu = cpu_of(pid, tid)?;
        Some(Self {
            pid,
            tid,
            busy: OthersBusy::but(cpu)?,
            n_meetings: 0,
            since: Instant::now(),
        })
    }

    /// Brings the calling thread there.
    pub fn settle(&self) {
        // Anywhere else it works too.
        let _ = stay_on(self.busy.but.load(Relaxed));
    }

    /// Both have waited for each other once more: has the other thread been moved?
    pub fn meet(&mut self) {
        self.n_meetings += 1;
        if !self.n_meetings.is_multiple_of(N_MEETINGS) {
            return;
        }
        if self.since.elapsed() > LONG * N_MEETINGS
            && let Some(cpu) = cpu_of(self.pid, self.tid)
            && self.busy.but.load(Relaxed) != cpu
        {
            self.busy.change_to(cpu);
            self.settle();
        }
        self.since = Instant::now();
    }
}

/// Keeps threads of our own off `cpu`, on which others are that have nobody but each other to
/// wait for. `None`: they may be wherever the calling thread may.
///
/// # Errors
/// What the kernel refused; those before it are where they are to be.
pub fn keep_off(tids: &[i32], cpu: Option<usize>) -> io::Result<()> {
    let mut set = sched_getaffinity(None)?;
    if let Some(cpu) = cpu.filter(|_| set.count() > 1) {
        set.unset(cpu);
    }
    let mut tids = tids.iter().filter_map(|tid| Pid::from_raw(*tid));
    tids.try_for_each(|tid| Ok(sched_setaffinity(Some(tid), &set)?))
}

/// Where a thread runs, or last ran.
#[must_use]
pub fn cpu_of(pid: i32, tid: i32) -> Option<usize> {
    let stat = Stat::read(format!("{pid}/task/{tid}"));
    stat.ok().map(|stat| stat.cpu)
}

/// Keeps all CPUs but one busy, until it is dropped.
#[derive(Debug)]
struct OthersBusy {
    but: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl OthersBusy {
    /// Keeps all CPUs that we may use busy, but for `cpu`. `None`: there are too many, or it
    /// is none of them, or no thread is to be had.
    fn but(cpu: usize) -> Option<Self> {
        let ours = sched_getaffinity(None).ok()?;
        if !ours.is_set(cpu) || ours.count() as usize > FEW {
            return None;
        }
        let mut busy = Self {
            but: Arc::new(AtomicUsize::new(cpu)),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for one in (0..CpuSet::MAX_CPU).filter(|&one| ours.is_set(one)) {
            busy.threads.push(busy.keep(one).ok()?);
        }
        Some(busy)
    }

    /// Another one is left alone from now on.
    fn change_to(&self, cpu: usize) {
        self.but.store(cpu, Relaxed);
        self.wake();
    }

    fn wake(&self) {
        self.threads.iter().for_each(|it| it.thread().unpark());
    }

    fn keep(&self, cpu: usize) -> io::Result<JoinHandle<()>> {
        let (but, until) = (Arc::clone(&self.but), Arc::clone(&self.stop));
        let thread = Builder::new().name("busy".into());
        thread.spawn(move || {
            // Elsewhere, or before others, it would do more harm than good.
            if step_back(LAST).is_err() || stay_on(cpu).is_err() {
                return;
            }
            while !until.load(Relaxed) {
                if but.load(Relaxed) == cpu {
                    std::thread::park();
                } else {
                    (0..SPINS).for_each(|_| std::hint::spin_loop());
                }
            }
        })
    }
}

impl Drop for OthersBusy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.wake();
        for thread in self.threads.drain(..) {
            // It cannot panic, and there is nothing to be learnt from it.
            let _ = thread.join();
        }
    }
}

/// Lets the calling thread run on `cpu` only. EINVAL: it may not be used.
fn stay_on(cpu: usize) -> io::Result<()> {
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
        let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| ours.is_set(cpu));
        for cpu in cpus {
            match OthersBusy::but(cpu) {
                Some(busy) => {
                    assert_eq!(busy.threads.len(), ours.count() as usize);
                    busy.change_to(cpu);
                }
                None => assert!(ours.count() as usize > FEW),
            }
        }
        let none = (0..CpuSet::MAX_CPU).find(|&cpu| !ours.is_set(cpu)).unwrap();
        assert!(OthersBusy::but(none).is_none());
    }

    #[test]
    fn it_follows_the_other_thread() {
        let own = std::process::id().cast_signed();
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let Some(mut beside) = Beside::of(own, tid) else {
            assert!(sched_getaffinity(None).unwrap().count() as usize > FEW);
            return;
        };
        let elsewhere = CpuSet::MAX_CPU;
        beside.busy.but.store(elsewhere, Relaxed);
        beside.since = Instant::now() - LONG * N_MEETINGS * 2;
        (0..N_MEETINGS).for_each(|_| beside.meet());
        assert_ne!(beside.busy.but.load(Relaxed), elsewhere);
    }

    #[test]
    fn a_thread_is_kept_off_a_cpu_and_let_go() {
        let ours = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| ours.is_set(cpu)).unwrap();
        let (told, tid) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(super::super::gettid()).unwrap();
            let _ = wait.recv();
        });
        let tid = tid.recv().unwrap();
        let of_thread = || sched_getaffinity(Pid::from_raw(tid)).unwrap();
        keep_off(&[tid], Some(cpu)).unwrap();
        assert_eq!(of_thread().is_set(cpu), ours.count() == 1);
        keep_off(&[tid], None).unwrap();
        assert_eq!(of_thread(), ours);
        drop(go);
        thread.join().unwrap();
        assert!(keep_off(&[i32::MAX], None).is_err());
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
