//! What the daemon and the process of a session say to each other.
//!
//! ```text
//!   daemon ──Go, Restore, Park, Kill──▶ session's process ─┐
//!     ▲                                                    │ ptrace, image, guard
//!     └──────At, Held, Still, End──────────────────────────┘
//! ```
//!
//! Over a socket pair without a name that keeps messages apart (SOCK_SEQPACKET, unix(7)),
//! each a JSON object. A checkpoint is stopped by SIGTERM instead, since the session's
//! process listens to the socket only where it waits. The end of the socket is an order as
//! well: who hears it is alone, and leaves its target so that another daemon finds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::session::gate::Step;

/// What the daemon tells the process of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// It may go on behind the gate it stands at.
    Go,
    /// Give the target its memory back; `gated`: and wait for others before it runs.
    Restore { gated: bool },
    /// Leave the target held, and end.
    Park,
    /// End the target: nobody wants it any more.
    Kill,
}

/// What the process of a session tells the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum News {
    /// It waits at this gate.
    At(Step),
    /// The target is held.
    Held {
        /// What it looks like in a list.
        facts: Facts,
        /// For who asked for it.
        answer: Value,
    },
    /// A restore has failed; the target is held as before. For who asked for it.
    Still(Value),
    /// The last word: the process ends.
    End {
        /// What became of the target.
        how: How,
        /// For whoever waits.
        answer: Value,
    },
}

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    /// It has its memory back and runs.
    Restored,
    /// The checkpoint did not come about: it runs, or was never touched.
    Undone,
    /// It has ended by itself, or by somebody's signal.
    Exited,
    /// It was killed: its memory is lost, or it was to be.
    Killed,
    /// It is held, and no process of ours is beside it.
    Parked,
    /// Somebody else had finished the session before.
    Unheld,
    /// There was no target: a question was answered.
    Answered,
}

/// A held target as lists have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Its name, bytes that are not UTF-8 replaced.
    pub(super) name: String,
    /// When it came to be held, seconds since 1970.
    pub(super) since: u64,
    /// Resident memory before the freeze, bytes.
    pub(super) rss_before_bytes: u64,
    /// Resident memory while held, bytes.
    pub(super) rss_held_bytes: u64,
    /// Where its image is.
    pub(super) image: String,
    /// Its pipeline.
    pub(super) pipeline: String,
    /// Pages that were stored, bytes.
    pub(super) raw_bytes: u64,
    /// Length of the image.
    pub(super) image_bytes: u64,
}

impl Facts {
    /// How much less of it is resident, bytes.
    pub(super) fn saved_bytes(&self) -> u64 {
        self.rss_before_bytes.saturating_sub(self.rss_held_bytes)
    }
}

/// One end of the socket pair.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> Self {
        link.0
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link {
    /// Both ends.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), Self(theirs)))
    }

    /// Says something.
    ///
    /// # Errors
    /// EPIPE: nobody is there any more; EMSGSIZE: more than some 200 KiB.
    pub(super) fn say(&self, what: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(what)?;
        rustix::io::retry_on_intr(|| send(&self.0, &bytes, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message; `None`: the other end is gone.
    ///
    /// # Errors
    /// `WouldBlock`: there is none now, if `now`; `InvalidData`: not a message.
    pub(super) fn hear<T: DeserializeOwned>(&self, now: bool) -> io::Result<Option<T>> {
        let wait = if now {
            RecvFlags::DONTWAIT
        } else {
            RecvFlags::empty()
        };
        // Its whole length, though nothing of it is taken yet (recv(2), MSG_TRUNC).
        let look = wait | RecvFlags::PEEK | RecvFlags::TRUNC;
        let look = rustix::io::retry_on_intr(|| recv(&self.0, &mut [0u8; 1], look));
        let len_bytes = match look {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Ok((_, len_bytes)) => len_bytes,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = vec![0; len_bytes];
        let (_, len_bytes) =
            rustix::io::retry_on_intr(|| recv(&self.0, &mut bytes[..], RecvFlags::empty()))?;
        bytes.truncate(len_bytes);
        Ok(Some(serde_json::from_slice(&bytes)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_said_is_heard_message_by_message() {
        let (ours, theirs) = Link::pair().unwrap();
        theirs.say(&News::At(Step::Frozen)).unwrap();
        let long = News::Still(Value::from("x".repeat(100_000)));
        theirs.say(&long).unwrap();
        assert_eq!(
            ours.hear::<News>(true).unwrap(),
            Some(News::At(Step::Frozen))
        );
        assert_eq!(ours.hear::<News>(true).unwrap(), Some(long));
        let error = ours.hear::<News>(true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(ours.hear::<News>(true).unwrap(), None);
        assert!(ours.say(&Order::Park).is_err());
    }

    #[test]
    fn nonsense_is_no_message() {
        let (ours, theirs) = Link::pair().unwrap();
        theirs.say(&"nonsense").unwrap();
        let error = ours.hear::<Order>(true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
