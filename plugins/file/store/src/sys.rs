//! The one call of this crate that no library offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Writes all dirty pages of `file` to its disk and waits until the disk has them, but does
/// not tell the disk to empty its own cache (sync_file_range(2), with the three flags that since
/// Linux 5.2 make it write for integrity).
///
/// # Errors
/// What the disk reports, of this or any earlier write-out of the file.
pub(crate) fn write_and_wait(file: &File) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: all arguments are numbers; the descriptor is open as long as `file` is borrowed.
    // A length of 0 is all of the file.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
