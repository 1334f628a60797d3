//! The protocol with the harness: lines on stdin and stdout.

use std::fmt;
use std::io::{BufRead, Write};

/// Exit status of a victim that found itself damaged or cannot work.
pub(crate) const EXIT_WRONG: i32 = 70;

/// A byte (or anything else) that is not what it must be.
#[derive(Debug, Clone)]
pub(crate) struct Wrong {
    /// Where, as an address of the victim; 0 if it is not about memory.
    pub(crate) addr: usize,
    /// What was wanted and what was found.
    pub(crate) what: String,
}

impl Wrong {
    /// Something wrong that has no address.
    pub(crate) fn state(what: impl Into<String>) -> Self {
        Self {
            addr: 0,
            what: what.into(),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WRONG at {:#x}: {}", self.addr, self.what)
    }
}

/// What a mode offers to the harness.
pub(crate) trait Victim {
    /// Checks everything the mode knows; answers the number of bytes looked at.
    fn verify(&mut self) -> Result<u64, Wrong>;
    /// Answers a word of the mode's own, or `None` if it has no such word. An answer of
    /// several lines ends with a line `end`.
    fn command(&mut self, _word: &str, _rest: &str) -> Option<String> {
        None
    }
}

/// Says `ready` and answers until `quit` or the end of stdin.
pub(crate) fn serve(victim: &mut dyn Victim) {
    say("ready");
    for line in std::io::stdin().lock().lines() {
        // An error here is as final as the end of the input.
        let Ok(line) = line else { return };
        if !answer(victim, &line) {
            return;
        }
    }
}

/// As [`serve`], by a thread that never waits: it asks the victim to verify itself, again and
/// again, and looks for a word in between.
pub(crate) fn serve_without_rest(victim: &mut dyn Victim) {
    say("ready");
    let mut lines = std::io::stdin().lock().lines();
    loop {
        let outcome = victim.verify();
        if outcome.is_err() {
            die(&verdict(outcome));
        }
        if !crate::sys::is_readable(0) {
            continue;
        }
        let Some(Ok(line)) = lines.next() else { return };
        if !answer(victim, &line) {
            return;
        }
    }
}

/// False: that was the last word.
fn answer(victim: &mut dyn Victim, line: &str) -> bool {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "quit" => return false,
        "verify" => say(&verdict(victim.verify())),
        _ => match victim.command(word, rest) {
            Some(answer) => say(&answer),
            None => say(&format!("WRONG at 0x0: unknown command `{line}`")),
        },
    }
    true
}

/// Talks on a thread of its own and leaves the first thread to `body`, which never ends:
/// tools like to borrow the first thread, so it must be seen at work as well.
pub(crate) fn serve_beside(mut victim: Box<dyn Victim + Send>, body: impl FnOnce()) -> ! {
    std::thread::spawn(move || {
        serve(&mut *victim);
        std::process::exit(0);
    });
    body();
    loop {
        std::thread::park();
    }
}

/// One line for the outcome of a check.
pub(crate) fn verdict(outcome: Result<u64, Wrong>) -> String {
    match outcome {
        Ok(len_bytes) => format!("ok {len_bytes} bytes"),
        Err(wrong) => wrong.to_string(),
    }
}

/// Prints one line at once. The harness may be gone: then nobody needs the line.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints the reason on stdout (the harness reads it there) and stderr, and exits.
pub(crate) fn die(what: &str) -> ! {
    let line = if what.starts_with("WRONG") {
        what.to_owned()
    } else {
        format!("WRONG at 0x0: {what}")
    };
    say(&line);
    eprintln!("{line}");
    std::process::exit(EXIT_WRONG)
}
