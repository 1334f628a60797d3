//! The four functions, as C calls them. Nothing but this file knows that C is there.
//!
//! A caller's mistake that can be seen (no text, a descriptor below 0) is an error like
//! any other. No panic gets out: what cannot happen is EIO.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::os::fd::{BorrowedFd, IntoRawFd};

use memcr_client::Command;

use crate::request::{self, Errno};

/// Connects to the daemon at `location`, a TCP port of this machine or the path of a UNIX
/// socket. Returns the descriptor of the connection, or -1 with errno set.
///
/// # Safety
/// `location` is null, or a text that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcr_client_connect(location: *const c_char) -> c_int {
    answered(|| {
        if location.is_null() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: it is not null, and by the contract of this function it is a text that
        // ends with a NUL. It is not kept.
        let location = unsafe { CStr::from_ptr(location) };
        Ok(request::connect(location)?.into_raw_fd())
    })
}

/// Closes the connection. A descriptor below 0 is passed over.
#[unsafe(no_mangle)]
pub extern "C" fn memcr_client_disconnect(cd: c_int) {
    if cd >= 0 {
        // SAFETY: close(2) takes any number. That `cd` is not in use elsewhere is what a
        // caller of this function says by calling it.
        unsafe { libc::close(cd) };
    }
}

/// Has the memory of process `pid` taken away. Returns the daemon's code, or -1 with
/// errno set.
#[unsafe(no_mangle)]
pub extern "C" fn memcr_client_checkpoint(cd: c_int, pid: c_uint) -> c_int {
    ask(cd, Command::Checkpoint, pid)
}

/// Has the memory of process `pid` given back. Returns as
/// [`memcr_client_checkpoint`].
#[unsafe(no_mangle)]
pub extern "C" fn memcr_client_restore(cd: c_int, pid: c_uint) -> c_int {
    ask(cd, Command::Restore, pid)
}

fn ask(cd: c_int, command: Command, pid: c_uint) -> c_int {
    answered(|| {
        if cd < 0 {
            return Err(Errno(libc::EBADF));
        }
        // SAFETY: `cd` is not -1. A number that is no open descriptor is harmless: it goes
        // to send(2) and recv(2) and nowhere else, and they answer EBADF.
        let socket = unsafe { BorrowedFd::borrow_raw(cd) };
        let code = request::ask(socket, command, pid)?;
        // -1 may be a code. Then errno tells that nothing failed here.
        set_errno(Errno(0));
        Ok(code)
    })
}

/// What `work` comes to, or -1 and errno.
fn answered(work: impl FnOnce() -> Result<c_int, Errno> + std::panic::UnwindSafe) -> c_int {
    let result = std::panic::catch_unwind(work);
    match result.unwrap_or(Err(Errno(libc::EIO))) {
        Ok(value) => value,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

fn set_errno(Errno(errno): Errno) {
    // SAFETY: the function demands nothing, and what it points to is this thread's own
    // and lives as long as the thread.
    unsafe { *libc::__errno_location() = errno };
}
