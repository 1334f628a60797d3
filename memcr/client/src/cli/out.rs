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
