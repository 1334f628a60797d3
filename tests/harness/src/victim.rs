//! A running victim.

use crate::lines::Lines;
use crate::require::lacking;
use crate::wait::until_some;
use crate::{Context, Result, Trouble, ensure, place, proc};
use rustix::process::Signal;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

/// A victim; killed on drop.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines,
    name: String,
}

impl Victim {
    /// Starts `victim MODE ARGS…` and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or set itself up; `Skipped` when the kernel lacks what
    /// it is made of.
    pub fn start(mode: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(place::victim()?);
        command.arg(mode).args(args);
        Self::talk(command, &format!("victim {mode} {}", args.join(" ")))
    }

    /// Starts any program that speaks the protocol of the victims.
    ///
    /// # Errors
    /// As [`Victim::start`].
    pub fn talk(mut command: Command, name: &str) -> Result<Self> {
        // In a group with a parent outside of it: SIGTSTP and the like do nothing in one that
        // nobody could continue, as that of tests which were left to themselves.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context(format!("start {name}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.map(Lines::of).ok_or("a child without stdout")?;
        let mut victim = Self {
            child,
            input,
            output,
            name: name.to_owned(),
        };
        victim.await_ready()?;
        Ok(victim)
    }

    fn await_ready(&mut self) -> Result {
        loop {
            let line = self.line()?;
            if line == "ready" {
                return Ok(());
            }
            if let Some((what, reason)) = line
                .strip_prefix("skip ")
                .and_then(|rest| rest.split_once(": "))
            {
                return Err(lacking(what, reason));
            }
            ensure(!line.starts_with("WRONG"), || {
                format!("{}: {line}", self.name)
            })?;
        }
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> Result<String> {
        let line = self.output.next_line()?;
        line.ok_or_else(|| {
            let status = self.child.wait();
            Trouble::Failed(format!(
                "{} ended too early: {status:?}; it said:\n{}",
                self.name,
                self.output.text()
            ))
        })
    }

    /// Sends a word without waiting for the answer.
    ///
    /// # Errors
    /// When the victim does not read any more.
    pub fn tell(&mut self, word: &str) -> Result {
        let input = self.input.as_mut().ok_or("the victim's input is closed")?;
        let told = writeln!(input, "{word}").and_then(|()| input.flush());
        told.or_else(|err| {
            // It is gone: its last words say more than the broken pipe.
            while matches!(self.output.next_line(), Ok(Some(_))) {}
            let (status, said) = (self.exit_status()?, self.output.text());
            let what = format!(
                "{}: {err}: it ended with {status}; it said:\n{said}",
                self.name
            );
            Err(Trouble::Failed(what))
        })
    }

    /// Sends a word and answers the line that comes back.
    ///
    /// # Errors
    /// When the victim found something wrong, or is gone.
    pub fn ask(&mut self, word: &str) -> Result<String> {
        self.tell(word)?;
        self.answer()
    }

    /// The line that answers an earlier [`Victim::tell`].
    ///
    /// # Errors
    /// When the victim found something wrong, or is gone.
    pub fn answer(&mut self) -> Result<String> {
        let line = self.line()?;
        ensure(!line.starts_with("WRONG"), || {
            format!("{}: {line}", self.name)
        })?;
        Ok(line)
    }

    /// Sends a word and answers the lines that come back, up to `end`.
    ///
    /// # Errors
    /// When the victim is gone.
    pub fn ask_lines(&mut self, word: &str) -> Result<Vec<String>> {
        self.tell(word)?;
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line == "end" => return Ok(lines),
                line => lines.push(line),
            }
        }
    }

    /// Lets the victim check itself; answers the number of bytes it looked at.
    ///
    /// # Errors
    /// What it found wrong.
    pub fn verify(&mut self) -> Result<u64> {
        let answer = self.ask("verify")?;
        let number = answer
            .strip_prefix("ok ")
            .and_then(|rest| rest.split(' ').next()?.parse().ok());
        number
            .ok_or_else(|| Trouble::Failed(format!("{} answered `{answer}` to verify", self.name)))
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// When it does not exit with 0.
    pub fn quit(mut self) -> Result {
        self.input = None;
        let status = self.exit_status()?;
        ensure(status.success(), || {
            format!(
                "{} ended with {status}; it said:\n{}",
                self.name,
                self.output.text()
            )
        })
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn exit_status(&mut self) -> Result<ExitStatus> {
        until_some(&format!("the end of {}", self.name), || {
            self.child.try_wait().ok().flatten()
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result {
        proc::send(self.pid(), signal)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped one. Errors: it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
