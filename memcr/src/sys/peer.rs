//! Who connected to a UNIX socket, as the kernel remembers it (unix(7), `SO_PEERCRED`,
//! `SO_PEERGROUPS`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Who connected, as it was at that moment; later changes of the process do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its process, where our pid namespace has it.
    pub pid: Option<i32>,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// Groups that a process can have: `NGROUPS_MAX` of linux/limits.h.
const MAX_GROUPS: usize = 65_536;

/// Groups that are asked for at first: more than most have.
const USUAL_GROUPS: usize = 64;

const GROUP_LEN: usize = size_of::<libc::gid_t>();

/// The credentials of the other end. Not rustix's call, whose answer cannot hold the
/// pid 0 that the kernel gives for a process outside of our pid namespace.
///
/// # Errors
/// ENOTSOCK, or ENOTCONN for a TCP socket of some kernels.
pub fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut found = [libc::ucred {
        pid: 0,
        // No user and no group, should the kernel leave them as they are, which it
        // does for sockets without a peer.
        uid: u32::MAX,
        gid: u32::MAX,
    }];
    let len = option(socket, libc::SO_PEERCRED, &mut found)?;
    let [ucred] = found;
    if len != size_of::<libc::ucred>() || ucred.uid == u32::MAX || ucred.gid == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
    }
    Ok(Credentials {
        pid: Some(ucred.pid).filter(|pid| *pid > 0),
        uid: ucred.uid,
        gid: ucred.gid,
    })
}

/// The supplementary groups of the other end.
///
/// # Errors
/// ENOPROTOOPT before Linux 4.13; ENODATA: nobody has connected.
pub fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    match groups_up_to(socket, USUAL_GROUPS) {
        // The kernel says how many there are, but no process has more than this.
        Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {
            groups_up_to(socket, MAX_GROUPS)
        }
        done => done,
    }
}

fn groups_up_to(socket: BorrowedFd<'_>, n_groups: usize) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; n_groups];
    let len = option(socket, libc::SO_PEERGROUPS, &mut groups)?;
    groups.truncate(len / GROUP_LEN);
    Ok(groups)
}

/// What the kernel may write anything into: any bytes are a value, there is no padding.
///
/// # Safety
/// Only for such types.
unsafe trait Plain {}
// SAFETY: an integer of 32 bits.
unsafe impl Plain for libc::gid_t {}
// SAFETY: three integers of 32 bits, repr(C).
unsafe impl Plain for libc::ucred {}

/// Reads a socket option into `value` and answers how many bytes it has.
fn option<T: Plain>(
    socket: BorrowedFd<'_>,
    name: libc::c_int,
    value: &mut [T],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(value))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: getsockopt writes at most `len` bytes to `value`, which has as many, is ours
    // alone, and may hold any bytes (`Plain`); and one length to `len`. The descriptor is
    // borrowed, hence open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    super::check(result.into()).map(|_| len as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn we_are_who_connected() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let _client = UnixStream::connect(dir.path().join("s")).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let found = credentials(socket.as_fd()).unwrap();
        assert_eq!(found.pid, Some(std::process::id().cast_signed()));
        assert_eq!(found.uid, rustix::process::geteuid().as_raw());
        assert_eq!(found.gid, rustix::process::getegid().as_raw());
        let ours = rustix::process::getgroups().unwrap();
        let ours: Vec<u32> = ours.into_iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups(socket.as_fd()).unwrap(), ours);
    }

    #[test]
    fn a_socket_without_a_peer_has_nobody() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(credentials(udp.as_fd()).is_err());
        assert!(groups(udp.as_fd()).is_err());
    }

    #[test]
    fn more_groups_than_usual_are_all_told() {
        let Some(all) = with_many_groups() else {
            return; // setting groups needs root
        };
        let (socket, _client) = UnixStream::pair().unwrap();
        assert_eq!(groups(socket.as_fd()).unwrap(), all);
    }

    /// Gives this thread alone 100 groups; `None` where that is not allowed.
    fn with_many_groups() -> Option<Vec<u32>> {
        let all: Vec<libc::gid_t> = (5000..5100).collect();
        // SAFETY: setgroups reads as many groups as are said to be there; by the raw call
        // it changes this thread only, which ends with the test.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, all.len(), all.as_ptr()) };
        (result == 0).then_some(all)
    }
}
