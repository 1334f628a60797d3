//! Who reads the events of a guard: those of our own drops, or what becomes of the memory of a
//! target that somebody has continued.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{Change, GuardedMemory, Notebook};
use crate::fault;
use crate::pages::RemoteAddr;
use crate::sys::same_cpu::Beside;
use crate::sys::userfaultfd::{Event, Userfault};

/// How long the reader of our own events looks for another one before it falls asleep.
const LINGER: Duration = Duration::from_micros(50);

/// How long a change may wait to be looked for while threads wait for pages.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000,
};

/// What a watcher does with events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heed {
    /// Our own drops cause them: they are read so that the drops go on.
    Nothing,
    /// The target causes them.
    Everything,
}

/// A thread that reads the events of a context until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    family: Arc<Family>,
}

/// The children that were made meanwhile, and who watches them.
#[derive(Debug, Default)]
struct Family(Mutex<(Vec<Arc<GuardedMemory>>, Vec<Watcher>)>);

impl Family {
    fn lock(&self) -> MutexGuard<'_, (Vec<Arc<GuardedMemory>>, Vec<Watcher>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Starts to read the events of `memory`.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn start(memory: &Arc<GuardedMemory>, heed: Heed) -> io::Result<Self> {
        Self::with_family(memory, heed, Arc::default(), None)
    }

    fn with_family(
        memory: &Arc<GuardedMemory>,
        heed: Heed,
        family: Arc<Family>,
        mut beside: Option<Beside>,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (memory, until, relatives) =
            (Arc::clone(memory), Arc::clone(&stop), Arc::clone(&family));
        let thread = std::thread::Builder::new()
            .name("events".into())
            .spawn(move || {
                if let Some(beside) = &beside {
                    beside.settle();
                }
                watch(&memory, heed, &until, &relatives, &mut beside);
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
            family,
        })
    }

    /// Starts to read the events of our own drops; `beside`: beside the thread that makes
    /// them and waits for each.
    ///
    /// # Errors
    /// As [`Watcher::start`].
    pub fn start_for_drops(
        memory: &Arc<GuardedMemory>,
        beside: Option<Beside>,
    ) -> io::Result<Self> {
        Self::with_family(memory, Heed::Nothing, Arc::default(), beside)
    }

    /// The next child that was made since the watcher started and was not asked for yet.
    /// It waits for its pages too.
    #[must_use]
    pub fn next_child(&self) -> Option<Arc<GuardedMemory>> {
        let mut family = self.family.lock();
        (!family.0.is_empty()).then(|| family.0.remove(0))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // An eventfd takes a first write always.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Those of the children hold the family that holds them.
        let watchers = std::mem::take(&mut self.family.lock().1);
        drop(watchers);
    }
}

fn watch(
    memory: &Arc<GuardedMemory>,
    heed: Heed,
    stop: &OwnedFd,
    family: &Arc<Family>,
    beside: &mut Option<Beside>,
) {
    // By the CPUs that this thread may use; asked once, for it reads files.
    let linger = match std::thread::available_parallelism() {
        Ok(n_cpus) if n_cpus.get() > 1 => LINGER,
        _ => Duration::ZERO,
    };
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(memory.context.as_fd(), PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        // An error here (EINTR) is a round without news.
        let _ = poll(&mut fds, None);
        if !fds[1].revents().is_empty() {
            return;
        }
        let read = match (heed, &memory.notebook) {
            (Heed::Nothing, _) => read_quickly(memory, linger, family),
            (Heed::Everything, Some(notebook)) => read_changes(memory, &**notebook, stop, family),
            (Heed::Everything, None) => read_events(memory, heed, family).map(drop),
        };
        if let Err(error) = read {
            tracing::warn!("cannot follow what becomes of the guarded memory: {error}");
            let _ = memory.failed.set(error.to_string());
            return;
        }
        if let Some(beside) = beside {
            beside.meet();
        }
    }
}

/// Every run that is dropped waits until its event was read. Beside its sender on one CPU
/// nothing is faster than to sleep in between; on different ones to fall asleep and be woken
/// takes many times as long as the drop of a small run does, so who has had one event looks
/// for the next for a moment; not before its sender had the CPU, should it wait for this one.
fn read_quickly(
    memory: &Arc<GuardedMemory>,
    linger: Duration,
    family: &Arc<Family>,
) -> io::Result<()> {
    let mut last = Instant::now();
    loop {
        if read_events(memory, Heed::Nothing, family)? {
            rustix::thread::sched_yield();
            last = Instant::now();
        } else if last.elapsed() >= linger {
            return Ok(());
        }
        std::hint::spin_loop();
    }
}

/// Reads what there is; answers whether there was anything.
fn read_events(memory: &Arc<GuardedMemory>, heed: Heed, family: &Arc<Family>) -> io::Result<bool> {
    let mut is_news = false;
    let mut missed: Vec<RemoteAddr> = Vec::new();
    loop {
        let mut changes = memory
            .changes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Who waits for one waits until it was read, whatever a test orders.
        if fault::HAS_POINTS && memory.context.has_event() {
            let _ = fault::point("pages.event");
        }
        let Some(event) = memory.context.next_event()? else {
            drop(changes);
            missed.retain(|&addr| !memory.is_zero_now(addr));
            if missed.is_empty() {
                return Ok(is_news);
            }
            continue;
        };
        is_news = true;
        match event {
            Event::Fault(addr) if heed == Heed::Nothing => {
                if changes.is_to_be_read(addr) {
                    missed.push(addr);
                }
            }
            _ if heed == Heed::Nothing => {}
            Event::Fork(context) => {
                drop(changes);
                take_in(memory, context, family)?;
            }
            event => changes.extend(change_of(&event)),
        }
    }
}

/// Reads what there is, each change after it was written down that one is to be read. Faults alone
/// are left unread: a copy wakes who waits, and between a fault that is read and the note that
/// it was nothing else nobody could tell the two apart.
fn read_changes(
    memory: &Arc<GuardedMemory>,
    notebook: &dyn Notebook,
    stop: &OwnedFd,
    family: &Arc<Family>,
) -> io::Result<()> {
    while memory.context.is_changing() {
        let mut changes = memory
            .changes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if fault::HAS_POINTS && memory.context.has_event() {
            let _ = fault::point("pages.event");
        }
        // Of those of a drop of ours it is not known yet whose they are. Should we die before,
        // a target that was continued dies with us.
        let notebook = (!changes.expects_drop()).then_some(notebook);
        if let Some(notebook) = notebook {
            notebook.expect()?;
        }
        let event = loop {
            match memory.context.next_event()? {
                Some(Event::Fault(_) | Event::Other) => {}
                event => break event,
            }
        };
        let change = event.as_ref().and_then(change_of);
        changes.extend(change);
        let written = match (notebook, change) {
            (None, _) => Ok(()),
            (Some(notebook), Some(change)) => notebook.note(change),
            // Who knows the child is we alone.
            (Some(notebook), None) => notebook.expect_none(),
        };
        if let Err(error) = written {
            // This restore knows it; another one will know that it does not.
            tracing::warn!("cannot write down what becomes of the guarded memory: {error}");
        }
        drop(changes);
        match event {
            Some(Event::Fork(context)) => take_in(memory, context, family)?,
            // Its thread is yet to be woken.
            None => rustix::thread::sched_yield(),
            _ => {}
        }
    }
    // A fault that is left unread would end a wait for events at once.
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&LOOK_AGAIN));
    Ok(())
}

fn change_of(event: &Event) -> Option<Change> {
    match *event {
        Event::Remap { from, to } => Some(Change::Moved { from, to }),
        Event::Remove(run) => Some(Change::Removed(run)),
        Event::Unmap(run) => Some(Change::Unmapped(run)),
        Event::Fork(_) | Event::Fault(_) | Event::Other => None,
    }
}

/// A child was made, whose memory is that of `memory` at this moment.
fn take_in(
    memory: &Arc<GuardedMemory>,
    context: Userfault,
    family: &Arc<Family>,
) -> io::Result<()> {
    let child = Arc::new(memory.child(context));
    let watcher = Watcher::with_family(&child, Heed::Everything, Arc::clone(family), None)?;
    let mut family = family.lock();
    family.0.push(child);
    family.1.push(watcher);
    Ok(())
}
