//! What can go wrong between a client and its daemon.

use std::io;
use std::time::Duration;

use memcr_wire::answer::{EXIT_OTHER, EXIT_UNAVAILABLE, EXIT_USAGE};
use memcr_wire::legacy::Unsayable;
use memcr_wire::{Answer, AnswerError, Location, RequestError};

/// Why something was not done, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there, or not for this user.
    #[error("cannot connect to a daemon at {location}")]
    Connect {
        /// Where.
        location: Location,
        /// Why.
        source: io::Error,
    },
    /// No daemon would take the request; nothing was sent.
    #[error("the request is wrong")]
    Request(#[source] RequestError),
    /// The old protocol has no bytes for the request; nothing was sent.
    #[error("the request is wrong")]
    Unsayable(#[source] Unsayable),
    /// The connection broke.
    #[error("cannot send the request to the daemon")]
    Send(#[source] io::Error),
    /// The connection broke.
    #[error("cannot read the answer of the daemon")]
    Receive(#[source] io::Error),
    /// It was closed, or broke, before the answer was there.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// The answer is in the protocol of the C memcr, and so is the daemon.
    #[error("the daemon does not speak this protocol: it answered with {n_bytes} bytes of another")]
    OldDaemon {
        /// How many came.
        n_bytes: usize,
    },
    /// The deadline passed. The work goes on.
    #[error("the daemon has not answered within {} seconds, and goes on with the work", waited.as_secs_f64())]
    Late {
        /// How long was waited.
        waited: Duration,
    },
    /// Not an answer.
    #[error("the answer of the daemon is not understood")]
    Answer(#[source] AnswerError),
    /// An answer of the old protocol that it does not have.
    #[error("the daemon answered {0}, which is not 0, -1 or -2")]
    UnknownCode(i32),
    /// The daemon says why it was not done.
    #[error("{}", reason(.0))]
    NotDone(Box<Answer>),
}

impl ClientError {
    /// What a program ends with because of it: the exit codes of memcr.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request(_) | Self::Unsayable(_) => EXIT_USAGE,
            Self::NotDone(answer) if answer.exit_code == 0 => EXIT_OTHER,
            Self::NotDone(answer) => answer.exit_code,
            Self::Answer(_) | Self::UnknownCode(_) => EXIT_OTHER,
            _ => EXIT_UNAVAILABLE,
        }
    }

    /// What the user can do about it, if the daemon knows.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NotDone(answer) => answer.error.as_ref()?.hint.as_deref(),
            _ => None,
        }
    }

    /// Whether it may be that the daemon is a C memcr: that closes a connection, with or
    /// without a number, on which our own protocol is spoken.
    #[must_use]
    pub fn may_be_old_daemon(&self) -> bool {
        matches!(self, Self::Closed | Self::OldDaemon { .. })
    }
}

fn reason(answer: &Answer) -> &str {
    let said = answer.error.as_ref().map(|error| error.message.as_str());
    let said = said.or(answer.meaning.as_deref());
    said.unwrap_or("the daemon gave no reason")
}
