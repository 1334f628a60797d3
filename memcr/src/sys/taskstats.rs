//! How often the threads of a process together have gone to sleep: taskstats
//! (Documentation/accounting/taskstats.rst), which adds them up in the kernel. The same
//! from `/proc` is a file for each thread.
//!
//! ```text
//! question   0 nlmsghdr   16 genlmsghdr   20 attribute: length, type, value
//! answer     0 nlmsghdr   16 genlmsghdr   20 TYPE_AGGR_TGID  24 TYPE_TGID  …  TYPE_STATS
//!                                                                             struct taskstats
//! or         0 nlmsghdr   16 -errno       20
//!              type 2
//! ```

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto, socket_with,
};

/// linux/netlink.h, linux/genetlink.h: nlmsghdr and genlmsghdr.
const HEADERS_LEN: usize = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

// linux/taskstats.h
const TASKSTATS_CMD_GET: u8 = 1;
const TASKSTATS_CMD_ATTR_TGID: u16 = 2;
const TASKSTATS_TYPE_STATS: u16 = 3;
const TASKSTATS_TYPE_AGGR_TGID: u16 = 5;
/// Offset of `nvcsw` in `struct taskstats`, which grows at its end, but for one version.
const NVCSW: usize = 272;
const OTHER_VERSION: u16 = 15;

/// Longer than any answer of today.
const ANSWER_ROOM: usize = 4096;

/// What asks the kernel. It never waits: the kernel answers before the question's call
/// returns.
#[derive(Debug)]
pub struct TaskStats {
    socket: OwnedFd,
    family: u16,
}

impl TaskStats {
    /// A new one; it is closed on exec.
    ///
    /// # Errors
    /// ENOENT: a kernel, or a network namespace, without it; EAFNOSUPPORT, EPERM, EACCES:
    /// forbidden to us.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        let mut stats = Self {
            socket,
            family: GENL_ID_CTRL,
        };
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"TASKSTATS\0");
        let answer = stats.ask(CTRL_CMD_GETFAMILY, 1, &name)?;
        let id = find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|id| id.first_chunk());
        stats.family = u16::from_ne_bytes(*id.ok_or_else(malformed)?);
        Ok(stats)
    }

    /// Voluntary context switches of all threads of process `pid` together.
    ///
    /// # Errors
    /// EPERM: without CAP_NET_ADMIN; ESRCH: no such process.
    pub fn n_sleeps(&self, pid: i32) -> io::Result<u64> {
        let process = attribute(TASKSTATS_CMD_ATTR_TGID, &pid.to_ne_bytes());
        let answer = self.ask(TASKSTATS_CMD_GET, 1, &process)?;
        let both = find(&answer, TASKSTATS_TYPE_AGGR_TGID);
        let stats = both.and_then(|both| find(both, TASKSTATS_TYPE_STATS));
        n_sleeps_in(stats.ok_or_else(malformed)?)
    }

    /// The attributes of an answer.
    fn ask(&self, command: u8, version: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let len = (HEADERS_LEN + attributes.len()) as u32;
        let mut request = Vec::with_capacity(len as usize);
        request.extend(len.to_ne_bytes());
        request.extend(self.family.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        // Nothing else is under way, and who it is from the kernel knows.
        request.extend([0; 8]);
        request.extend([command, version, 0, 0]);
        request.extend(attributes);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &request, SendFlags::DONTWAIT, &kernel)?;
        let mut answer = [0; ANSWER_ROOM];
        let (len, _, from) = recvfrom(&self.socket, &mut answer, RecvFlags::DONTWAIT)?;
        // Whoever may administer the network may send to this socket too.
        match from.map(SocketAddrNetlink::try_from) {
            Some(Ok(from)) if from.pid() == 0 => attributes_of(&answer[..len]),
            _ => Err(malformed()),
        }
    }
}

/// From a `struct taskstats`.
fn n_sleeps_in(stats: &[u8]) -> io::Result<u64> {
    let version = stats.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
    if version == Some(OTHER_VERSION) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let n_sleeps = stats.get(NVCSW..).and_then(|rest| rest.first_chunk());
    Ok(u64::from_ne_bytes(*n_sleeps.ok_or_else(malformed)?))
}

fn malformed() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADMSG)
}

/// One attribute, filled up to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What stands behind the headers of an answer, or the error that it is.
fn attributes_of(answer: &[u8]) -> io::Result<Vec<u8>> {
    let kind = answer.get(4..).and_then(|kind| kind.first_chunk());
    if u16::from_ne_bytes(*kind.ok_or_else(malformed)?) == NLMSG_ERROR {
        let code = answer.get(16..).and_then(|code| code.first_chunk());
        let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
        let errno = code.checked_neg().filter(|errno| *errno > 0);
        return Err(errno.map_or_else(malformed, io::Error::from_raw_os_error));
    }
    let rest = answer.get(HEADERS_LEN..).ok_or_else(malformed)?;
    Ok(rest.to_vec())
}

/// The value of the first attribute of this kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, _) = attributes.split_first_chunk::<4>()?;
        let [len, kind] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_ne_bytes);
        let value = attributes.get(4..len.into())?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(usize::from(len).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sys::procfs::Status;

    #[test]
    fn attributes_are_found_and_what_is_none_is_not() {
        let all = [attribute(1, b"abc"), attribute(7, b"defg")].concat();
        assert_eq!(all.len(), 16);
        assert_eq!(find(&all, 7), Some(&b"defg"[..]));
        assert_eq!(find(&all, 1), Some(&b"abc"[..]));
        assert_eq!(find(&all, 2), None);
        for len in 0..16 {
            assert_eq!(find(&all[..len], 7), None, "{len}");
        }
        let mut odd = all;
        for len in [0, 3, u16::MAX] {
            odd[..2].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(find(&odd, 7), None, "{len}");
        }
    }

    #[test]
    fn an_error_is_told_and_what_is_no_answer_is_not_believed() {
        let code = |answer: &[u8]| attributes_of(answer).unwrap_err().raw_os_error();
        let mut answer = vec![0; HEADERS_LEN];
        answer[4] = 2;
        answer[16..].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(code(&answer), Some(libc::EPERM));
        answer[16..].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(code(&answer), Some(libc::EBADMSG));
        for len in 0..HEADERS_LEN {
            assert_eq!(code(&answer[..len]), Some(libc::EBADMSG), "{len}");
        }
    }

    #[test]
    fn a_struct_of_another_form_is_not_read() {
        let mut stats = vec![0; NVCSW + 8];
        stats[..2].copy_from_slice(&14_u16.to_ne_bytes());
        stats[NVCSW..].copy_from_slice(&7_u64.to_ne_bytes());
        assert_eq!(n_sleeps_in(&stats).unwrap(), 7);
        assert!(n_sleeps_in(&stats[..NVCSW + 7]).is_err());
        stats[..2].copy_from_slice(&OTHER_VERSION.to_ne_bytes());
        assert!(n_sleeps_in(&stats).is_err());
    }

    #[test]
    fn sleeps_of_all_threads_are_counted() {
        let own = std::process::id().cast_signed();
        let count = match TaskStats::open().and_then(|stats| Ok((stats.n_sleeps(own)?, stats))) {
            Ok((_, stats)) => move || stats.n_sleeps(own).unwrap(),
            Err(error) => {
                let required = std::env::var("MEMCR_TEST_REQUIRE");
                assert!(
                    required.as_deref() != Ok("all"),
                    "required: taskstats: {error}"
                );
                return eprintln!("skipped: no taskstats: {error}");
            }
        };
        let before = count();
        let sleeps = || {
            std::thread::sleep(std::time::Duration::from_millis(1));
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            let status = Status::of_thread(own, tid).unwrap();
            assert!(status.number("voluntary_ctxt_switches") >= Some(1));
            assert!(count() > before);
        };
        std::thread::scope(|scope| scope.spawn(sleeps).join().unwrap());
    }
}
