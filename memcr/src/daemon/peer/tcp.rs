//! Whose socket is at the other end of a TCP connection within this machine.
//!
//! The kernel is asked for the two ends of the connection, each by its addresses, and for
//! both twice:
//!
//! ```text
//!            local            remote           state        uid   inode
//! theirs     127.0.0.1:50000  127.0.0.1:9000   ESTABLISHED  1000  4712
//! ours       127.0.0.1:9000   127.0.0.1:50000  ESTABLISHED     0  4711
//! ```
//!
//! Where it has no such lookup (sock_diag(7)), both are looked for in the lists of all
//! sockets. That is slow, and whoever connects again and again makes everybody wait.
//!
//! Four things must not be believed:
//!
//! * A socket that its process has closed has uid 0 and inode 0. One that is closed while
//!   the kernel tells of it may have uid 0 beside its inode. So a socket counts only with
//!   an inode, and if a second look finds the same.
//! * A socket that is just being connected (`SYN_SENT`) may have the addresses of a
//!   connection that somebody else has closed. It does not count, and neither does
//!   anything once our own end, known by its inode, is no longer there: as long as it
//!   is, no other connection has these addresses.
//! * Where no socket is connected so, the lookup finds one that listens, which is
//!   anybody's. So what it finds counts only with these very addresses and states.
//! * A socket with an address of another machine was not made by that machine (a
//!   transparent proxy has such sockets). So only loopback addresses count.

mod lists;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::fstat;
use rustix::net::{getpeername, getsockname};

use super::PeerError;
use crate::sys::sock_diag::{TcpLookup, TcpSocket};

/// Whether the kernel has the lookup: the first connection finds out. One that has not
/// would look for a module each time it is asked.
static HAS_LOOKUP: OnceLock<bool> = OnceLock::new();

/// The uid of whoever made the socket that `socket` is connected to.
///
/// # Errors
/// [`PeerError::Unknown`]: another machine, or closed already.
pub(super) fn owner(socket: BorrowedFd<'_>) -> Result<u32, PeerError> {
    let ours = End::of(socket)?;
    let theirs = match ours.is_loopback() {
        true => other_end(socket, &ours)?,
        false => None,
    };
    theirs
        .map(|theirs| theirs.uid)
        .ok_or(PeerError::Unknown(ours.remote))
}

fn other_end(socket: BorrowedFd<'_>, ours: &End) -> io::Result<Option<Socket>> {
    if HAS_LOOKUP.get() == Some(&false) {
        return by_lists(ours);
    }
    match by_lookup(ours) {
        Err(error) if is_without(&error, socket) => {
            HAS_LOOKUP.get_or_init(|| false);
            by_lists(ours)
        }
        // Our own end is over, or the kernel says nothing.
        Err(error) if is_not_there(&error) || error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
        Ok(found) => {
            HAS_LOOKUP.get_or_init(|| true);
            Ok(found)
        }
    }
}

/// Not by a netlink socket that is kept: the processes of sessions would have it too, and
/// what is left in it by one connection would be there for the next.
///
/// # Errors
/// ENOENT: our own end is not found.
fn by_lookup(ours: &End) -> io::Result<Option<Socket>> {
    let mut lookup = TcpLookup::open()?;
    twice(|| ours.look_up(&mut lookup))
}

fn by_lists(ours: &End) -> io::Result<Option<Socket>> {
    twice(|| lists::find(ours, lists::open()))
}

/// What two looks find, if it is the same.
fn twice(mut look: impl FnMut() -> io::Result<Option<Socket>>) -> io::Result<Option<Socket>> {
    let (first, second) = (look()?, look()?);
    let pair = first.zip(second);
    Ok(pair.and_then(|(first, second)| (first.lasting() == second.lasting()).then_some(first)))
}

fn is_not_there(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

/// Whether there is no lookup, by the error of one: not in this kernel, or not for us. That
/// our end is not found may also mean that it is over by now: no reason for the slow way,
/// which a client could then choose.
fn is_without(error: &io::Error, socket: BorrowedFd<'_>) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOENT) => End::of(socket).is_ok(),
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ECONNREFUSED) => true,
        Some(libc::EPERM | libc::EACCES) => true,
        _ => false,
    }
}

/// Our end of a connection.
#[derive(Debug, Clone, Copy)]
struct End {
    local: SocketAddr,
    remote: SocketAddr,
    inode: u64,
}

/// A socket as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Socket {
    /// What stays as long as the socket does; its state may move on between two looks.
    fn lasting(&self) -> (u64, u32) {
        (self.inode, self.uid)
    }
}

impl From<TcpSocket> for Socket {
    fn from(found: TcpSocket) -> Self {
        Self {
            local: plain(found.local),
            remote: plain(found.remote),
            state: found.state,
            uid: found.uid,
            inode: found.inode.into(),
        }
    }
}

// include/net/tcp_states.h
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;

impl End {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let not_connected = || io::Error::from_raw_os_error(libc::ENOTCONN);
        let remote = getpeername(socket)?.ok_or_else(not_connected)?;
        Ok(Self {
            local: plain(getsockname(socket)?.try_into()?),
            remote: plain(remote.try_into()?),
            inode: fstat(socket)?.st_ino,
        })
    }

    fn is_loopback(&self) -> bool {
        self.local.ip().is_loopback() && self.remote.ip().is_loopback()
    }

    /// The other end, if the kernel has that and ours: theirs is asked for first, for
    /// what is found while ours is there counts.
    ///
    /// # Errors
    /// ENOENT: ours is not found.
    fn look_up(&self, lookup: &mut TcpLookup) -> io::Result<Option<Socket>> {
        let theirs = match lookup.find(self.remote, self.local) {
            Err(error) if is_not_there(&error) => None,
            found => Some(Socket::from(found?)),
        };
        let ours = Socket::from(lookup.find(self.local, self.remote)?);
        Ok(theirs.filter(|theirs| self.is_other_end(theirs) && self.is(&ours)))
    }

    fn is(&self, socket: &Socket) -> bool {
        (socket.local, socket.remote, socket.inode) == (self.local, self.remote, self.inode)
            && matches!(socket.state, ESTABLISHED | CLOSE_WAIT)
    }

    /// It may have closed its side of the connection, though not the socket.
    fn is_other_end(&self, socket: &Socket) -> bool {
        (socket.local, socket.remote) == (self.remote, self.local)
            && socket.inode != 0
            && matches!(socket.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2)
    }
}

/// An IPv4 address as such, also where an IPv6 socket wraps it (`::ffff:127.0.0.1`), and
/// without what only sockets know of an IPv6 address.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

    const SYN_SENT: u8 = 2;
    const LISTEN: u8 = 10;

    struct Connection {
        listener: TcpListener,
        client: TcpStream,
        socket: TcpStream,
        ours: End,
    }

    /// A connection of `to` to a listener at `at`; `None`: a kernel without IPv6.
    fn connection(at: &str, to: &str) -> Option<Connection> {
        let listener = TcpListener::bind(at).ok()?;
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((to, port)).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let ours = End::of(socket.as_fd()).unwrap();
        Some(Connection {
            listener,
            client,
            socket,
            ours,
        })
    }

    /// Of each kind: IPv4, IPv6, and either end an IPv6 socket with IPv4 addresses.
    fn connections() -> impl Iterator<Item = Connection> {
        [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
            ("127.0.0.1:0", "::ffff:127.0.0.1"),
            ("[::]:0", "::ffff:127.0.0.1"),
        ]
        .into_iter()
        .filter_map(|(at, to)| connection(at, to))
    }

    fn has_lookup() -> bool {
        let connection = connection("127.0.0.1:0", "127.0.0.1").unwrap();
        let Err(error) = by_lookup(&connection.ours) else {
            return true;
        };
        assert!(
            std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
            "required: sock_diag: {error}"
        );
        eprintln!("skipped: no sock_diag: {error}");
        false
    }

    type Way = fn(&End) -> io::Result<Option<Socket>>;

    /// How the two ends can be looked for here.
    fn ways() -> Vec<Way> {
        let mut ways: Vec<Way> = vec![by_lists];
        if has_lookup() {
            ways.push(by_lookup);
        }
        ways
    }

    #[test]
    fn whoever_has_the_other_end_is_found_either_way() {
        let we = rustix::process::geteuid().as_raw();
        for way in ways() {
            for c in connections() {
                let inode = fstat(c.client.as_fd()).unwrap().st_ino;
                let found = || way(&c.ours).unwrap().map(|theirs| theirs.lasting());
                assert_eq!(found(), Some((inode, we)), "{:?}", c.ours);
                c.client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(found(), Some((inode, we)), "half closed: {:?}", c.ours);
                drop(c.client);
                assert_eq!(way(&c.ours).unwrap(), None, "closed: {:?}", c.ours);
            }
        }
    }

    #[test]
    fn our_own_end_must_be_there() {
        for way in ways() {
            let mut c = connection("127.0.0.1:0", "127.0.0.1").unwrap();
            c.ours.inode += 1;
            assert_eq!(way(&c.ours).unwrap(), None, "another socket");
        }
    }

    #[test]
    fn after_a_reset_nobody_is_there() {
        for c in connections() {
            sockopt::set_socket_linger(&c.client, Some(Duration::ZERO)).unwrap();
            drop(c.client);
            // The lookup now finds the listener in place of our own end.
            assert_eq!(other_end(c.socket.as_fd(), &c.ours).unwrap(), None);
            drop(c.listener);
            assert_eq!(other_end(c.socket.as_fd(), &c.ours).unwrap(), None);
            if has_lookup() {
                assert!(is_not_there(&by_lookup(&c.ours).unwrap_err()));
                assert_ne!(
                    HAS_LOOKUP.get(),
                    Some(&false),
                    "it is the client that is gone"
                );
            }
        }
    }

    #[test]
    fn a_client_cannot_choose_the_slow_way() {
        let c = connection("127.0.0.1:0", "127.0.0.1").unwrap();
        let is_without = |code| is_without(&io::Error::from_raw_os_error(code), c.socket.as_fd());
        assert!(is_without(libc::ENOENT), "ours is there, and not found");
        assert!(is_without(libc::EPROTONOSUPPORT));
        assert!(!is_without(libc::EMFILE), "of many connections");
        sockopt::set_socket_linger(&c.client, Some(Duration::ZERO)).unwrap();
        drop(c.client);
        assert!(!is_without(libc::ENOENT), "ours is over");
    }

    #[test]
    fn a_socket_that_listens_or_connects_is_no_peer() {
        if !has_lookup() {
            return;
        }
        let home: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let new = || -> OwnedFd {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
        };
        let listener = new();
        rustix::net::bind(&listener, &home).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let at: SocketAddr = getsockname(&listener).unwrap().try_into().unwrap();
        // The first fills the queue; the second has to wait.
        let [_first, second] = [new(), new()].map(|client| {
            let result = rustix::net::connect(&client, &at);
            assert_eq!(result, Err(rustix::io::Errno::INPROGRESS));
            client
        });
        let from: SocketAddr = getsockname(&second).unwrap().try_into().unwrap();
        let end = |local, remote| End {
            local,
            remote,
            inode: 1,
        };
        let mut lookup = TcpLookup::open().unwrap();
        let mut look = |local, remote| Socket::from(lookup.find(local, remote).unwrap());
        let connecting = look(from, at);
        assert_eq!(connecting.state, SYN_SENT);
        assert_ne!(connecting.inode, 0);
        assert!(!end(at, from).is_other_end(&connecting));
        let listening = look(at, from);
        assert_eq!(listening.state, LISTEN);
        assert!(!end(from, at).is_other_end(&listening));
        assert_eq!(by_lookup(&end(at, from)).unwrap(), None);
    }

    #[test]
    fn two_looks_must_agree() {
        let socket = |state, uid, inode| Socket {
            local: "127.0.0.1:1".parse().unwrap(),
            remote: "127.0.0.1:2".parse().unwrap(),
            state,
            uid,
            inode,
        };
        let first = socket(ESTABLISHED, 1000, 5);
        for (second, want) in [
            (Some(first), Some(first)),
            (Some(socket(FIN_WAIT2, 1000, 5)), Some(first)),
            (Some(socket(ESTABLISHED, 0, 5)), None),
            (Some(socket(ESTABLISHED, 1000, 6)), None),
            (None, None),
        ] {
            let mut looks = [Some(first), second].into_iter();
            assert_eq!(twice(|| Ok(looks.next().flatten())).unwrap(), want);
        }
    }

    #[test]
    fn other_machines_are_not_asked_for() {
        for (local, remote, want) in [
            ("127.0.0.1:9000", "127.0.0.1:50000", true),
            ("127.0.0.9:1", "127.1.2.3:2", true),
            ("[::1]:1", "[::1]:2", true),
            ("192.168.1.5:1", "192.168.1.5:2", false),
            ("127.0.0.1:1", "192.168.1.5:2", false),
            ("0.0.0.0:1", "10.0.0.1:2", false),
        ] {
            let end = End {
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
                inode: 1,
            };
            assert_eq!(end.is_loopback(), want, "{local} {remote}");
        }
    }
}
