//! One client: what it has sent of its requests, what it has not read of its answers, and
//! until when.
//!
//! ```text
//!   accepted ──10 s──▶ first byte ──10 s──▶ request ──▶ under way ──▶ answer ──10 s──▶ read
//!                                              ▲                        │ v1, v2: the end
//!                                              └───── 60 s, our own ────┘
//! ```
//!
//! Whatever passes its time, or leaves more unread than [`MAX_UNREAD`], is closed. What
//! the client has asked for goes on.
//!
//! Requests are taken out [`MAX_AT_ONCE`] at a time, whether the client is there still or has
//! hung up: the others are served in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use memcr_wire::limit::{
    ANSWER_READ_WITHIN, FIRST_BYTE_WITHIN, IDLE_FOR, MAX_ANSWER_LEN, MAX_UNANSWERED, REQUEST_WITHIN,
};
use memcr_wire::{Incoming, Reader};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::peer::Peer;

/// How much of its answers a client may leave unread.
const MAX_UNREAD: usize = MAX_ANSWER_LEN;
/// How long the client may take to end the connection once everything is said.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// How much is read at once, and how many requests are taken: nobody holds the others up.
const READ_LEN: usize = 16 << 10;
const MAX_AT_ONCE: usize = 16;
/// How much of what a client has sent is read once it has hung up: what a UNIX socket keeps by
/// default (net.core.wmem_default), and some more.
const MAX_BEHIND: usize = 256 << 10;
/// How much is read and thrown away behind the last request: closed with something unread,
/// a TCP connection would be reset and the client might lose its answer.
const MAX_JUNK: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: OwnedFd,
    pub(super) peer: Peer,
    reader: Reader,
    unread: Vec<u8>,
    n_under_way: usize,
    /// Nothing more is read; it is closed when everything is answered and read.
    is_closing: bool,
    /// The client was told that nothing more will come.
    is_leaving: bool,
    /// Read behind the last request, bytes.
    n_junk: usize,
    /// The client sends nothing more that is of interest.
    has_ended: bool,
    /// The client has hung up: nobody hears the answers.
    has_hung_up: bool,
    /// Read since then, bytes.
    n_behind: usize,
    /// There may be requests that have come in and were not taken out yet.
    has_more: bool,
    /// Requests were taken out, and not all of them are begun yet.
    is_served: bool,
    /// When the client was heard or answered last.
    since: Instant,
}

/// What has become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Now {
    /// It goes on.
    Open,
    /// It is over.
    Closed,
    /// So it is, for the client has hung up: what it has sent before that counts.
    HungUp,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    pub(super) fn new(stream: OwnedFd, peer: Peer, now: Instant) -> Self {
        Self {
            stream,
            peer,
            reader: Reader::new(),
            unread: Vec::new(),
            n_under_way: 0,
            is_closing: false,
            is_leaving: false,
            n_junk: 0,
            has_ended: false,
            has_hung_up: false,
            n_behind: 0,
            has_more: false,
            is_served: false,
            since: now,
        }
    }

    /// Whether requests that were taken out are being begun: one that has its answer at once is
    /// not the last then.
    pub(super) fn serving(&mut self, is_served: bool) {
        self.is_served = is_served;
    }

    /// The next requests, up to [`MAX_AT_ONCE`], from what was read or can be. Not from a client
    /// that does not read its answers.
    pub(super) fn read(&mut self, now: Instant) -> Vec<Incoming> {
        if self.unread.len() > READ_LEN {
            return Vec::new();
        }
        let mut incoming = self.take(MAX_AT_ONCE);
        // Where some are left over nothing more is read, so that they do not pile up.
        while incoming.len() < MAX_AT_ONCE && self.read_some(now) {
            incoming.extend(self.take(MAX_AT_ONCE - incoming.len()));
            // Of one that is there we are told again.
            if !self.has_hung_up {
                break;
            }
        }
        self.has_more = incoming.len() == MAX_AT_ONCE;
        if !incoming.is_empty() {
            self.since = now;
        }
        incoming
    }

    fn take(&mut self, n: usize) -> Vec<Incoming> {
        let incoming = self.reader.by_ref().take(n).collect();
        self.is_closing |= self.reader.is_done();
        incoming
    }

    /// The client has hung up. What it has sent before that counts.
    pub(super) fn hang_up(&mut self) {
        if !self.has_hung_up {
            self.has_hung_up = true;
            self.has_more = true;
            self.unread = Vec::new();
        }
    }

    /// Whether requests may be left that can be served without waiting for the client.
    pub(super) fn has_more(&self) -> bool {
        self.has_more && self.unread.len() <= READ_LEN
    }

    /// Whether the client has hung up.
    pub(super) fn has_hung_up(&self) -> bool {
        self.has_hung_up
    }

    /// Whether it has, and all that it had sent is taken out.
    pub(super) fn is_over(&self) -> bool {
        self.has_hung_up && !self.has_more
    }

    /// False: there is nothing more now.
    fn read_some(&mut self, now: Instant) -> bool {
        if self.has_ended {
            return false;
        }
        let mut bytes = [0; READ_LEN];
        match recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.has_ended = true;
                self.reader.end();
            }
            Ok((_, n)) if self.is_closing => {
                self.n_junk += n;
                self.has_ended = self.n_junk > MAX_JUNK;
            }
            Ok((_, n)) => {
                if self.reader.is_empty() {
                    self.since = now;
                }
                if self.has_hung_up {
                    self.n_behind += n;
                    self.has_ended = self.n_behind > MAX_BEHIND;
                }
                self.reader.push(&bytes[..n]);
            }
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) => self.give_up(),
        }
        true
    }

    /// A request is under way from now on. False: there are too many.
    pub(super) fn begin(&mut self) -> bool {
        self.n_under_way += 1;
        self.n_under_way <= MAX_UNANSWERED
    }

    /// A request that was under way has its answer.
    pub(super) fn answer(&mut self, bytes: &[u8], now: Instant) {
        self.n_under_way = self.n_under_way.saturating_sub(1);
        if self.has_hung_up {
            return;
        }
        if self.unread.is_empty() {
            self.since = now;
        }
        self.unread.extend_from_slice(bytes);
    }

    /// Sends what there is to be sent.
    pub(super) fn write(&mut self, now: Instant) -> Now {
        while !self.unread.is_empty() {
            match send(
                &self.stream,
                &self.unread,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(n) => {
                    self.unread.drain(..n);
                    self.since = now;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.unread.len() <= MAX_UNREAD => return Now::Open,
                Err(Errno::PIPE | Errno::CONNRESET) => return Now::HungUp,
                Err(_) => return Now::Closed,
            }
        }
        // Given back: a connection that waits costs little.
        self.unread = Vec::new();
        if !self.is_closing || self.n_under_way > 0 || self.has_more || self.is_served {
            return Now::Open;
        }
        if self.has_ended {
            return Now::Closed;
        }
        self.say_goodbye(now);
        Now::Open
    }

    /// Everything is said. The client hears the end, and ends the connection itself: were it
    /// closed with something unread, TCP would take back the answer.
    fn say_goodbye(&mut self, now: Instant) {
        if !self.is_leaving {
            self.is_leaving = true;
            self.since = now;
            // It fails only where the client is gone already.
            let _ = shutdown(&self.stream, Shutdown::Write);
        }
    }

    /// Nothing that it sends is of interest any more.
    pub(super) fn give_up(&mut self) {
        self.is_closing = true;
        self.has_ended = true;
    }

    /// Whether it is to be read from, and written to.
    pub(super) fn wants(&self) -> (bool, bool) {
        let reads = !self.has_ended && !self.has_more && self.unread.len() <= READ_LEN;
        (reads, !self.unread.is_empty())
    }

    /// When it is closed unless something happens; `None`: the next turn is ours.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = if !self.unread.is_empty() {
            ANSWER_READ_WITHIN
        } else if self.n_under_way > 0 || self.has_more {
            return None;
        } else if self.is_leaving {
            GOODBYE_WITHIN
        } else if !self.reader.has_begun() {
            FIRST_BYTE_WITHIN
        } else if self.reader.is_empty() {
            IDLE_FOR
        } else {
            REQUEST_WITHIN
        };
        Some(self.since + patience)
    }

    /// Whether nothing that it asked for is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.n_under_way == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection, Instant) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let now = Instant::now();
        (theirs, Connection::new(ours.into(), Peer::Anyone, now), now)
    }

    #[test]
    fn one_that_says_nothing_or_half_a_request_has_ten_seconds() {
        let (mut client, mut connection, now) = pair();
        assert_eq!(connection.deadline(), Some(now + FIRST_BYTE_WITHIN));
        client.write_all(b"{").unwrap();
        let later = now + Duration::from_secs(5);
        assert!(connection.read(later).is_empty());
        assert_eq!(connection.deadline(), Some(later + REQUEST_WITHIN));
        client.write_all(b"\"memcr\"").unwrap();
        // Byte by byte the time does not begin anew.
        assert!(connection.read(later + Duration::from_secs(9)).is_empty());
        assert_eq!(connection.deadline(), Some(later + REQUEST_WITHIN));
    }

    #[test]
    fn an_old_request_is_answered_once_and_closed() {
        let (mut client, mut connection, now) = pair();
        client
            .write_all(&[100, 0, 0, 0, 7, 0, 0, 0, 1, 2, 3])
            .unwrap();
        assert_eq!(connection.read(now).len(), 1);
        assert!(connection.begin());
        assert_eq!(connection.deadline(), None);
        assert_eq!(connection.write(now), Now::Open);
        connection.answer(&[0; 4], now);
        assert_eq!(connection.write(now), Now::Open);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [0; 4]);
        assert_eq!(connection.deadline(), Some(now + GOODBYE_WITHIN));
        drop(client);
        connection.read(now);
        assert_eq!(connection.write(now), Now::Closed);
    }

    /// Takes out all that is there, as the server does in turn with others; how many each time.
    fn portions(connection: &mut Connection, now: Instant) -> Vec<usize> {
        let mut portions = Vec::new();
        while connection.has_more() {
            portions.push(connection.read(now).len());
        }
        portions
    }

    #[test]
    fn what_was_sent_before_the_end_counts() {
        let (mut client, mut connection, now) = pair();
        let line = b"{\"memcr\":1,\"do\":\"list\"}\n";
        client.write_all(&line.repeat(2000)).unwrap();
        drop(client);
        connection.hang_up();
        let portions = portions(&mut connection, now);
        assert_eq!(portions.iter().sum::<usize>(), 2000);
        assert_eq!(portions.iter().max(), Some(&MAX_AT_ONCE));
        assert!(connection.is_over());
    }

    #[test]
    fn the_last_of_many_requests_is_answered_too() {
        let (mut client, mut connection, now) = pair();
        let line = b"{\"memcr\":1,\"do\":\"list\"}\n";
        client.write_all(&line.repeat(MAX_AT_ONCE + 2)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        for n in [MAX_AT_ONCE, 2] {
            assert_eq!(connection.read(now).len(), n);
            connection.serving(true);
            for _ in 0..n {
                assert!(connection.begin());
                connection.answer(b"{}\n", now);
                assert_eq!(connection.write(now), Now::Open);
            }
            connection.serving(false);
        }
        assert_eq!(connection.write(now), Now::Closed);
    }

    #[test]
    fn who_hangs_up_behind_an_answer_is_still_heard() {
        let (mut client, mut connection, now) = pair();
        let line = b"{\"memcr\":1,\"do\":\"list\"}\n";
        client.write_all(&line.repeat(2000)).unwrap();
        let first = connection.read(now).len();
        connection.answer(b"{}", now);
        drop(client);
        assert_eq!(connection.write(now), Now::HungUp);
        connection.hang_up();
        let rest: usize = portions(&mut connection, now).iter().sum();
        assert_eq!(first + rest, 2000);
    }

    #[test]
    fn who_sends_many_at_once_is_served_in_portions() {
        let (mut client, mut connection, now) = pair();
        let line = b"{\"memcr\":1,\"do\":\"list\"}\n";
        client.write_all(&line.repeat(40)).unwrap();
        let mut taken = connection.read(now).len();
        assert_eq!(taken, MAX_AT_ONCE);
        assert_eq!(connection.wants(), (false, false), "it is served again");
        assert_eq!(connection.deadline(), None);
        // Not as long as it reads no answers.
        connection.answer(&vec![b'x'; READ_LEN + 1], now);
        assert!(!connection.has_more());
        assert!(connection.read(now).is_empty());
        let mut answer = vec![0; READ_LEN + 1];
        assert_eq!(connection.write(now), Now::Open);
        client.read_exact(&mut answer).unwrap();
        taken += portions(&mut connection, now).iter().sum::<usize>();
        assert_eq!(taken, 40);
        assert_eq!(connection.wants(), (true, false));
    }

    #[test]
    fn not_all_is_read_that_lies_behind_the_end() {
        let (client, ours) = UnixStream::pair().unwrap();
        let (now, mut client) = (Instant::now(), client);
        rustix::net::sockopt::set_socket_send_buffer_size(&client, 4 << 20).unwrap();
        client.set_nonblocking(true).unwrap();
        let line = [&b"{\"memcr\":1,\"do\":\"list\"}"[..], &[b' '; 1000], b"\n"].concat();
        let n_sent = (0..4000)
            .take_while(|_| client.write(&line).is_ok())
            .count();
        drop(client);
        let mut connection = Connection::new(ours.into(), Peer::Anyone, now);
        connection.hang_up();
        let n: usize = portions(&mut connection, now).iter().sum();
        let max = (MAX_BEHIND + READ_LEN) / line.len();
        assert!(
            n <= max && n >= max.min(n_sent) - 32,
            "{n} of {n_sent}, {max} at most"
        );
    }

    #[test]
    fn who_reads_nothing_is_closed() {
        let (_client, mut connection, now) = pair();
        connection.answer(&vec![b'x'; MAX_UNREAD], now);
        assert_eq!(connection.write(now), Now::Open);
        assert_eq!(connection.wants(), (false, true));
        assert_eq!(connection.deadline(), Some(now + ANSWER_READ_WITHIN));
        connection.answer(&vec![b'x'; MAX_UNREAD], now);
        assert_eq!(connection.write(now), Now::Closed);
    }
}
