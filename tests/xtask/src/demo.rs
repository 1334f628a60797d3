//! The main job on a sample target, watched from outside.
//!
//! ```text
//!   victim fills 256 MiB ── RSS before ── memcr -p PID ── "press enter" ── RSS held
//!                                               └ Enter ── RSS after ── victim verifies
//! ```
//! The figures of RSS are read here, not taken from memcr.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::artifacts::{self, Prefix};
use crate::host;
use crate::run::Done;

/// Runs the demonstration.
///
/// # Errors
/// When something cannot be built, or the target lost anything.
pub(crate) fn run() -> Done {
    host::ready_to_build()?;
    let prefix = artifacts::build(artifacts::RELEASE, false)?.stage()?;
    let mut target =
        Talk::start(Command::new(prefix.victim()).args(["memory", "size=256M", "content=heap"]))?;
    target.until("ready")?;
    let pid = target.child.id();
    let before = rss_kib(pid)?;
    let held = checkpoint_and_restore(&prefix, pid)?;
    let after = rss_kib(pid)?;
    target.say("verify")?;
    let verdict = target.line()?;
    println!("\ntarget {pid}, as seen from outside:");
    println!(
        "  RSS before {:7.1} MiB\n  RSS held   {:7.1} MiB\n  RSS after  {:7.1} MiB",
        mib(before),
        mib(held),
        mib(after)
    );
    println!(
        "  (pages of zeros were dropped for good and take memory again when they are written)"
    );
    println!("  its own check of every byte: {verdict}");
    target.end()?;
    if verdict.starts_with("ok ") {
        Ok(())
    } else {
        Err(format!("the target found: {verdict}"))
    }
}

/// Runs memcr on `pid`, presses Enter, and answers the RSS while it was held, KiB.
fn checkpoint_and_restore(prefix: &Prefix, pid: u32) -> Done<u64> {
    println!("$ {} -p {pid}", prefix.memcr().display());
    let mut memcr = Talk::start(Command::new(prefix.memcr()).args(["-p", &pid.to_string()]))?;
    memcr.until("press enter to restore")?;
    let held = rss_kib(pid)?;
    memcr.say("")?;
    memcr.end()?;
    Ok(held)
}

/// A child that is talked to line by line. It does not outlive the talk.
struct Talk {
    child: Child,
    name: String,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Talk {
    fn start(command: &mut Command) -> Done<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let fail = |what: &dyn std::fmt::Display| format!("cannot start {name}: {what}");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| fail(&error))?;
        match (child.stdin.take(), child.stdout.take()) {
            (input @ Some(_), Some(output)) => Ok(Self {
                child,
                name,
                input,
                output: BufReader::new(output),
            }),
            _ => Err(fail(&"no pipes")),
        }
    }

    fn say(&mut self, line: &str) -> Done {
        let input = self.input.as_mut().ok_or("its input is closed")?;
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(|error| format!("{}: {error}", self.name))
    }

    fn line(&mut self) -> Done<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => Err(format!(
                "{} ended too early: {:?}",
                self.name,
                self.child.wait()
            )),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Prints lines until one holds `text`.
    fn until(&mut self, text: &str) -> Done {
        loop {
            let line = self.line()?;
            println!("  {line}");
            if line.contains(text) {
                return Ok(());
            }
        }
    }

    /// Prints what is left and waits for a good end.
    fn end(mut self) -> Done {
        self.input = None;
        while let Ok(line) = self.line() {
            println!("  {line}");
        }
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}: {status}", self.name)),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }
}

impl Drop for Talk {
    /// After a failure nothing of ours is left running; after a good end this does
    /// nothing, the child is waited for.
    fn drop(&mut self) {
        self.input = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `Rss` of `/proc/PID/smaps_rollup`, KiB: exact, where the counters of `statm` lag.
fn rss_kib(pid: u32) -> Done<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("{path} has no Rss"))
}

fn mib(kib: u64) -> f64 {
    // Below 2^52 KiB: exact.
    #[allow(clippy::cast_precision_loss)]
    let kib = kib as f64;
    kib / 1024.0
}
