//! Absent pages: the ways to fill them, and to make them absent.
//!
//! Our own memory stands for that of a target: these calls treat every process alike.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use memcr_harness::{Context, Result, Trouble, ensure};
use memmap2::MmapMut;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

use super::{PIECE, Time};
use crate::lab::Lab;
use crate::raw::{self, Userfault};
use crate::team;
use crate::warm::{absent, warm};

/// The fastest where the kernel has it; works whatever the protection.
pub(super) fn uffd_copy(lab: &Lab, n_threads: usize) -> Result<Time> {
    let uffd = Userfault::new().map_err(|error| Trouble::Skipped(error.to_string()))?;
    let mut memory = fresh(lab)?;
    uffd.register(&mut memory).context("register")?;
    fill(&mut memory, lab, n_threads, |to, from| {
        uffd.copy(to, from).context("UFFDIO_COPY")
    })
}

/// The call that needs nothing but the right to trace.
pub(super) fn writev(lab: &Lab, n_threads: usize) -> Result<Time> {
    let mut memory = fresh(lab)?;
    fill(&mut memory, lab, n_threads, |to, from| {
        let remote = RemoteIoVec {
            base: to.as_mut_ptr().addr(),
            len: to.len(),
        };
        let n = process_vm_writev(Pid::this(), &[IoSlice::new(from)], &[remote])
            .context("process_vm_writev")?;
        ensure(n == to.len(), || {
            format!("process_vm_writev wrote {n} bytes")
        })
    })
}

/// The file that also writes where protection forbids.
pub(super) fn proc_mem(lab: &Lab, n_threads: usize) -> Result<Time> {
    let mut memory = fresh(lab)?;
    let path = "/proc/self/mem";
    let mem = OpenOptions::new().write(true).open(path).context(path)?;
    fill(&mut memory, lab, n_threads, |to, from| {
        mem.write_all_at(from, to.as_mut_ptr().addr() as u64)
            .context(path)
    })
}

/// In one call per thread: every call costs the other CPUs an interrupt.
pub(super) fn give_back(lab: &Lab, n_threads: usize) -> Result<Time> {
    let mut memory = fresh(lab)?;
    memory.iter_mut().step_by(super::PAGE).for_each(|b| *b = 1);
    let len_bytes = memory.len() as u64;
    let share = share_len(memory.len(), n_threads);
    let millis = team::timed(memory.chunks_mut(share).collect(), |part| {
        raw::give_back(part).context("MADV_DONTNEED")
    })?;
    Ok(Time { len_bytes, millis })
}

/// Memory as long as that of the target, absent, the pages for it at hand.
fn fresh(lab: &Lab) -> Result<MmapMut> {
    warm(lab.target.len)?;
    absent(lab.target.len)
}

/// Fills `memory` piece by piece with bytes of the target.
fn fill(
    memory: &mut [u8],
    lab: &Lab,
    n_threads: usize,
    write: impl Fn(&mut [u8], &[u8]) -> Result + Sync,
) -> Result<Time> {
    let len_bytes = memory.len() as u64;
    let share = share_len(memory.len(), n_threads);
    let teams = memory
        .chunks_mut(share)
        .map(|part| {
            let mut from = vec![0; PIECE];
            lab.target.read(0, &mut from)?;
            Ok((part, from))
        })
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |(part, from)| {
        part.chunks_mut(PIECE)
            .try_for_each(|to| write(to, &from[..to.len()]))
    })?;
    Ok(Time { len_bytes, millis })
}

fn share_len(len: usize, n_threads: usize) -> usize {
    (len / PIECE).div_ceil(n_threads).max(1) * PIECE
}
