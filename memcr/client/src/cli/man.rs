//! The man page, from the definition of the command line.

use std::io::{self, Write};

use clap::CommandFactory;

use super::args::Args;
use super::complain;
use super::exit::Exit;
use memcr_text::Out;

/// Prints it.
pub(super) fn print(out: &mut Out) -> Exit {
    match page() {
        Ok(text) => {
            out.line(String::from_utf8_lossy(&text).trim_end());
            Exit::Done
        }
        Err(error) => {
            complain(format_args!("cannot make the man page: {error}"));
            Exit::Other
        }
    }
}

/// With the sections that a page of its kind has and clap knows nothing of.
fn page() -> io::Result<Vec<u8>> {
    let man = clap_mangen::Man::new(Args::command());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    writeln!(text, ".SH \"EXIT STATUS\"")?;
    for exit in Exit::ALL {
        entry(&mut text, &exit.shown(), exit.meaning())?;
    }
    writeln!(text, ".SH EXAMPLES")?;
    for (words, what) in EXAMPLES {
        entry(&mut text, words, what)?;
    }
    writeln!(text, ".SH \"SEE ALSO\"\n.BR memcr (1)")?;
    man.render_version_section(&mut text)?;
    Ok(text)
}

const EXAMPLES: [(&str, &str); 4] = [
    (
        "memcr-client -l /run/memcr.sock -p 4711 -c",
        "takes the memory of process 4711 away",
    ),
    (
        "memcr-client -l /run/memcr.sock -p 4711 -r",
        "gives it back",
    ),
    (
        "memcr-client -l 9000 --cgroup /app.slice/game -c --timeout 20",
        "all processes of a cgroup, in 20 seconds or not at all",
    ),
    (
        "memcr-client -l /run/memcr.sock --list --json",
        "the sessions, for another program",
    ),
];

/// A word and what it means. Hyphens and leading points are roff's own otherwise.
fn entry(text: &mut Vec<u8>, word: &str, meaning: &str) -> io::Result<()> {
    let escaped = |text: &str| text.replace('-', "\\-");
    writeln!(
        text,
        ".TP\n\\fB{}\\fR\n\\&{}",
        escaped(word),
        escaped(meaning)
    )
}
