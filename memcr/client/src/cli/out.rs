//! stderr, for reasons; stdout, for results, is [`memcr_text::Out`].

use std::fmt;
use std::io::{self, Write};

/// Says on stderr what went wrong.
pub(super) fn complain(what: impl fmt::Display) {
    remark(format_args!("memcr-client: {what}"));
}

/// Writes one line to stderr. Not with `eprintln!`, which panics when nobody reads.
pub(super) fn remark(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
