//! The connection to a daemon: made, written to, read from, within deadlines.
//!
//! Interrupted calls (EINTR) are made again here and nowhere else. A peer that has gone
//! is an error (EPIPE), never a signal.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use memcr_wire::Location;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

/// A connection to the daemon at `location`; a port is one of the loopback interface.
/// Connecting, and each later [`send_all`], fails after `within`.
///
/// # Errors
/// What the kernel says; a deadline that has passed is [`io::ErrorKind::TimedOut`].
pub fn open(location: &Location, within: Option<Duration>) -> io::Result<OwnedFd> {
    let family = match location {
        Location::Port(_) => AddressFamily::INET,
        Location::Path(_) => AddressFamily::UNIX,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if within.is_some() {
        // It is the deadline of connect(2) too, for both families.
        set_socket_timeout(&socket, Timeout::Send, within)?;
    }
    retried(|| match location {
        Location::Port(port) => connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port)),
        Location::Path(path) => connect(&socket, &SocketAddrUnix::new(path)?),
    })
    .or_else(|errno| match errno {
        // The call that was interrupted had gone on meanwhile.
        Errno::ISCONN => Ok(()),
        // What TCP says when the deadline passes.
        Errno::INPROGRESS | Errno::ALREADY => Err(Errno::TIMEDOUT),
        errno => Err(errno),
    })
    .map_err(late)?;
    Ok(socket)
}

/// Sends all of `bytes`.
///
/// # Errors
/// What the kernel says; EPIPE and ECONNRESET when the daemon has closed.
pub fn send_all(socket: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n_sent = retried(|| send(&socket, bytes, SendFlags::NOSIGNAL)).map_err(late)?;
        bytes = &bytes[n_sent..];
    }
    Ok(())
}

/// Receives what is there, and waits for it until `deadline`: then it fails with
/// [`io::ErrorKind::TimedOut`]. Without one, the socket's own (SO_RCVTIMEO) counts.
/// 0 bytes: the daemon has closed.
///
/// # Errors
/// What the kernel says.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    deadline: Option<Instant>,
) -> io::Result<usize> {
    if let Some(deadline) = deadline {
        wait_readable(&socket, deadline)?;
    }
    retried(|| recv(&socket, &mut *buffer, RecvFlags::empty()))
        .map(|(n_received, _)| n_received)
        .map_err(late)
}

fn wait_readable(socket: impl AsFd, deadline: Instant) -> io::Result<()> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // More than a clock can hold is waited for in steps.
        let left = Timespec::try_from(left.min(Duration::from_secs(3600))).ok();
        match poll(&mut fds, left.as_ref()) {
            Ok(0) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A blocking call says EAGAIN when the socket's own deadline has passed.
fn late(errno: Errno) -> io::Error {
    match errno {
        Errno::AGAIN => io::Error::from(io::ErrorKind::TimedOut),
        errno => errno.into(),
    }
}
