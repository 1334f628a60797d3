//! What the four functions do, without anything of C but its error numbers.

use std::ffi::{CStr, OsStr, c_int, c_uint};
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use memcr_client::{Command, Location, LocationError, socket};
use memcr_wire::LegacyRequest;

/// A number of errno(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) c_int);

/// Connects, without a deadline: the C memcr's library has none either.
pub(crate) fn connect(location: &CStr) -> Result<OwnedFd, Errno> {
    let location = Location::parse(OsStr::from_bytes(location.to_bytes()))?;
    Ok(socket::open(&location, None)?)
}

/// Asks in version 1 and waits for the code, within what deadlines the caller has set on
/// the socket (SO_SNDTIMEO, SO_RCVTIMEO).
pub(crate) fn ask(socket: BorrowedFd<'_>, command: Command, pid: c_uint) -> Result<c_int, Errno> {
    // A pid that is none goes to the daemon as it is, which says so.
    let request = LegacyRequest::v1(command, pid.cast_signed());
    let bytes = request.encode().map_err(|_| Errno(libc::EINVAL))?;
    match socket::send_all(socket, &bytes) {
        // A daemon that closes early may have answered.
        Err(error) if !is_gone(&error) => return Err(error.into()),
        _ => {}
    }
    let mut answer = [0; 4];
    let mut n_received = 0;
    while n_received < answer.len() {
        match socket::receive(socket, &mut answer[n_received..], None)? {
            0 => return Err(Errno(libc::ECONNRESET)),
            n => n_received += n,
        }
    }
    Ok(c_int::from_ne_bytes(answer))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            // What recv(2) says when SO_RCVTIMEO passes.
            ErrorKind::TimedOut => error.raw_os_error().unwrap_or(libc::EAGAIN),
            _ => error.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}

impl From<LocationError> for Errno {
    fn from(error: LocationError) -> Self {
        Self(match error {
            LocationError::TooLong { .. } => libc::ENAMETOOLONG,
            _ => libc::EINVAL,
        })
    }
}
