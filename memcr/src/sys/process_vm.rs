//! process_vm_readv(2) and process_vm_writev(2): whole vectors, or an error.

use std::io::{self, IoSlice, IoSliceMut};

use nix::sys::uio::{self, RemoteIoVec};
use nix::unistd::Pid;

use crate::pages::PageRun;

/// Most elements of a vector in one call (`UIO_MAXIOV`, readv(2)).
const MAX_IOV: usize = 1024;

/// Reads `runs` of `pid`, one behind the other, into `out`; their lengths are equal.
///
/// # Errors
/// EFAULT: a run is not readable by its mapping's protection; ESRCH; EPERM.
pub fn read(pid: i32, runs: &[PageRun], out: &mut [u8]) -> io::Result<()> {
    let mut rest = out;
    for batch in runs.chunks(MAX_IOV) {
        let (part, tail) = rest.split_at_mut(total_len(batch)?);
        let expected = part.len();
        let done = uio::process_vm_readv(
            Pid::from_raw(pid),
            &mut [IoSliceMut::new(part)],
            &remote(batch),
        )?;
        check_whole(done, expected)?;
        rest = tail;
    }
    Ok(())
}

/// Writes `bytes` to `runs` of `pid`, one behind the other; their lengths are equal.
///
/// # Errors
/// EFAULT: a run is not writable by its mapping's protection; ESRCH; EPERM; ENOMEM.
pub fn write(pid: i32, runs: &[PageRun], bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    for batch in runs.chunks(MAX_IOV) {
        let (part, tail) = rest.split_at(total_len(batch)?);
        let done =
            uio::process_vm_writev(Pid::from_raw(pid), &[IoSlice::new(part)], &remote(batch))?;
        check_whole(done, part.len())?;
        rest = tail;
    }
    Ok(())
}

fn remote(runs: &[PageRun]) -> Vec<RemoteIoVec> {
    runs.iter()
        .map(|run| RemoteIoVec {
            base: run.addr.0 as usize,
            len: run.len_bytes as usize,
        })
        .collect()
}

fn total_len(runs: &[PageRun]) -> io::Result<usize> {
    let total: u64 = runs.iter().map(|run| run.len_bytes).sum();
    usize::try_from(total).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A short count means that the next byte faulted; the call says so only when it is asked again.
fn check_whole(done: usize, expected: usize) -> io::Result<()> {
    if done == expected {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}
