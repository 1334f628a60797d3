//! The memory of the target, read and written from outside.
//!
//! `process_vm_readv`/`process_vm_writev` move many runs in one call and are the fastest
//! way; they respect the mapping's protection. `/proc/PID/mem` does not, and takes one
//! run a call. No protection is ever changed: mappings stay what they are.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::{KernelPageTable, is_there};
use super::truncated;
use super::{ChunkClass, ChunkPlan, FetchPages, PageRun, PopulatePages};
use crate::maps::page::PageTable;
use crate::sys::proc_mem::ProcMem;
use crate::sys::{page_size, process_vm};

/// The memory of one process.
#[derive(Debug)]
pub struct RemoteMemory {
    pid: i32,
    /// Opened on the frozen process: an exec before the freeze would have replaced the
    /// memory that an earlier descriptor is bound to.
    proc_mem: OnceLock<ProcMem>,
    /// Every page is read through it.
    only_proc_mem: bool,
    truncated_bytes: AtomicU64,
}

impl RemoteMemory {
    /// Of `pid`; nothing is opened yet. `only_proc_mem`: `process_vm_readv` is not tried.
    #[must_use]
    pub fn new(pid: i32, only_proc_mem: bool) -> Self {
        Self {
            pid,
            proc_mem: OnceLock::new(),
            only_proc_mem,
            truncated_bytes: AtomicU64::new(0),
        }
    }

    /// Opens the memory of the frozen process.
    ///
    /// # Errors
    /// As [`ProcMem::open`].
    pub fn open(&self) -> io::Result<&ProcMem> {
        let opened = ProcMem::open(self.pid)?;
        Ok(self.proc_mem.get_or_init(|| opened))
    }

    /// Pages that could not be put back because their file was cut short, bytes.
    pub fn truncated_bytes(&self) -> u64 {
        self.truncated_bytes.load(Relaxed)
    }

    /// Reads a run of anonymous pages of which some may have gone since they were found
    /// (MADV_FREE): these are zeros. Under a guard `/proc/PID/mem` answers EIO for them.
    fn read_what_is_there(
        &self,
        memory: &ProcMem,
        run: &PageRun,
        out: &mut [u8],
    ) -> io::Result<()> {
        let table = KernelPageTable::open(self.pid)?;
        let mut addr = run.addr.0;
        for page in out.chunks_mut(page_size() as usize) {
            let mut entry = [0];
            table.entries(addr, &mut entry)?;
            if is_there(entry[0]) {
                memory.read(addr, page)?;
            } else {
                page.fill(0);
            }
            addr += page.len() as u64;
        }
        Ok(())
    }

    /// Writes a run of file pages up to the end of the file, wherever that is now.
    fn write_what_is_there(&self, memory: &ProcMem, run: &PageRun, bytes: &[u8]) -> io::Result<()> {
        let mut addr = run.addr.0;
        for page in bytes.chunks(page_size() as usize) {
            match memory.write(addr, page) {
                // Asked page by page: neighbours may be of another mapping, another file.
                Err(_) if truncated::is_behind_the_end(self.pid, addr) => {
                    self.truncated_bytes.fetch_add(page.len() as u64, Relaxed);
                }
                result => result?,
            }
            addr += page.len() as u64;
        }
        Ok(())
    }

    fn proc_mem(&self) -> io::Result<&ProcMem> {
        self.proc_mem
            .get()
            .ok_or_else(|| io::Error::other("the memory of the target is not open"))
    }
}

impl FetchPages for RemoteMemory {
    fn fetch(&self, plan: &ChunkPlan, out: &mut [u8]) -> io::Result<()> {
        crate::fault::point("pages.fetch")?;
        // Most of what may not be written may be read, and one call for each of thousands of
        // small mappings takes longer than one in vain.
        if !self.only_proc_mem {
            match process_vm::read(self.pid, &plan.runs, out) {
                // A mapping refuses by its protection, or although that allows (a file cut
                // short under it): the other way in knows better what is there.
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {}
                result => return result,
            }
        }
        let memory = self.proc_mem()?;
        let mut rest = out;
        for run in &plan.runs {
            let (part, tail) = rest.split_at_mut(len(run)?);
            match memory.read(run.addr.0, part) {
                Err(error) if plan.class.elide_zero && error.raw_os_error() == Some(libc::EIO) => {
                    self.read_what_is_there(memory, run, part)?;
                }
                result => result?,
            }
            rest = tail;
        }
        Ok(())
    }
}

impl PopulatePages for RemoteMemory {
    fn populate(&self, class: ChunkClass, runs: &[PageRun], bytes: &[u8]) -> io::Result<()> {
        crate::fault::point("pages.populate")?;
        if !class.through_proc_mem {
            match process_vm::write(self.pid, runs, bytes) {
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {}
                result => return result,
            }
        }
        let memory = self.proc_mem()?;
        let mut rest = bytes;
        for run in runs {
            let (part, tail) = rest.split_at(len(run)?);
            match memory.write(run.addr.0, part) {
                // Only a file can be cut short under its mapping.
                Err(_) if !class.elide_zero => self.write_what_is_there(memory, run, part)?,
                result => result?,
            }
            rest = tail;
        }
        Ok(())
    }
}

fn len(run: &PageRun) -> io::Result<usize> {
    usize::try_from(run.len_bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}
