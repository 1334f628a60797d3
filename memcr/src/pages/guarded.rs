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
//!
//! The kernel tells each event once. What a target does to its memory while a restore goes on
//! that comes to nothing must be known to the next memcr, so it is written down ([`Notebook`]),
//! and before that, that something is about to be read.

mod changes;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{ChunkClass, PageRun, PopulatePages, RemoteAddr};
use crate::fault;
use crate::sys::page_size;
use crate::sys::same_cpu::Beside;
use crate::sys::userfaultfd::{Event, Userfault};
use changes::Changes;
pub use changes::{Change, OwnDrop};

/// How long the reader of our own events looks for another one before it falls asleep.
const LINGER: Duration = Duration::from_micros(50);

/// How long a change may wait to be looked for while threads wait for pages.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000,
};

/// Where changes are written down for whoever comes after us.
pub trait Notebook: std::fmt::Debug + Send + Sync {
    /// A change is about to be read: should we die before it is written down, it has happened.
    ///
    /// # Errors
    /// When that cannot be written down.
    fn expect(&self) -> io::Result<()>;

    /// There was none.
    ///
    /// # Errors
    /// As [`Notebook::expect`].
    fn expect_none(&self) -> io::Result<()>;

    /// This one has happened.
    ///
    /// # Errors
    /// As [`Notebook::expect`].
    fn note(&self, change: Change) -> io::Result<()>;
}

/// The guarded memory of one process: the target, or a child that it made meanwhile.
#[derive(Debug)]
pub struct GuardedMemory {
    context: Arc<Userfault>,
    changes: RwLock<Changes>,
    notebook: Option<Arc<dyn Notebook>>,
    /// Why its events are not read any more.
    failed: OnceLock<String>,
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
            notebook: None,
            failed: OnceLock::new(),
            is_child: false,
        }
    }

    /// Of a target that somebody may continue, or has: `known` has become of it so far, and what
    /// does from now on is written into `notebook`.
    #[must_use]
    pub fn of_another(
        context: Arc<Userfault>,
        known: Vec<Change>,
        notebook: Arc<dyn Notebook>,
    ) -> Self {
        Self {
            changes: RwLock::new(Changes::known(known)),
            notebook: Some(notebook),
            ..Self::new(context)
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
                self.end_over(place)?;
            }
        }
        Ok(())
    }

    /// The same, and over all of what `ranges` have grown to be a part of: of `mappings`, which
    /// are those that are guarded.
    ///
    /// # Errors
    /// As [`GuardedMemory::unguard`].
    pub fn unguard_grown(&self, ranges: &[PageRun], mappings: &[PageRun]) -> io::Result<()> {
        let mut places: Vec<PageRun> = ranges
            .iter()
            .flat_map(|range| self.pieces(*range).into_iter().map(|(place, _)| place))
            .collect();
        places.sort_by_key(|place| place.addr);
        for mapping in mappings {
            let before = places.partition_point(|place| place.end() <= mapping.addr);
            if places
                .get(before)
                .is_some_and(|place| place.addr < mapping.end())
            {
                self.end_over(*mapping)?;
            }
        }
        places
            .into_iter()
            .try_for_each(|place| self.end_over(place))
    }

    fn end_over(&self, place: PageRun) -> io::Result<()> {
        match self.context.unregister(place) {
            Err(error) if !self.is_over(&error) => Err(error),
            _ => Ok(()),
        }
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

    /// That drop is over: what the target has done meanwhile is known now.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn end_drop(&self) -> io::Result<()> {
        let theirs = self.change(Changes::end_drop);
        match &self.notebook {
            Some(notebook) => theirs
                .into_iter()
                .try_for_each(|it| notebook.expect().and_then(|()| notebook.note(it))),
            None => Ok(()),
        }
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

    fn change<T>(&self, how: impl FnOnce(&mut Changes) -> T) -> T {
        how(&mut self.changes.write().unwrap_or_else(PoisonError::into_inner))
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
                    self.expect_a_reader()?;
                    rustix::thread::sched_yield();
                    Ok(0)
                }
                Err((_, error)) => Err(error),
            };
        }
    }

    /// An event that is not read keeps everybody waiting.
    fn expect_a_reader(&self) -> io::Result<()> {
        match self.failed.get() {
            Some(why) => Err(io::Error::other(format!(
                "what becomes of its memory cannot be followed: {why}"
            ))),
            None => Ok(()),
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
            notebook: None,
            failed: OnceLock::new(),
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
