//! A connection on which our own protocol is spoken.
//!
//! ```text
//!   ask(7) ──{"id":7,…}⏎──▶
//!          ◀─{"id":6,…}⏎──   the late answer to a request that was given up: dropped
//!          ◀─{"id":7,…}⏎──   Ok, or NotDone with the reason
//! ```

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use memcr_wire::limit::MAX_ANSWER_LEN;
use memcr_wire::{Answer, AnswerError, Ask, Choice, Id, Location, Request, Subject};

use crate::error::ClientError;
use crate::socket;

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the daemon to take the connection, and to take in a request.
    pub connect: Duration,
    /// For an answer; without it, for as long as the work takes.
    pub answer: Option<Duration>,
}

impl Default for Patience {
    /// Ten seconds to connect: a daemon takes connections at once or is in trouble. No
    /// deadline for answers: storing gigabytes on a slow disk takes minutes.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: None,
        }
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    patience: Patience,
    last_id: u64,
    /// Received, and not read yet.
    buffer: Vec<u8>,
}

impl Client {
    /// Connects to the daemon at `location`, with the patience that is the default.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn connect(location: &Location) -> Result<Self, ClientError> {
        Self::connect_with(location, Patience::default())
    }

    /// Connects to the daemon at `location`.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn connect_with(location: &Location, patience: Patience) -> Result<Self, ClientError> {
        let socket = connected(location, patience.connect)?;
        Ok(Self {
            socket,
            patience,
            last_id: 0,
            buffer: Vec::new(),
        })
    }

    /// From now on waits so long for an answer.
    pub fn set_patience(&mut self, answer: Option<Duration>) {
        self.patience.answer = answer;
    }

    /// Takes the memory of `subject` away. After `timeout` the daemon undoes what it has
    /// begun and says so.
    ///
    /// # Errors
    /// When it was not done, or there was no answer; see [`ClientError`].
    pub fn checkpoint(
        &mut self,
        subject: Subject,
        choice: Choice,
        timeout: Option<Duration>,
    ) -> Result<Answer, ClientError> {
        self.ask(Ask::Checkpoint {
            subject,
            choice,
            timeout,
        })
    }

    /// Gives `subject` its memory back. After `timeout` the daemon says that it is not
    /// done, and goes on.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn restore(
        &mut self,
        subject: Subject,
        timeout: Option<Duration>,
    ) -> Result<Answer, ClientError> {
        self.ask(Ask::Restore { subject, timeout })
    }

    /// Stops a checkpoint of `subject` that is not complete.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn abort(&mut self, subject: Subject) -> Result<Answer, ClientError> {
        self.ask(Ask::Abort { subject })
    }

    /// How the daemon is, or one process.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn status(&mut self, pid: Option<i32>) -> Result<Answer, ClientError> {
        self.ask(Ask::Status { pid })
    }

    /// The sessions that the caller may act on.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn list(&mut self) -> Result<Answer, ClientError> {
        self.ask(Ask::List)
    }

    /// The stages that the daemon finds.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn stages(&mut self) -> Result<Answer, ClientError> {
        self.ask(Ask::Stages)
    }

    /// Sends a request and waits for its answer. After [`ClientError::Late`] the
    /// connection can be used for more; after any other failure to send or receive it
    /// cannot.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn ask(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        self.last_id += 1;
        let id = Some(Id::from(self.last_id));
        let request = Request {
            id: id.clone(),
            ask,
        };
        let line = request.to_line().map_err(ClientError::Request)?;
        match socket::send_all(&self.socket, &line) {
            // Who closes early may have said why.
            Err(error) if !is_gone(&error) => return Err(ClientError::Send(error)),
            _ => {}
        }
        let deadline = Deadline::after(self.patience.answer);
        loop {
            let answer = self.next_answer(&deadline)?;
            // One without an id is for whoever hears it: there is nobody else.
            if answer.id.is_some() && answer.id != id {
                continue;
            }
            return match answer.ok {
                true => Ok(answer),
                false => Err(ClientError::NotDone(Box::new(answer))),
            };
        }
    }

    fn next_answer(&mut self, deadline: &Deadline) -> Result<Answer, ClientError> {
        let mut n_seen = 0;
        loop {
            let end = self.buffer[n_seen..].iter().position(|b| *b == b'\n');
            if let Some(at) = end {
                let line: Vec<u8> = self.buffer.drain(..=n_seen + at).collect();
                return Answer::parse(&line).map_err(ClientError::Answer);
            }
            n_seen = self.buffer.len();
            if n_seen >= MAX_ANSWER_LEN {
                return Err(ClientError::Answer(AnswerError::TooLong));
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: &Deadline) -> Result<(), ClientError> {
        let mut segment = [0; 16 << 10];
        let n_received = match deadline.receive(&self.socket, &mut segment) {
            Err(ClientError::Closed) if self.is_foreign() => {
                let n_bytes = self.buffer.len();
                return Err(ClientError::OldDaemon { n_bytes });
            }
            result => result?,
        };
        self.buffer.extend_from_slice(&segment[..n_received]);
        Ok(())
    }

    /// Whether what was received last is the beginning of something else than a line.
    fn is_foreign(&self) -> bool {
        self.buffer.first().is_some_and(|first| *first != b'{')
    }
}

/// A socket that is connected to the daemon at `location`.
pub(crate) fn connected(location: &Location, within: Duration) -> Result<OwnedFd, ClientError> {
    socket::open(location, Some(within)).map_err(|source| ClientError::Connect {
        location: location.clone(),
        source,
    })
}

/// Whether the daemon has closed the connection, before or after it read everything.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

/// When a wait ends.
pub(crate) struct Deadline {
    within: Option<Duration>,
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(within: Option<Duration>) -> Self {
        // One beyond what a clock can hold is none.
        let at = within.and_then(|within| Instant::now().checked_add(within));
        Self { within, at }
    }

    /// Receives one byte or more.
    pub(crate) fn receive(&self, socket: &OwnedFd, to: &mut [u8]) -> Result<usize, ClientError> {
        match socket::receive(socket, to, self.at) {
            Ok(0) => Err(ClientError::Closed),
            Ok(n_received) => Ok(n_received),
            Err(error) if is_gone(&error) => Err(ClientError::Closed),
            Err(error) if error.kind() == ErrorKind::TimedOut => Err(ClientError::Late {
                waited: self.within.unwrap_or_default(),
            }),
            Err(error) => Err(ClientError::Receive(error)),
        }
    }
}
