//! stderr, for diagnostics.

use std::fmt;
use std::io::{self, Write};

/// Writes one line to stderr in one piece, beside those of others. Not with `eprintln!`, which
/// panics when nobody reads.
pub fn diagnose(line: impl fmt::Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
