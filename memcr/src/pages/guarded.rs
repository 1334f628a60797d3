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
mod watcher;

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::{ChunkClass, PageRun, PopulatePages, RemoteAddr};
use crate::fault;
use crate::sys::page_size;
use crate::sys::userfaultfd::Userfault;
use changes::Changes;
pub use changes::{Change, OwnDrop};
pub use watcher::{Heed, Watcher};

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
