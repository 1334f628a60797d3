//! A connection to the daemon on which a test says what it likes, well-formed or not.

use crate::wait::{DEADLINE, until};
use crate::{Context, Daemon, Result, Trouble};
use memcr_client::Location;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, Shutdown, send, sockopt};
use serde_json::Value;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};

/// A connection for bytes.
#[derive(Debug)]
pub struct Wire {
    stream: File,
    unread: Vec<u8>,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(location: &Location) -> Result<Self> {
        let what = format!("connect to {location}");
        let socket = memcr_client::socket::open(location, Some(DEADLINE)).context(what)?;
        let set = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE));
        set.context("set a deadline")?;
        Ok(Self {
            stream: File::from(socket),
            unread: Vec::new(),
        })
    }

    /// Sends all in one segment.
    ///
    /// # Errors
    /// When the daemon has closed.
    pub fn send(&mut self, bytes: &[u8]) -> Result {
        self.stream.write_all(bytes).context("send")
    }

    /// Sends byte by byte; the next one when the daemon has surely taken in the one before.
    /// Stops when the daemon has closed.
    ///
    /// # Errors
    /// When the daemon does not answer others meanwhile.
    pub fn send_slowly(&mut self, bytes: &[u8], daemon: &Daemon) -> Result {
        let mut other = daemon.client()?;
        for byte in bytes {
            if self.stream.write_all(&[*byte]).is_err() {
                return Ok(());
            }
            other.status(None).context("ask meanwhile")?;
        }
        Ok(())
    }

    /// Sends `bytes` as often as the other end takes them, if that is always, up to `max`
    /// times; answers whether it has stopped to take any.
    ///
    /// # Errors
    /// When the daemon has closed, or does not answer others meanwhile.
    pub fn flood(&mut self, bytes: &[u8], max: usize, daemon: &Daemon) -> Result<bool> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut was_full = false;
        for _ in 0..max {
            match retry_on_intr(|| send(&self.stream, bytes, flags)) {
                Ok(_) => was_full = false,
                Err(Errno::AGAIN) if was_full => return Ok(true),
                Err(Errno::AGAIN) => {
                    // It has read all that it will before it answers this.
                    daemon.status()?;
                    was_full = true;
                }
                Err(error) => return Err(error).context("send"),
            }
        }
        Ok(false)
    }

    /// Sends a line.
    ///
    /// # Errors
    /// When the daemon has closed.
    pub fn say(&mut self, request: &Value) -> Result {
        self.send(format!("{request}\n").as_bytes())
    }

    /// Sends nothing more.
    ///
    /// # Errors
    /// When the daemon has closed.
    pub fn half_close(&self) -> Result {
        rustix::net::shutdown(&self.stream, Shutdown::Write).context("shut down")
    }

    /// All that comes, up to the end of the connection.
    ///
    /// # Errors
    /// When the end does not come.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.unread);
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(
                Trouble::Failed(format!("no end of the connection after {bytes:?}: {error}")),
            ),
            _ => Ok(bytes),
        }
    }

    /// Waits for the end of the connection; what comes before it stays unread.
    ///
    /// # Errors
    /// When the end does not come.
    pub fn end(&self) -> Result {
        until("the end of a connection", || {
            let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
            let now = Timespec::default();
            matches!(poll(&mut fds, Some(&now)), Ok(1..))
        })
    }

    /// The next line, an object; `None` at the end.
    ///
    /// # Errors
    /// When none comes, or it is no JSON.
    pub fn line(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let what = String::from_utf8_lossy(&line).into_owned();
                return serde_json::from_slice(&line).context(what).map(Some);
            }
            let mut segment = [0; 16 << 10];
            let n_read = match self.stream.read(&mut segment) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                n_read => n_read.context("read an answer")?,
            };
            match n_read {
                0 if self.unread.is_empty() => return Ok(None),
                0 => return Err(format!("half a line: {:?}", self.unread).into()),
                n => self.unread.extend_from_slice(&segment[..n]),
            }
        }
    }

    /// Says a line, and answers the next that comes.
    ///
    /// # Errors
    /// As [`Wire::line`].
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        self.say(request)?;
        self.line()?
            .ok_or_else(|| format!("closed, without an answer to {request}").into())
    }
}
