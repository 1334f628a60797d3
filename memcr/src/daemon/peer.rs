//! Who is at the other end of a connection, as the kernel tells it.
//!
//! ```text
//! UNIX socket ── SO_PEERCRED, SO_PEERGROUPS ──▶ uid, gid, groups, process, user namespace
//! TCP, trust = uid ── sock_diag(7), or /proc/net/tcp{,6} ──▶ uid ── /etc/passwd ──▶ gid
//! TCP, trust = all ──▶ anyone
//! ```
//!
//! A peer is known by what it was when it connected; what it says of itself counts for
//! nothing. It is plain data: a session's process can ask the rules once more with it.

mod tcp;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::cli::config::TcpTrust;
use crate::sys::peer;
use crate::sys::procfs::Stat;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    /// Of a UNIX socket: who connected, as it was then.
    Process {
        /// Its effective user id.
        uid: u32,
        /// Its effective group id.
        gid: u32,
        /// Its supplementary groups.
        groups: Vec<u32>,
        /// Which process it was; `None`: gone already, or not in our pid namespace.
        process: Option<Process>,
    },
    /// Of a TCP connection within this machine: who made the socket.
    User {
        /// The user.
        uid: u32,
        /// The group that a login gives the user; `None`: `/etc/passwd` has no such user.
        gid: Option<u32>,
    },
    /// Of a TCP port where everybody counts as root.
    Anyone,
}

/// A process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its pid in our namespace.
    pub(super) pid: i32,
    /// When it started, in clock ticks since boot: with the pid it names one process.
    pub(super) start_time: u64,
    /// Inode of its user namespace; `None`: we may not see it.
    pub(super) user_namespace: Option<u64>,
}

/// Why it is not known who is at the other end. Such a connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The kernel does not tell.
    #[error("cannot find out who connected")]
    Io(#[from] io::Error),
    /// The peer has an address that no user of this machine has proven to be hers.
    #[error("it is not known who is at {0}: only clients at 127.0.0.1 or ::1 of this machine are")]
    Unknown(SocketAddr),
}

impl Peer {
    /// The peer of an accepted connection of a UNIX socket.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn of_unix(socket: BorrowedFd<'_>) -> Result<Self, PeerError> {
        let found = peer::credentials(socket)?;
        let groups = match peer::groups(socket) {
            // Before Linux 4.13 only the primary group is known. /proc/PID/status would tell
            // them too, but of whatever process has the pid now.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Vec::new(),
            found => found?,
        };
        Ok(Self::Process {
            uid: found.uid,
            gid: found.gid,
            groups,
            process: found.pid.and_then(Process::look),
        })
    }

    /// The peer of an accepted TCP connection.
    ///
    /// # Errors
    /// [`PeerError::Unknown`]: it is not within this machine, or over already.
    pub(super) fn of_tcp(socket: BorrowedFd<'_>, trust: TcpTrust) -> Result<Self, PeerError> {
        if trust == TcpTrust::All {
            return Ok(Self::Anyone);
        }
        let uid = tcp::owner(socket)?;
        let passwd = fs::read("/etc/passwd").unwrap_or_default();
        Ok(Self::User {
            uid,
            gid: login_gid(&String::from_utf8_lossy(&passwd), uid),
        })
    }

    /// The user it acts for.
    #[must_use]
    pub(super) fn uid(&self) -> u32 {
        match self {
            Self::Process { uid, .. } | Self::User { uid, .. } => *uid,
            Self::Anyone => 0,
        }
    }

    /// Whether the group is one of the peer's own. Over TCP no membership is known: what
    /// the user could have is not what this program was given.
    #[must_use]
    pub(super) fn is_in(&self, group: u32) -> bool {
        match self {
            Self::Process { gid, groups, .. } => *gid == group || groups.contains(&group),
            Self::User { .. } | Self::Anyone => false,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process {
                uid,
                process: Some(process),
                ..
            } => write!(f, "uid {uid}, process {}", process.pid),
            Self::Process { uid, .. } => write!(f, "uid {uid}"),
            Self::User { uid, .. } => write!(f, "uid {uid}, over TCP"),
            Self::Anyone => f.write_str("anyone, over TCP"),
        }
    }
}

impl Process {
    /// The process that has `pid` now: the one that connected, unless within the moment
    /// since then it ended and all other pids were used up. What hangs on it is only what
    /// more than the same user is asked for, never who the user is.
    fn look(pid: i32) -> Option<Self> {
        let start_time = Stat::read(pid).ok()?.start_time;
        let user_namespace = user_namespace(pid).ok();
        Some(Self {
            pid,
            start_time,
            user_namespace,
        })
    }
}

/// The inode that names the user namespace of a process (namespaces(7)).
///
/// # Errors
/// EACCES: not ours to look at; ENOENT: gone, or a kernel without user namespaces.
pub(super) fn user_namespace(pid: i32) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/ns/user")).map(|meta| meta.ino())
}

/// The group of a user by the text of `/etc/passwd` (passwd(5)). Not by getpwuid(3),
/// which may wait for a server on the network, and everybody else with it.
fn login_gid(passwd: &str, uid: u32) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut numbers = line.split(':').skip(2);
        let found: u32 = numbers.next()?.parse().ok()?;
        let gid = numbers.next()?.parse().ok()?;
        (found == uid).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn we() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_unix_peer_is_a_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of_unix(ours.as_fd()).unwrap();
        let Peer::Process { uid, process, .. } = &peer else {
            panic!("{peer:?}");
        };
        let pid = std::process::id().cast_signed();
        let process = process.unwrap();
        assert_eq!((*uid, process.pid), (we(), pid));
        assert_eq!(process.user_namespace, user_namespace(pid).ok());
        assert_eq!(process.start_time, Stat::read(pid).unwrap().start_time);
        assert!(peer.is_in(rustix::process::getegid().as_raw()));
        assert_eq!(peer.to_string(), format!("uid {}, process {pid}", we()));
    }

    #[test]
    fn a_tcp_peer_is_a_user() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue; // a kernel without IPv6
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, from) = listener.accept().unwrap();
            let trust = TcpTrust::Uid;
            assert_eq!(Peer::of_tcp(socket.as_fd(), trust).unwrap().uid(), we());
            // Clients of the old protocol may close their side once they have asked.
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(Peer::of_tcp(socket.as_fd(), trust).unwrap().uid(), we());
            drop(client);
            let error = Peer::of_tcp(socket.as_fd(), trust).unwrap_err();
            assert!(
                matches!(error, PeerError::Unknown(address) if address == from),
                "the kernel shows a closed socket as one of root: {error:?}"
            );
            let anyone = Peer::of_tcp(socket.as_fd(), TcpTrust::All).unwrap();
            assert_eq!((anyone.uid(), anyone.is_in(0)), (0, false));
        }
    }

    #[test]
    fn logins_have_the_group_that_passwd_says() {
        let text = "root:x:0:0:root:/root:/bin/sh\n+nis\n#c:1:2\nodd:x:a:b:\n\
                    me:x:1000:100::/:\nalias:x:1000:7::/:\n";
        assert_eq!(login_gid(text, 0), Some(0));
        assert_eq!(login_gid(text, 1000), Some(100));
        assert_eq!(login_gid(text, 2), None);
    }
}
