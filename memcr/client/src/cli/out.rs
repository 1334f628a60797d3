//! stdout, for results; stderr is for reasons.
//!
//! A reader that has gone away (`memcr-client --list | head -1`) makes no noise: output
//! then goes nowhere. Any other failure to write is kept and told at the end.

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;

/// stdout, line by line, also into a pipe.
#[derive(Debug, Default)]
pub(super) struct Out {
    failed: Option<io::Error>,
}

impl Out {
    /// Writes one line and flushes it.
    pub(super) fn line(&mut self, line: impl fmt::Display) {
        if self.failed.is_none() {
            let mut stdout = io::stdout().lock();
            self.failed = writeln!(stdout, "{line}")
                .and_then(|()| stdout.flush())
                .err();
        }
    }

    /// Writes `value`, indented: people read these too.
    pub(super) fn json(&mut self, value: &Value) {
        self.line(format_args!("{value:#}"));
    }

    /// Whether everything arrived, as far as anybody wanted it.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

/// Says on stderr what went wrong.
pub(super) fn complain(what: impl fmt::Display) {
    remark(format_args!("memcr-client: {what}"));
}

/// Writes one line to stderr. Not with `eprintln!`, which panics when nobody reads.
pub(super) fn remark(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Text of the daemon, without what a terminal would obey: a process may call itself what
/// it likes.
pub(super) fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn nothing_is_left_for_the_terminal() {
        assert_eq!(
            harmless("a\u{1b}[2J\n\u{9b}ü\\"),
            "a\\u{1b}[2J\\n\\u{9b}ü\\"
        );
    }
}
