//! The guard: a userfaultfd context of the target's own memory, so that dropped memory
//! that is touched waits and does not read zeros.
//!
//! ```text
//!   memcr                         target (the borrowed thread)
//!     │                            socketpair ──▶ a, b
//!     ├── a ◀── pidfd_getfd ───────┘
//!     ├── /dev/userfaultfd ──▶ a ─ SCM_RIGHTS ─▶ b: recvmsg ──▶ d
//!     │                            ioctl(d, USERFAULTFD_IOC_NEW) ──▶ u    the context is of
//!     ├── u ◀── pidfd_getfd ───────┤                                      its memory
//!     │  UFFDIO_API, REGISTER      close a, b, d; u stays open
//! ```
//!
//! **`u` stays open in the target.** A context lives as long as somebody has it open: when
//! memcr dies, threads that touch dropped memory go on waiting, and another memcr fetches
//! `u` from the target and finishes. With our own copy alone they would read zeros.
//!
//! No socket has a name, so no namespace, permission or guess is in the way, and the target
//! needs no right of its own: the device decides who may make a context that waits for
//! the kernel's own accesses too. Where there is no device (before Linux 6.1) the target
//! makes the context itself, if it may (userfaultfd(2)).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use memcr_parasite::Entry;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::leftovers::{Noted, note};
use super::limit::LiftedLimit;
use super::saved::NOT_MADE;
use super::{Borrowed, InjectError};
use crate::sys::arch::nr;
use crate::sys::rlimit::Resource;
use crate::sys::userfaultfd::{self, IOC_NEW, Userfault};

/// Descriptors that the target has open at once while a guard is made: the pair, the
/// device, the context.
const N_DESCRIPTORS: u64 = 4;

// Where the arguments in memory lie, as offsets in the scratch memory. The structures
// are those of recv(2) on 64-bit Linux.
pub(super) const PAIR_AT: u64 = 0;
const BYTE_AT: u64 = 16;
const IOVEC_AT: u64 = 32;
pub(super) const CONTROL_AT: u64 = 64;
const HEADER_AT: u64 = 128;
/// A context that is asked without waiting, and closed by execve(2).
const NEW_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
/// `CMSG_SPACE(sizeof(int))`: length, level, type, one descriptor, padding.
pub(super) const CONTROL_LEN: usize = 24;

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel has none for us.
    #[error("no userfaultfd is to be had")]
    Unavailable(#[source] io::Error),
    /// The parasite, which makes the calls, cannot be mapped.
    #[error("the target may not have executable memory of ours")]
    NoParasite,
    /// A call in the target failed.
    #[error("{call} failed in the target")]
    Remote {
        /// Its name.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A descriptor that was sent to the target did not arrive: it may have no more, or a
    /// security module has taken it out of the message (recv(2)).
    #[error("the target was not given the descriptor that was sent to it")]
    NotReceived,
    /// The target has as many descriptors as it may, and may not have more.
    #[error("cannot lift the target's limit of open files, which is reached")]
    Limit(#[source] io::Error),
    /// A call of ours failed.
    #[error("cannot {what}")]
    Own {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The thread could not make the calls.
    #[error(transparent)]
    Inject(#[from] InjectError),
}

type Result<T> = std::result::Result<T, GuardError>;

impl GuardError {
    /// The target may have as many descriptors as it may. One that is received beyond the
    /// limit is dropped without an error.
    fn is_of_limit(&self) -> bool {
        match self {
            Self::Remote { source, .. } => source.raw_os_error() == Some(libc::EMFILE),
            Self::NotReceived => true,
            _ => false,
        }
    }
}

/// A context of the target's memory, and its descriptor in the target.
#[derive(Debug)]
pub struct Guard {
    context: Arc<Userfault>,
    descriptor: i32,
}

impl Guard {
    /// Whether one is to be had for the process `pid`, which is not disturbed. It may not come
    /// off all the same: the target may not have executable memory of ours, or a security
    /// module has its own opinion.
    ///
    /// # Errors
    /// Why there is none.
    pub fn probe(pid: i32) -> io::Result<()> {
        userfaultfd::probe()?;
        match userfaultfd::open_device() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                userfaultfd::may_be_made_by(pid)
            }
            _ => Ok(()),
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// With all descriptors in the target closed again.
    pub fn make(borrowed: &mut Borrowed<'_>) -> Result<Self> {
        if !borrowed.infect()? {
            return Err(GuardError::NoParasite);
        }
        let descriptor = match make_in(borrowed) {
            Err(error) if error.is_of_limit() => {
                let pid = borrowed.frozen.pid();
                let limit = LiftedLimit::lift(pid, Resource::Descriptors, N_DESCRIPTORS);
                let _limit = limit.map_err(GuardError::Limit)?;
                make_in(borrowed)?
            }
            made => made?,
        };
        let context = take_from(borrowed.frozen.target().as_fd(), descriptor)
            .and_then(Userfault::shake_hands);
        match context {
            Ok(context) => Ok(Self {
                context: Arc::new(context),
                descriptor,
            }),
            Err(source) => {
                close_all(borrowed, &[descriptor])?;
                Err(GuardError::Unavailable(source))
            }
        }
    }

    /// Fetches the one that another memcr has made from the target behind `pidfd`.
    ///
    /// # Errors
    /// EBADF: the target has no such descriptor any more; EPERM.
    pub fn fetch(pidfd: BorrowedFd<'_>, descriptor: i32) -> io::Result<Self> {
        let context = Userfault::of_handshaken(take_from(pidfd, descriptor)?);
        Ok(Self {
            context: Arc::new(context),
            descriptor,
        })
    }

    /// Its descriptor in the target.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.descriptor
    }

    /// The context.
    #[must_use]
    pub fn context(&self) -> &Arc<Userfault> {
        &self.context
    }

    /// Closes its descriptor in the target. Once ours is closed too, nothing is left of it.
    ///
    /// # Errors
    /// When the thread could not make the call.
    pub fn close(self, borrowed: &mut Borrowed<'_>) -> Result<()> {
        close_all(borrowed, &[self.descriptor])
    }
}

/// Makes a context; answers its descriptor in the target.
fn make_in(borrowed: &mut Borrowed<'_>) -> Result<i32> {
    match userfaultfd::open_device() {
        Ok(device) => make_by_device(borrowed, &device),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => make_by_target(borrowed),
        Err(error) => Err(GuardError::Unavailable(error)),
    }
}

/// The target makes the context by the device that we send it.
fn make_by_device(borrowed: &mut Borrowed<'_>, device: &OwnedFd) -> Result<i32> {
    let pair = socketpair(borrowed)?;
    let made = send(borrowed, pair, device).and_then(|device| make_with(borrowed, device));
    close_all(borrowed, &pair)?;
    made
}

/// The call by which the target makes the context, and the end of its `device`.
fn make_with(borrowed: &mut Borrowed<'_>, device: i32) -> Result<i32> {
    let device = device as u64;
    let mut entries = [
        Entry {
            nr: nr::IOCTL,
            args: [device, IOC_NEW, NEW_FLAGS, 0, 0, 0],
            ret: 0,
        },
        Entry {
            nr: nr::CLOSE,
            args: [device, 0, 0, 0, 0, 0],
            ret: NOT_MADE,
        },
    ];
    borrowed.run(&mut entries)?;
    let made = number_in("USERFAULTFD_IOC_NEW", entries[0].ret)?;
    note(borrowed, Noted::Context, made)?;
    Ok(made)
}

fn make_by_target(borrowed: &mut Borrowed<'_>) -> Result<i32> {
    let args = [NEW_FLAGS, 0, 0, 0, 0, 0];
    let made = call(borrowed, "userfaultfd", nr::USERFAULTFD, args);
    let made = made.map_err(|error| match error {
        GuardError::Remote { source, .. } => GuardError::Unavailable(source),
        other => other,
    })?;
    note(borrowed, Noted::Context, made)?;
    Ok(made)
}

fn socketpair(borrowed: &mut Borrowed<'_>) -> Result<[i32; 2]> {
    let place = borrowed.write_scratch(PAIR_AT, &[0; 8])?;
    let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
    let args = [libc::AF_UNIX as u64, kind, 0, place, 0, 0];
    call(borrowed, "socketpair", nr::SOCKETPAIR, args)?;
    let mut bytes = [0; 8];
    borrowed.read_scratch(PAIR_AT, &mut bytes)?;
    let [a, b, c, d, e, f, g, h] = bytes;
    let [first, second] = [[a, b, c, d], [e, f, g, h]].map(i32::from_ne_bytes);
    note(borrowed, Noted::First, first)?;
    note(borrowed, Noted::Second, second)?;
    Ok([first, second])
}

/// Sends `descriptor` to the target through its pair; answers its number there.
fn send(borrowed: &mut Borrowed<'_>, pair: [i32; 2], descriptor: &OwnedFd) -> Result<i32> {
    let own = |what, source| GuardError::Own { what, source };
    let socket = take_from(borrowed.frozen.target().as_fd(), pair[0])
        .map_err(|source| own("take a socket from the target", source))?;
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        &socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map_err(|error| own("send a descriptor to the target", error.into()))?;

    let byte = borrowed.write_scratch(BYTE_AT, &[0; 8])?;
    let iovec = borrowed.write_scratch(IOVEC_AT, &bytes_of(&[byte, 1]))?;
    let control = borrowed.write_scratch(CONTROL_AT, &[0; CONTROL_LEN])?;
    // name, its length, iov, its length, control, its length, flags
    let header = [0, 0, iovec, 1, control, CONTROL_LEN as u64, 0];
    let header = borrowed.write_scratch(HEADER_AT, &bytes_of(&header))?;
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
    let args = [pair[1] as u64, header, flags, 0, 0, 0];
    call(borrowed, "recvmsg", nr::RECVMSG, args)?;
    let mut bytes = [0; CONTROL_LEN];
    borrowed.read_scratch(CONTROL_AT, &mut bytes)?;
    received(&bytes).ok_or(GuardError::NotReceived)
}

/// The descriptor in a control message of one SCM_RIGHTS with one descriptor.
pub(super) fn received(control: &[u8; CONTROL_LEN]) -> Option<i32> {
    let len = u64::from_ne_bytes(*control.first_chunk()?);
    let level = i32::from_ne_bytes(*control[8..].first_chunk()?);
    let kind = i32::from_ne_bytes(*control[12..].first_chunk()?);
    let descriptor = i32::from_ne_bytes(*control[16..].first_chunk()?);
    let is_it = (len, level, kind) == (20, libc::SOL_SOCKET, libc::SCM_RIGHTS);
    is_it.then_some(descriptor)
}

/// Makes a call that answers a number or an error.
fn call(borrowed: &mut Borrowed<'_>, name: &'static str, nr: u64, args: [u64; 6]) -> Result<i32> {
    number_in(name, borrowed.call(nr, args)?)
}

/// The number that call `name` has answered.
fn number_in(name: &'static str, answer: i64) -> Result<i32> {
    i32::try_from(answer)
        .ok()
        .filter(|&number| number >= 0)
        .ok_or_else(|| GuardError::Remote {
            call: name,
            source: io::Error::from_raw_os_error(-answer as i32),
        })
}

pub(super) fn close_all(borrowed: &mut Borrowed<'_>, descriptors: &[i32]) -> Result<()> {
    let close = |&descriptor: &i32| Entry {
        nr: nr::CLOSE,
        args: [descriptor as u64, 0, 0, 0, 0, 0],
        ret: 0,
    };
    let mut entries: Vec<_> = descriptors.iter().map(close).collect();
    // close(2) of a number that was just handed out frees it, whatever it answers.
    Ok(borrowed.run(&mut entries)?)
}

fn take_from(pidfd: BorrowedFd<'_>, descriptor: i32) -> io::Result<OwnedFd> {
    Ok(pidfd_getfd(pidfd, descriptor, PidfdGetfdFlags::empty())?)
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_descriptor_is_taken_from_a_message() {
        let mut control = [0; CONTROL_LEN];
        assert_eq!(received(&control), None);
        control[..8].copy_from_slice(&20_u64.to_ne_bytes());
        control[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        control[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        control[16..20].copy_from_slice(&7_i32.to_ne_bytes());
        assert_eq!(received(&control), Some(7));
        control[0] = 24;
        assert_eq!(received(&control), None);
    }
}
