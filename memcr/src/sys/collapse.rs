//! process_madvise(2), MADV_COLLAPSE (Linux 6.1): huge pages for another process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;
use crate::pages::PageRun;

const MADV_COLLAPSE: libc::c_int = 25;

/// Backs `run` of the process behind `pidfd` by huge pages, now.
///
/// # Errors
/// EPERM without CAP_SYS_NICE; ENOMEM, EAGAIN, EINVAL: the kernel has none for it.
pub fn collapse(pidfd: BorrowedFd<'_>, run: PageRun) -> io::Result<()> {
    let vector = libc::iovec {
        iov_base: run.addr.0 as *mut libc::c_void,
        iov_len: usize::try_from(run.len_bytes).map_err(io::Error::other)?,
    };
    // SAFETY: the vector is live and of length 1; what it describes is memory of the
    // other process, which the call neither reads nor changes for its owner.
    let result = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const vector,
            1_usize,
            MADV_COLLAPSE,
            0,
        )
    };
    check(result).map(drop)
}
