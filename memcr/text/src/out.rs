//! stdout, for results; stderr is for diagnostics and belongs to `log`.
//!
//! A reader that has gone away (`memcr check | head -1`) must neither break a restore
//! nor make noise: output then goes nowhere, quietly. Any other failure (a full disk
//! behind `> report.json`) is kept and told at the end, when the target is safe.

use std::fmt;
use std::io::{self, Write};

/// stdout, line by line, also into a pipe.
#[derive(Debug, Default)]
pub struct Out {
    failed: Option<io::Error>,
}

impl Out {
    /// Writes one line and flushes it: who waits for "press enter" waits for the line.
    pub fn line(&mut self, line: impl fmt::Display) {
        if self.failed.is_none() {
            let mut stdout = io::stdout().lock();
            self.failed = writeln!(stdout, "{line}")
                .and_then(|()| stdout.flush())
                .err();
        }
    }

    /// Writes `value` as one JSON object, indented: people read these too.
    pub fn json(&mut self, value: &impl serde::Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(error) => self.failed = Some(error.into()),
        }
    }

    /// Whether everything arrived, as far as anybody wanted it.
    ///
    /// # Errors
    /// The first failure to write, unless the reader had gone away.
    pub fn finish(self) -> io::Result<()> {
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}
