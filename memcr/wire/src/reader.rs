//! What a daemon reads from one connection, from bytes in any segments to requests.
//!
//! ```text
//!   first byte   `{`                          anything else
//!                 │                            │
//!                 ▼                            ▼
//!               line by line ──▶ Own(..)     one request ──▶ Legacy(..)
//!                 │                            │
//!                 │ a line that is too long    │
//!                 └─────────▶ done ◀───────────┘     what comes now is dropped
//! ```
//!
//! ```
//! # use memcr_wire::{Incoming, Reader};
//! # let (segment, mut answered): (&[u8], _) = (b"{\"memcr\":1,\"do\":\"list\"}\n", 0);
//! let mut reader = Reader::new();
//! reader.push(segment); // as often as there is something to read
//! for incoming in reader.by_ref() {
//!     match incoming {
//!         Incoming::Own(Ok(request)) => answered += 1,
//!         Incoming::Own(Err(bad)) => answered += 1,
//!         Incoming::Legacy(request) => answered += 1,
//!     }
//! }
//! if reader.is_done() { /* close, once everything is answered */ }
//! # assert_eq!(answered, 1);
//! ```
//!
//! Segments make no difference: what comes out depends on the bytes alone.

use crate::legacy::{LegacyRequest, Malformed};
use crate::limit::MAX_LINE_LEN;
use crate::request::{BadRequest, Request, RequestError};

/// A buffer that has grown beyond this is given back once it is empty: connections that
/// wait for an answer, or for the next request, should cost little.
const KEPT_LEN: usize = 4 << 10;

/// A request that has come in completely, or what cannot become one.
#[derive(Debug)]
pub enum Incoming {
    /// In the protocol of the C memcr; nothing comes after it.
    Legacy(Result<LegacyRequest, Malformed>),
    /// In our own.
    Own(Result<Request, BadRequest>),
}

/// Which of the two protocols a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// That of the C memcr: one request, one number, the end.
    Legacy,
    /// Our own: many requests.
    Own,
}

/// The receiving end of one connection.
///
/// Take everything out (it is an iterator) after each [`push`](Self::push): it then holds
/// less than one request, [`MAX_LINE_LEN`] bytes at the most.
#[derive(Debug, Default)]
pub struct Reader {
    protocol: Option<Protocol>,
    buffer: Vec<u8>,
    /// Of the buffer: taken out already.
    n_taken: usize,
    /// Behind what was taken out: looked at, and no end of a line found.
    n_seen: usize,
    has_ended: bool,
    is_done: bool,
}

impl Reader {
    /// Of a connection that has said nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes of the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        let Some(first) = bytes.first() else {
            return;
        };
        self.protocol.get_or_insert(match first {
            b'{' => Protocol::Own,
            _ => Protocol::Legacy,
        });
        if self.is_done || self.has_ended {
            return;
        }
        self.buffer.drain(..self.n_taken);
        self.n_taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The client sends nothing more: what it has begun and not finished is an error,
    /// which comes out last.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Which protocol is spoken, once the first byte is there.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Whether the client has said anything.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.protocol.is_some()
    }

    /// Whether nothing is left over: there is no request of which a part is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending().is_empty()
    }

    /// Whether no further request can come out: the one of the old protocol has, or a
    /// line was too long, or the client has ended and everything it said is out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done || (self.has_ended && self.is_empty())
    }

    /// Bytes of memory that it occupies.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn pending(&self) -> &[u8] {
        &self.buffer[self.n_taken..]
    }

    fn next_legacy(&mut self) -> Option<Incoming> {
        let result = match LegacyRequest::decode(self.pending()).transpose() {
            Some(result) => result,
            None if self.has_ended => Err(Malformed::Unfinished),
            None => return None,
        };
        self.finish();
        Some(Incoming::Legacy(result))
    }

    fn next_line(&mut self) -> Option<Incoming> {
        let pending = self.pending();
        let window = &pending[self.n_seen..pending.len().min(MAX_LINE_LEN)];
        if let Some(at) = window.iter().position(|byte| *byte == b'\n') {
            let len = self.n_seen + at + 1;
            let request = Request::parse(&pending[..len]);
            self.n_taken += len;
            self.n_seen = 0;
            return Some(Incoming::Own(request));
        }
        self.n_seen += window.len();
        let error = if self.n_seen == MAX_LINE_LEN {
            RequestError::TooLong
        } else if self.has_ended {
            RequestError::Unfinished
        } else {
            return None;
        };
        self.finish();
        Some(Incoming::Own(Err(BadRequest { id: None, error })))
    }

    fn finish(&mut self) {
        self.is_done = true;
        self.clear();
    }

    fn clear(&mut self) {
        (self.n_taken, self.n_seen) = (0, 0);
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_LEN);
    }
}

impl Iterator for Reader {
    type Item = Incoming;

    /// The next request, if it is there to its last byte. More may follow after `None`.
    fn next(&mut self) -> Option<Incoming> {
        if self.is_empty() {
            self.clear();
            return None;
        }
        match self.protocol? {
            Protocol::Legacy => self.next_legacy(),
            Protocol::Own => self.next_line(),
        }
    }
}

#[cfg(test)]
mod tests;
