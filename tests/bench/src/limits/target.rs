//! Reading a target: its pages, its page map; and what happens to the bytes first.

use std::fs::File;
use std::hint::black_box;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use memcr_harness::{Context, Result, ensure};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::{PAGE, PIECE, Time, shares};
use crate::lab::Lab;
use crate::team;
use crate::warm::touched;

/// Memory of another process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoteMemory {
    pub(crate) pid: u32,
    pub(crate) addr: usize,
    pub(crate) len: usize,
}

impl RemoteMemory {
    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    /// When any of them cannot be read.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result {
        let mut done = 0;
        while done < out.len() {
            let remote = RemoteIoVec {
                base: self.addr + offset + done,
                len: out.len() - done,
            };
            let local = IoSliceMut::new(&mut out[done..]);
            let n = process_vm_readv(
                Pid::from_raw(self.pid.cast_signed()),
                &mut [local],
                &[remote],
            )
            .context("process_vm_readv")?;
            ensure(n > 0, || "process_vm_readv came to an end".into())?;
            done += n;
        }
        Ok(())
    }
}

/// All pages, in long calls, into one buffer per thread.
pub(super) fn readv(lab: &Lab, n_threads: usize) -> Result<Time> {
    let target = lab.target;
    whole_target(target, n_threads, |offset, out| target.read(offset, out))
}

/// The same through the file that has to be used where protection forbids the call.
pub(super) fn proc_mem(lab: &Lab, n_threads: usize) -> Result<Time> {
    let target = lab.target;
    let path = format!("/proc/{}/mem", target.pid);
    let mem = File::open(&path).context(&path)?;
    whole_target(target, n_threads, |offset, out| {
        mem.read_exact_at(out, (target.addr + offset) as u64)
            .context(&path)
    })
}

fn whole_target(
    target: RemoteMemory,
    n_threads: usize,
    read: impl Fn(usize, &mut [u8]) -> Result + Sync,
) -> Result<Time> {
    let len = target.len;
    let teams = shares(len, n_threads, PIECE).into_iter();
    let teams = teams
        .map(|share| Ok((share, touched(PIECE)?)))
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |((begin, len), mut buffer)| {
        for offset in (0..len).step_by(PIECE) {
            let n = PIECE.min(len - offset);
            read(begin + offset, &mut buffer[..n])?;
        }
        Ok(())
    })?;
    Ok(Time {
        len_bytes: len as u64,
        millis,
    })
}

/// What a scan without newer calls costs: eight bytes per page, read in one go. On one
/// thread always: it is too short to share.
pub(super) fn pagemap(lab: &Lab, _n_threads: usize) -> Result<Time> {
    let path = format!("/proc/{}/pagemap", lab.target.pid);
    let pagemap = File::open(&path).context(&path)?;
    let page = rustix::param::page_size();
    let mut buffer = vec![1; lab.target.len / page * 8];
    let at = (lab.target.addr / page * 8) as u64;
    let millis = team::timed(vec![&mut buffer], |buffer| {
        pagemap.read_exact_at(buffer, at).context(&path)
    })?;
    Ok(Time {
        len_bytes: lab.target.len as u64,
        millis,
    })
}

/// From one buffer to another, both beyond the caches.
pub(super) fn memcpy(lab: &Lab, n_threads: usize) -> Result<Time> {
    let from = &lab.stored;
    let mut to = touched(from.len().max(1))?;
    let share = from.len().div_ceil(n_threads).max(1);
    let teams: Vec<_> = from.chunks(share).zip(to.chunks_mut(share)).collect();
    let millis = team::timed(teams, |(from, to)| {
        to.copy_from_slice(from);
        Ok(())
    })?;
    Ok(Time {
        len_bytes: from.len() as u64,
        millis,
    })
}

/// Looking at every page of the target for zeros: one byte of most pages, all bytes of
/// those that are.
pub(super) fn zero_check(lab: &Lab, n_threads: usize) -> Result<Time> {
    let teams = shares(lab.target.len, n_threads, PIECE).into_iter();
    let teams = teams
        .map(|(offset, len)| {
            let mut bytes = touched(len)?;
            lab.target.read(offset, &mut bytes)?;
            Ok(bytes)
        })
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |bytes| {
        let pages = bytes.chunks(PAGE);
        black_box(pages.filter(|page| is_zero(page)).count());
        Ok(())
    })?;
    Ok(Time {
        len_bytes: lab.target.len as u64,
        millis,
    })
}

/// In steps that become vector instructions, with a look after each.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(256)
        .all(|part| part.iter().fold(0, |sum, byte| sum | byte) == 0)
}
