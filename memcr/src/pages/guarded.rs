//! The memory of the target, written through its guard: a page is provided if it is
//! missing, and never overwritten.
//!
//! ```text
//!   populate ─▶ UFFDIO_COPY ─┬─ provided, who waits for it goes on
//!                            ├─ EEXIST: it was never dropped, or is back already
//!                            └─ ENOENT: its mapping was never guarded, or is gone
//!   Watcher  ◀── events ─────── a target that somebody has continued forks, moves or
//!                               gives up memory: its thread waits until we know
//! ```
//!
//! While the guard stands nobody but us can put a page where one was dropped: so what is
//! there is right, and newer than the image. That is why the same code restores a target
//! that stands still, one that was left half way by a memcr that died, and one that runs.
//!
//! Pages that moved or were given up meanwhile must not get their old bytes at their old
//! place. An event is read and noted under the lock that a copy holds, and the kernel
//! refuses copies (EAGAIN) while an event is unread: so no copy slips in between.

mod changes;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{ChunkClass, PageRun, PopulatePages, RemoteAddr};
use crate::fault;
use crate::sys::page_size;
use crate::sys::same_cpu::Beside;
use crate::sys::userfaultfd::{Event, Userfault};
use changes::Changes;
pub use changes::OwnDrop;

/// How long the reader of our own events looks for another one before it falls asleep.
const LINGER: Duration = Duration::from_micros(50);

/// The guarded memory of one process: the target, or a child that it made meanwhile.
#[derive(Debug)]
pub struct GuardedMemory {
    context: Arc<Userfault>,
    changes: RwLock<Changes>,
    /// It may end, and its memory with it: then there is nothing to be given back.
    is_child: bool,
}

impl GuardedMemory {
    /// Behind `context`.
    #[must_use]
    pub fn new(context: Arc<Userfault>) -> Self {
        Self {
            context,
            changes: RwLock::default(),
            is_child: false,
        }
    }

    /// Ends the guard over `ranges`, wherever they are now: threads that wait for a page
    /// that never was go on, and find zeros.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that a range is gone.
    pub fn unguard(&self, ranges: &[PageRun]) -> io::Result<()> {
        for range in ranges {
            for (place, _) in self.pieces(*range) {
                match self.context.unregister(place) {
                    Err(error) if !self.is_over(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// There is nothing that could be guarded any more.
    fn is_over(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOENT) => true,
            Some(libc::ESRCH | libc::ENOMEM) => self.is_child,
            _ => false,
        }
    }

    /// A drop of ours was under way when its memcr died: the next events that tell of it are
    /// not the target's.
    pub fn expect_drop(&self, own: Option<OwnDrop>) {
        self.change(|changes| changes.expect_drop(own));
    }

    /// That drop is over.
    pub fn end_drop(&self) {
        self.change(Changes::end_drop);
    }

    /// Pages are stored from now on, and dropped: see [`GuardedMemory::dropping`]. One that the
    /// kernel has taken away before it was read (MADV_FREE, when memory is short) reads as
    /// zeros for its target, and so for us; under the guard process_vm_readv(2) waits for it.
    pub fn begin_to_read(&self) {
        self.change(|changes| changes.read_until_dropped(Some(Vec::new())));
    }

    /// What is missing of `drops` from now on is to wait.
    pub fn dropping(&self, drops: impl Iterator<Item = PageRun>) {
        self.change(|changes| changes.dropping(drops));
    }

    /// All pages are stored: who misses one waits.
    pub fn end_to_read(&self) {
        self.change(|changes| changes.read_until_dropped(None));
    }

    fn change(&self, how: impl FnOnce(&mut Changes)) {
        how(&mut self.changes.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets the page at `addr` be what it would be if nothing were guarded. False: not yet; an
    /// event is to be read first, or there is no memory for it now.
    fn is_zero_now(&self, addr: RemoteAddr) -> bool {
        let page = PageRun {
            addr: RemoteAddr(addr.0 / page_size() * page_size()),
            len_bytes: page_size(),
        };
        let errno = self
            .context
            .zero(page)
            .map_err(|error| error.raw_os_error());
        !matches!(errno, Err(Some(libc::EAGAIN | libc::ENOMEM)))
    }

    /// Provides the pages of `run` that are missing, at their places of now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn provide(&self, run: PageRun, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < run.len_bytes {
            let rest = PageRun {
                addr: run.addr.offset(done),
                len_bytes: run.len_bytes - done,
            };
            done += self.provide_some(rest, &bytes[done as usize..])?;
        }
        Ok(())
    }

    /// Provides some of the first pages of `run`, or passes over them; answers how many
    /// bytes are settled.
    fn provide_some(&self, run: PageRun, bytes: &[u8]) -> io::Result<u64> {
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        let mut place = match changes.first_piece(run) {
            Some((place, 0)) => place,
            Some((_, given_up)) => return Ok(given_up),
            None => return Ok(run.len_bytes),
        };
        loop {
            let result = self.context.copy(place, &bytes[..place.len_bytes as usize]);
            return match result.map_err(|error| (error.raw_os_error(), error)) {
                Ok(copied) => Ok(copied),
                Err((Some(libc::EEXIST), _)) => Ok(page_size()),
                // Several mappings, or one that is none of ours: find out where it begins.
                Err((Some(libc::ENOENT), _)) if place.len_bytes > page_size() => {
                    place.len_bytes = (place.len_bytes / 2).next_multiple_of(page_size());
                    continue;
                }
                Err((Some(libc::ENOENT), _)) => Ok(place.len_bytes),
                Err((Some(libc::ESRCH), _)) if self.is_child => Ok(run.len_bytes),
                Err((Some(libc::EAGAIN), _)) => {
                    drop(changes);
                    rustix::thread::sched_yield();
                    Ok(0)
                }
                Err((_, error)) => Err(error),
            };
        }
    }

    fn pieces(&self, run: PageRun) -> Vec<(PageRun, u64)> {
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        changes.pieces(run)
    }

    /// The memory of a child, as it is at the moment of the fork.
    fn child(&self, context: Userfault) -> Self {
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        Self {
            context: Arc::new(context),
            changes: RwLock::new(changes.of_child()),
            is_child: true,
        }
    }
}

impl PopulatePages for GuardedMemory {
    fn populate(&self, _: ChunkClass, runs: &[PageRun], bytes: &[u8]) -> io::Result<()> {
        fault::point("pages.populate")?;
        let mut rest = bytes;
        for run in runs {
            let len = usize::try_from(run.len_bytes).map_err(io::Error::other)?;
            let (part, tail) = rest
                .split_at_checked(len)
                .ok_or(io::ErrorKind::InvalidInput)?;
            self.provide(*run, part)?;
            rest = tail;
        }
        Ok(())
    }
}

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
        let read = match heed {
            Heed::Nothing => read_quickly(memory, linger, family),
            Heed::Everything => read_events(memory, heed, family).map(drop),
        };
        if let Err(error) = read {
            tracing::warn!("cannot read what becomes of the guarded memory: {error}");
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
            Event::Remap { from, to } => changes.moved(from, to),
            Event::Remove(run) => changes.removed(run),
            Event::Unmap(run) => changes.unmapped(run),
            Event::Fork(context) => {
                drop(changes);
                let child = Arc::new(memory.child(context));
                let watcher = Watcher::with_family(&child, heed, Arc::clone(family), None)?;
                let mut family = family.lock();
                family.0.push(child);
                family.1.push(watcher);
            }
            Event::Fault(_) | Event::Other => {}
        }
    }
}
