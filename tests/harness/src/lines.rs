//! Lines of a child, read on a thread, so that every wait can have a deadline.

use crate::wait::DEADLINE;
use crate::{Result, Trouble};
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// The output of a child.
#[derive(Debug)]
pub struct Lines {
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// Reads `source` line by line until it ends.
    pub fn of(source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            // An error is as final as the end; invalid UTF-8 must not end the reading.
            while matches!(source.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self {
            receiver,
            seen: Vec::new(),
        }
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// When none comes before the deadline.
    pub fn next_line(&mut self) -> Result<Option<String>> {
        match self.receiver.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.seen.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Trouble::Failed(format!(
                "no line for {} s; so far:\n{}",
                DEADLINE.as_secs(),
                self.text()
            ))),
        }
    }

    /// Lines up to and with the first one that contains `text`; `None` if the output
    /// ended before.
    ///
    /// # Errors
    /// When no line comes before the deadline.
    pub fn until(&mut self, text: &str) -> Result<Option<String>> {
        while let Some(line) = self.next_line()? {
            if line.contains(text) {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Everything up to the end of the output, with what was read before.
    ///
    /// # Errors
    /// When the end does not come before the deadline.
    pub fn all(mut self) -> Result<String> {
        while self.next_line()?.is_some() {}
        Ok(self.text())
    }

    /// Everything read so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.seen.join("\n")
    }
}
