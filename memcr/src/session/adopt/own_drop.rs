//! A drop of ours that its memcr did not live to see the end of.
//!
//! The thread waits in a call of the parasite until its event is read, and is to be
//! stopped right behind it. Meanwhile somebody may have continued the target, whose other
//! threads give up and move memory as well: their events must be heeded, ours must not.
//!
//! ```text
//!   asleep in madvise(ADDR, LEN) of the parasite: what comes of that range is ours
//!     mapping  |······|······|PPPPPP|PP|PPPP|     · gone     P there: it waits with the first such
//!     events                  ^ this one, and those of the mappings behind it
//!   told to stop (ptrace): it makes no other call
//! ```
//!
//! That call cannot be called off: when its event is read, the pages go. A thread that ran
//! since may have written to them, and the image does not know. So before the event is read no
//! thread may run, and what is there is kept, and put back behind it. Should we die in
//! between, with all that in our memory alone, a target that was continued dies with us.

use std::io;
use std::time::{Duration, Instant};

use crate::inject::Parasite;
use crate::maps::page::PageTable;
use crate::maps::vma::Vma;
use crate::pages::guarded::{GuardedMemory, OwnDrop};
use crate::pages::table::{KernelPageTable, is_there};
use crate::pages::{PageRun, RemoteAddr};
use crate::sys::arch::nr;
use crate::sys::page_size;
use crate::sys::pagemap::Region;
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::{self, Status};
use crate::sys::wait::Pause;

/// How long the thread may run without being seen asleep or stopped.
const PATIENCE: Duration = Duration::from_secs(3);
/// Entries of the page map that are read at once.
const N_ENTRIES: usize = 512;

/// The pages that the first thread of `pid` is about to have dropped: it waits for its event to
/// be read. `None`: it stands still. `is_told`: to stop by us, so that it makes no other call.
///
/// # Errors
/// When it cannot be found out.
pub(super) fn own_drop(pid: i32, parasite: Parasite, is_told: bool) -> io::Result<Option<PageRun>> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Pause::default();
    while Instant::now() < deadline {
        match Status::of_thread(pid, pid)?.state() {
            // Uninterruptible, as for its event; or just then for the lock of its mappings, and
            // what it does has to be asked again.
            'D' => match procfs::call_of(pid, pid) {
                Some(call) if call.nr == nr::MADVISE && parasite.is_in(call.pc) => {
                    let (addr, len_bytes) = (RemoteAddr(call.args[0]), call.args[1]);
                    return Ok(Some(PageRun { addr, len_bytes }));
                }
                Some(_) => return Ok(None),
                None => pause.wait(),
            },
            // On its way: into the stop, or into the call.
            'R' => pause.wait(),
            'T' if is_told => pause.wait(),
            _ => return Ok(None),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Pages as they are before a drop, which is of few that are there ([`DropRun`]).
///
/// [`DropRun`]: crate::maps::plan::DropRun
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<(PageRun, Vec<u8>)>);

impl Kept {
    /// Those of `run` in the process `pid` that are there.
    pub(super) fn of(pid: i32, run: PageRun) -> io::Result<Self> {
        let memory = ProcMem::open(pid)?;
        let table = KernelPageTable::open(pid)?;
        let (mut kept, mut regions) = (Self::default(), Vec::new());
        let (mut at, end) = (run.addr.0, run.end().0);
        while at < end {
            regions.clear();
            at = table.occupied(at, end, end, &mut regions)?;
            for region in &regions {
                kept.take(&memory, &table, region)?;
            }
        }
        Ok(kept)
    }

    /// Some pages of `region` may be absent, before Linux 6.7 most.
    fn take(
        &mut self,
        memory: &ProcMem,
        table: &KernelPageTable,
        region: &Region,
    ) -> io::Result<()> {
        let mut entries = [0; N_ENTRIES];
        let mut addr = RemoteAddr(region.start);
        while addr.0 < region.end {
            let n_pages = ((region.end - addr.0) / page_size()).min(N_ENTRIES as u64);
            let entries = &mut entries[..n_pages as usize];
            table.entries(addr.0, entries)?;
            for part in entries.chunk_by(|a, b| is_there(*a) == is_there(*b)) {
                let len_bytes = part.len() as u64 * page_size();
                if is_there(part[0]) {
                    let mut bytes = vec![0; len_bytes as usize];
                    memory.read(addr.0, &mut bytes)?;
                    self.0.push((PageRun { addr, len_bytes }, bytes));
                }
                addr = addr.offset(len_bytes);
            }
        }
        Ok(())
    }

    /// The drop of `run` that waits, with the first page that is there and with `vmas`.
    pub(super) fn drop_of(&self, run: PageRun, vmas: &[Vma]) -> OwnDrop {
        let mappings = vmas.iter().map(|vma| PageRun {
            addr: RemoteAddr(vma.start),
            len_bytes: vma.len_bytes(),
        });
        OwnDrop {
            run,
            first: self.0.first().map_or(run.addr, |(page, _)| page.addr),
            mappings: mappings.collect(),
        }
    }

    /// Puts them back where they are missing now. What the guard does not stand over was mapped
    /// by the target meanwhile, where something else had been.
    pub(super) fn put_back(&self, pid: i32, memory: &GuardedMemory) -> io::Result<()> {
        let (table, others) = (KernelPageTable::open(pid)?, ProcMem::open(pid)?);
        for (run, bytes) in &self.0 {
            memory.provide(*run, bytes)?;
            let len = page_size();
            let mut entries = vec![0; (run.len_bytes / len) as usize];
            table.entries(run.addr.0, &mut entries)?;
            let pages = bytes
                .chunks(len as usize)
                .zip((run.addr.0..).step_by(len as usize));
            for (entry, (page, addr)) in entries.iter().zip(pages) {
                if !is_there(*entry)
                    && let Err(error) = others.write(addr, page)
                {
                    tracing::debug!("what was at {addr:#x} does not come back: {error}");
                }
            }
        }
        Ok(())
    }
}
