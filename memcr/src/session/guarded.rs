//! A target under its guard: set up before the first drop, taken down after the last
//! populate, fetched back from the target by whoever finishes the session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::fault;
use crate::freeze::{FreezeError, Frozen};
use crate::inject::{Borrowed, Guard, GuardError, InjectError, Parasite, Site};
use crate::pages::guarded::{Change, GuardedMemory, Notebook};
use crate::pages::{PageRun, RemoteAddr};
use crate::pipeline::causes;
use crate::sys::collapse::collapse;
use crate::sys::huge_page_size;

use super::journal::{GuardRecord, Journal, ParasiteRecord, Record};

/// The guard, the parasite that made it, and what it stands over.
#[derive(Debug)]
pub(crate) struct Guarded {
    guard: Guard,
    parasite: Parasite,
    memory: Arc<GuardedMemory>,
    ranges: Vec<PageRun>,
}

/// Why a guard could not be taken down. All memory is back.
#[derive(Debug, thiserror::Error)]
pub enum TakeDownError {
    /// The kernel does not end it.
    #[error("cannot end the guard")]
    Unregister(#[source] io::Error),
    /// The target could not be continued or stopped.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// A call in the target failed.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// Its descriptor could not be closed.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A fault point.
    #[error("stopped by a fault point")]
    Fault(#[source] io::Error),
}

impl Guarded {
    /// Makes a guard, which stands over nothing yet. The parasite stays in the target.
    ///
    /// # Errors
    /// With nothing left in the target.
    pub(crate) fn set_up(frozen: &mut Frozen, site: Site) -> Result<Self, GuardError> {
        let mut borrowed = Borrowed::take(frozen, site, None)?;
        let guard = match Guard::make(&mut borrowed) {
            Ok(guard) => guard,
            Err(error) => {
                borrowed.cure()?;
                borrowed.give_back()?;
                return Err(error);
            }
        };
        let parasite = borrowed.parasite().ok_or(GuardError::NoParasite)?;
        borrowed.give_back()?;
        let memory = Arc::new(GuardedMemory::new(Arc::clone(guard.context())));
        Ok(Self {
            guard,
            parasite,
            memory,
            ranges: Vec::new(),
        })
    }

    /// Fetches the guard that `record` tells of from the target behind `pidfd`, of whose memory
    /// so much is `known`.
    ///
    /// # Errors
    /// EBADF: there is none any more; `InvalidData`: the journal tells of none.
    pub(crate) fn fetch(
        pidfd: BorrowedFd<'_>,
        record: &Record,
        known: Vec<Change>,
        notebook: Arc<dyn Notebook>,
    ) -> io::Result<Self> {
        let (Some(guard), Some(parasite)) = (&record.guard, record.parasite) else {
            let what = "the journal tells of no guard";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        check_kind(record.pid, guard.fd)?;
        let ranges = guard.ranges.iter().map(|&(start, len_bytes)| PageRun {
            addr: RemoteAddr(start),
            len_bytes,
        });
        let ranges = ranges.collect();
        let guard = Guard::fetch(pidfd, guard.fd)?;
        Ok(Self {
            memory: Arc::new(GuardedMemory::of_another(
                Arc::clone(guard.context()),
                known,
                notebook,
            )),
            guard,
            parasite: Parasite::at(parasite.address),
            ranges,
        })
    }

    /// Lets it stand over `mappings`. Where it cannot, nothing may be dropped: see
    /// [`Guarded::covers`].
    pub(crate) fn register(&mut self, mappings: &[PageRun]) {
        for &mapping in mappings {
            match self.guard.context().register(mapping) {
                Ok(()) => self.ranges.push(mapping),
                Err(error) => tracing::debug!("no guard over {mapping}: {error}"),
            }
        }
    }

    /// True when all of `run` is within what it stands over.
    pub(crate) fn covers(&self, run: PageRun) -> bool {
        let index = self.ranges.partition_point(|range| range.end() <= run.addr);
        let range = self.ranges.get(index);
        range.is_some_and(|range| range.addr <= run.addr && run.end() <= range.end())
    }

    /// The memory behind it.
    pub(crate) fn memory(&self) -> &Arc<GuardedMemory> {
        &self.memory
    }

    pub(crate) fn parasite(&self) -> Parasite {
        self.parasite
    }

    /// What another memcr must know to fetch it, once it stands over `mappings`.
    pub(crate) fn note(&self, record: &mut Record, mappings: &[PageRun]) {
        record.guard = Some(GuardRecord {
            fd: self.guard.descriptor(),
            ranges: mappings
                .iter()
                .map(|run| (run.addr.0, run.len_bytes))
                .collect(),
        });
        record.parasite = Some(ParasiteRecord {
            address: self.parasite.address(),
        });
    }

    /// Ends the guard: whoever waits goes on. All memory must be back. From then on its
    /// journal tells of nothing that is missing; of what is left in the target the parasite
    /// tells ([`crate::inject::leftovers`]).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn unguard(&self, journal: &mut Journal) -> Result<(), TakeDownError> {
        let ended = self.memory.unguard(&self.ranges);
        ended.map_err(TakeDownError::Unregister)?;
        let told = journal.update(|record| record.guard = None);
        if let Err(error) = told {
            // With all memory back a journal that says too much is no reason to hold on.
            tracing::warn!("{}", causes(&error));
        }
        Ok(())
    }

    /// Takes all of it out of a frozen target, which then is as it was before: disarmed,
    /// without our descriptor and our mapping.
    ///
    /// # Errors
    /// With some of it still there.
    pub(crate) fn take_down(self, frozen: &mut Frozen, site: Site) -> Result<(), TakeDownError> {
        let pass = |name| fault::point(name).map_err(TakeDownError::Fault);
        let mut borrowed = Borrowed::take(frozen, site, Some(self.parasite))?;
        borrowed.disarm()?;
        pass("restore.disarmed")?;
        self.guard.close(&mut borrowed)?;
        pass("restore.unguarded")?;
        borrowed.cure()?;
        borrowed.give_back()?;
        Ok(())
    }
}

/// A descriptor of the journal's number could be something else by now, if somebody has
/// continued the target.
fn check_kind(pid: i32, descriptor: i32) -> io::Result<()> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    if link.is_ok_and(|link| link.as_os_str() == "anon_inode:[userfaultfd]") {
        return Ok(());
    }
    let what = format!("descriptor {descriptor} of process {pid} is not its guard any more");
    Err(io::Error::new(io::ErrorKind::NotFound, what))
}

/// Backs `runs` of the process behind `pidfd` by huge pages again, as far as the kernel
/// has some: the target runs meanwhile.
pub(crate) fn put_huge_pages_back(pidfd: BorrowedFd<'_>, runs: &[PageRun]) {
    for run in runs {
        let huge_len = huge_page_size();
        let start = run.addr.0.next_multiple_of(huge_len);
        let end = run.end().0 / huge_len * huge_len;
        if start >= end {
            continue;
        }
        let whole = PageRun {
            addr: RemoteAddr(start),
            len_bytes: end - start,
        };
        if let Err(error) = collapse(pidfd.as_fd(), whole) {
            tracing::debug!("{whole} stays in small pages: {error}");
        }
    }
}
