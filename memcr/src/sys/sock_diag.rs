//! One TCP socket of our network namespace, looked up by its addresses (sock_diag(7)).
//!
//! The kernel finds it in its hash table; to read `/proc/net/tcp` is to walk all of that.
//! Each question is one message over netlink(7), its answer another:
//!
//! ```text
//! question   0 nlmsghdr    16 inet_diag_req_v2                              72
//!              length,        family, protocol,  ┌ inet_diag_sockid (48) ┐
//!              type 20,       states             │ ports, addresses,     │
//!              sequence                          │ interface, cookie     │
//! answer     0 nlmsghdr    16 inet_diag_msg      └───────────────────────┘  88
//!              length,        family, state,       the same      queues,       attributes
//!              type 20,       timer                              uid, inode
//!              sequence
//! or         0 nlmsghdr    16 -errno             20
//!              type 2
//! ```
//!
//! Ports and addresses are in the order of the network, numbers in that of this CPU.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto, socket_with,
};

/// What asks the kernel. It never waits: the kernel answers before the question's call
/// returns.
#[derive(Debug)]
pub struct TcpLookup {
    socket: OwnedFd,
    n_asked: u32,
}

/// A TCP socket as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own address; of an IPv6 socket always an IPv6 address.
    pub local: SocketAddr,
    /// The other end's; of a listening socket the unspecified address.
    pub remote: SocketAddr,
    /// Its state: the numbers of include/net/tcp_states.h.
    pub state: u8,
    /// Who made it; 0 if no process has it any more.
    pub uid: u32,
    /// Its inode; 0 if no process has it any more.
    pub inode: u32,
}

const HEADER_LEN: usize = size_of::<libc::nlmsghdr>();

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NO_COOKIE: u32 = u32::MAX;
const REQUEST_LEN: u8 = 72;
const ANSWER_LEN: usize = 88;

/// Of a network namespace that has any: include/net/flow.h, `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;

/// The kernel may add attributes; they are not read, and may be cut off.
const ANSWER_ROOM: usize = 512;

impl TcpLookup {
    /// A new one; it is closed on exec.
    ///
    /// # Errors
    /// EPROTONOSUPPORT: a kernel without it; EAFNOSUPPORT, EPERM, EACCES: forbidden to us.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self { socket, n_asked: 0 })
    }

    /// The socket that gets what comes over the loopback interface from `remote` to
    /// `local`. If none is connected so, that is one that listens there.
    ///
    /// # Errors
    /// ENOENT: there is none, or the kernel has no lookup for TCP; EINVAL: addresses of
    /// two kinds; EAGAIN: no answer; EBADMSG: no answer of this kernel to this question.
    pub fn find(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<TcpSocket> {
        self.n_asked = self.n_asked.wrapping_add(1);
        let request = encode(self.n_asked, local, remote)?;
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &request, SendFlags::DONTWAIT, &kernel)?;
        let mut answer = [0; ANSWER_ROOM];
        let (len, _, from) = recvfrom(&self.socket, &mut answer, RecvFlags::DONTWAIT)?;
        // Whoever may administer the network may send to this socket too.
        match from.map(SocketAddrNetlink::try_from) {
            Some(Ok(from)) if from.pid() == 0 => decode(&answer[..len], self.n_asked),
            _ => Err(errno(libc::EBADMSG)),
        }
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn encode(sequence: u32, local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u8>> {
    let family = match (local, remote) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => AddressFamily::INET,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => AddressFamily::INET6,
        _ => return Err(errno(libc::EINVAL)),
    };
    let [family, _] = family.as_raw().to_le_bytes();
    let [tcp, ..] = libc::IPPROTO_TCP.to_le_bytes();
    let all_states = u32::MAX;

    let mut bytes = Vec::with_capacity(REQUEST_LEN.into());
    bytes.extend(u32::from(REQUEST_LEN).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(1u16.to_ne_bytes()); // NLM_F_REQUEST, and none of those for a dump
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes()); // from: the kernel knows
    bytes.extend([family, tcp, 0, 0]); // no attributes wanted
    bytes.extend(all_states.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(octets(local.ip()));
    bytes.extend(octets(remote.ip()));
    // Sockets that are bound to no interface are found with any.
    bytes.extend(LOOPBACK.to_ne_bytes());
    bytes.extend([NO_COOKIE.to_ne_bytes(); 2].as_flattened());
    Ok(bytes)
}

/// As `inet_diag_sockid` has it: 16 bytes, of which IPv4 uses the first four.
fn octets(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

/// The socket of an answer, or the error that it is.
fn decode(bytes: &[u8], sequence: u32) -> io::Result<TcpSocket> {
    let malformed = || errno(libc::EBADMSG);
    let answer = Answer(bytes);
    let (kind, to) = (answer.u16(4), answer.u32(8));
    if to != Some(sequence) {
        return Err(malformed());
    }
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => answer.socket().ok_or_else(malformed),
        Some(2) => Err(answer.error().map_or_else(malformed, errno)),
        _ => Err(malformed()),
    }
}

/// The bytes of an answer; `None`: it ends before.
#[derive(Clone, Copy)]
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn at<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn u16(self, offset: usize) -> Option<u16> {
        self.at(offset).map(u16::from_ne_bytes)
    }

    fn u32(self, offset: usize) -> Option<u32> {
        self.at(offset).map(u32::from_ne_bytes)
    }

    fn socket(self) -> Option<TcpSocket> {
        if (self.u32(0)? as usize) < ANSWER_LEN {
            return None;
        }
        let [family, state] = self.at(HEADER_LEN)?;
        Some(TcpSocket {
            local: self.address(family, 20, 24)?,
            remote: self.address(family, 22, 40)?,
            state,
            uid: self.u32(80)?,
            inode: self.u32(84)?,
        })
    }

    fn address(self, family: u8, port: usize, ip: usize) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(self.at(port)?);
        let ip: IpAddr = match AddressFamily::from_raw(family.into()) {
            AddressFamily::INET => Ipv4Addr::from(self.at::<4>(ip)?).into(),
            AddressFamily::INET6 => Ipv6Addr::from(self.at::<16>(ip)?).into(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    /// The errno of an answer that is an error; 0 would be "done", which was not asked.
    fn error(self) -> Option<i32> {
        let code = self.at(HEADER_LEN).map(i32::from_ne_bytes)?;
        code.checked_neg().filter(|code| *code > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    const US: &str = "127.0.0.1:9000";
    const THEM: &str = "127.0.0.1:50000";

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// An answer as the kernel writes it: with an attribute behind.
    fn answer(family: u8, local: [u8; 16], remote: [u8; 16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(96u32.to_ne_bytes());
        bytes.extend(20u16.to_ne_bytes());
        bytes.extend(0u16.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(4711u32.to_ne_bytes());
        bytes.extend([family, 8, 0, 0]); // CLOSE_WAIT
        bytes.extend([0x23, 0x28, 0xc3, 0x50]);
        bytes.extend(local);
        bytes.extend(remote);
        bytes.extend([0; 4]);
        bytes.extend([0xaa; 8]); // cookie
        bytes.extend([0; 12]);
        bytes.extend(1000u32.to_ne_bytes());
        bytes.extend(0x8000_0001u32.to_ne_bytes());
        bytes.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        bytes
    }

    fn code(found: &io::Result<TcpSocket>) -> Option<i32> {
        found.as_ref().err().and_then(io::Error::raw_os_error)
    }

    #[test]
    fn a_question_has_the_bytes_that_the_kernel_reads() {
        if cfg!(target_endian = "little") {
            let bytes = encode(7, address(US), address(THEM)).unwrap();
            let (header, rest) = bytes.split_at(16);
            assert_eq!(header, [72, 0, 0, 0, 20, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
            let (request, id) = rest.split_at(8);
            assert_eq!(request, [2, 6, 0, 0, 255, 255, 255, 255]);
            let (ports, rest) = id.split_at(4);
            assert_eq!(ports, [0x23, 0x28, 0xc3, 0x50]);
            let (addresses, rest) = rest.split_at(32);
            assert_eq!(addresses[..5], [127, 0, 0, 1, 0]);
            assert_eq!(addresses[16..21], [127, 0, 0, 1, 0]);
            assert_eq!(
                rest,
                [1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255],
                "loopback, no cookie"
            );
        }
        let bytes = encode(7, address("[::1]:1"), address("[::2]:2")).unwrap();
        assert_eq!((bytes.len(), bytes[16]), (72, 10));
        assert_eq!((bytes[43], bytes[59]), (1, 2));
        let error = encode(7, address(US), address("[::1]:1")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn an_answer_is_read_as_the_kernel_writes_it() {
        let mut home = [0; 16];
        home[..4].copy_from_slice(&[127, 0, 0, 1]);
        let mut want = TcpSocket {
            local: address(US),
            remote: address(THEM),
            state: 8,
            uid: 1000,
            inode: 0x8000_0001,
        };
        assert_eq!(decode(&answer(2, home, home), 7).unwrap(), want);
        let [v6, mapped] = ["::1", "::ffff:127.0.0.1"].map(|ip| octets(ip.parse().unwrap()));
        want.local = address("[::1]:9000");
        want.remote = address("[::ffff:127.0.0.1]:50000");
        assert_eq!(decode(&answer(10, v6, mapped), 7).unwrap(), want);
    }

    #[test]
    fn what_is_no_answer_is_not_believed() {
        let good = answer(2, [0; 16], [0; 16]);
        for len in 0..ANSWER_LEN {
            assert_eq!(code(&decode(&good[..len], 7)), Some(libc::EBADMSG), "{len}");
        }
        assert_eq!(code(&decode(&good, 8)), Some(libc::EBADMSG), "another's");
        for (at, what) in [(0, "short"), (4, "type"), (16, "family")] {
            let mut bad = good.clone();
            bad[at..at + 2].copy_from_slice(&3u16.to_ne_bytes());
            assert_eq!(code(&decode(&bad, 7)), Some(libc::EBADMSG), "{what}");
        }
        let error = |code: i32| {
            let mut bytes = good[..HEADER_LEN].to_vec();
            bytes[4..6].copy_from_slice(&2u16.to_ne_bytes());
            bytes.extend(code.to_ne_bytes());
            super::tests::code(&decode(&bytes, 7))
        };
        assert_eq!(error(-libc::ENOENT), Some(libc::ENOENT));
        for odd in [0, 1, i32::MIN] {
            assert_eq!(error(odd), Some(libc::EBADMSG), "{odd}");
        }
    }

    #[test]
    fn a_connection_is_found_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (us, them) = (listener.local_addr().unwrap(), client.local_addr().unwrap());
        let mut lookup = match TcpLookup::open().map(|mut lookup| (lookup.find(them, us), lookup)) {
            Ok((Ok(_), lookup)) => lookup,
            Ok((Err(error), _)) | Err(error) => {
                assert!(
                    std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
                    "required: sock_diag: {error}"
                );
                return eprintln!("skipped: no sock_diag: {error}");
            }
        };
        let found = lookup.find(them, us).unwrap();
        assert_eq!((found.local, found.remote, found.state), (them, us, 1));
        assert_eq!(found.uid, rustix::process::geteuid().as_raw());
        let inode = rustix::fs::fstat(client.as_fd()).unwrap().st_ino;
        assert_eq!(u64::from(found.inode), inode);

        let nobody = lookup.find(them, address("127.0.0.1:1"));
        assert_eq!(code(&nobody), Some(libc::ENOENT));
        let listening = lookup.find(us, address("127.0.0.1:1")).unwrap();
        assert_eq!((listening.local, listening.state), (us, 10));
        assert_eq!(listening.remote, address("0.0.0.0:0"));
    }
}
