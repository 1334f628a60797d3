//! Running the program under test.

use crate::lines::Lines;
use crate::wait::until_some;
use crate::{Context, Result, Trouble, ensure, place, proc};
use rustix::process::Signal;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// What memcr prints when the target is held.
pub const PROMPT: &str = "press enter to restore";

/// A command line of memcr in the making.
#[derive(Debug, Clone, Default)]
pub struct Memcr {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    as_user: Option<u32>,
    program: Option<PathBuf>,
    wrapper: Vec<OsString>,
    faults: Option<String>,
    state_dir: Option<PathBuf>,
}

impl Memcr {
    /// No arguments yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `-p PID`.
    #[must_use]
    pub fn on(pid: u32) -> Self {
        Self::new().args(["-p", &pid.to_string()])
    }

    /// `checkpoint PID`.
    #[must_use]
    pub fn checkpoint(pid: u32) -> Self {
        Self::new().args(["checkpoint", &pid.to_string()])
    }

    /// `restore PID`.
    #[must_use]
    pub fn restore(pid: u32) -> Self {
        Self::new().args(["restore", &pid.to_string()])
    }

    /// `recover PID`.
    #[must_use]
    pub fn recover(pid: u32) -> Self {
        Self::new().args(["recover", &pid.to_string()])
    }

    /// `list --json`.
    #[must_use]
    pub fn list() -> Self {
        Self::new().args(["list", "--json"])
    }

    /// `--state-dir DIR`, instead of the one that all tests share.
    #[must_use]
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = Some(dir.to_owned());
        self
    }

    /// Runs the build with fault points and gives it orders: `sink.write@3=kill`.
    #[must_use]
    pub fn with_fault(mut self, orders: &str) -> Self {
        self.faults = Some(orders.to_owned());
        self
    }

    /// `--pipeline STAGES --set file.dir=DIR`, for pipelines that end in `file`.
    #[must_use]
    pub fn store(self, pipeline: &str, dir: &Path) -> Self {
        let mut set = OsString::from("file.dir=");
        set.push(dir);
        self.args(["--pipeline", pipeline]).arg("--set").arg(set)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs as another user.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        self.as_user = Some(uid);
        self
    }

    /// Runs a copy of the program.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Runs it through another program: `WORDS memcr …`.
    #[must_use]
    pub fn via(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(OsString::from).collect();
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(self) -> Result<Running> {
        let mut command = self.command()?;
        let mut args = self.args.clone();
        args.extend(self.state_dir_args()?);
        command
            .args(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Whatever the developer has configured must not decide over tests.
        command
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", "/nonexistent");
        if let Some(dir) = place::stages()? {
            command.env("MEMCR_STAGE_PATH", dir);
        }
        if let Some(orders) = &self.faults {
            command.env("MEMCR_FAULT", orders);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some(uid) = self.as_user {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
        }
        let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let line = format!("memcr {}", words.join(" "));
        let mut child = command.spawn().context(format!("start {line}"))?;
        let input = child.stdin.take();
        let output = child
            .stdout
            .take()
            .map(Lines::of)
            .ok_or("a child without stdout")?;
        let errors = child
            .stderr
            .take()
            .map(Lines::of)
            .ok_or("a child without stderr")?;
        Ok(Running {
            child,
            input,
            output: Some(output),
            errors: Some(errors),
            line,
        })
    }

    /// Every command that has to do with sessions is kept away from those of the machine.
    fn state_dir_args(&self) -> Result<Vec<OsString>> {
        const WITH_SESSIONS: [&str; 5] = ["-p", "checkpoint", "restore", "recover", "list"];
        let first = self.args.first().and_then(|arg| arg.to_str());
        if !first.is_some_and(|first| WITH_SESSIONS.contains(&first)) {
            return Ok(Vec::new());
        }
        let dir = match &self.state_dir {
            Some(dir) => dir.clone(),
            None => place::state_dir()?,
        };
        Ok(vec!["--state-dir".into(), dir.into()])
    }

    fn command(&self) -> Result<Command> {
        let program = match &self.program {
            Some(path) => path.clone(),
            None if self.faults.is_some() => place::memcr_faults()?,
            None => place::memcr()?,
        };
        let Some((first, rest)) = self.wrapper.split_first() else {
            return Ok(Command::new(program));
        };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        Ok(command)
    }

    /// Runs it to its end, with an empty input.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(self) -> Result<Finished> {
        let mut running = self.start()?;
        running.input = None;
        running.finish()
    }

    /// Checkpoint and restore at once (`-n`); anything but success is an error.
    ///
    /// # Errors
    /// When memcr does not exit with 0.
    pub fn cycle(self) -> Result<Finished> {
        let finished = self.arg("-n").run()?;
        finished.expect(0)?;
        Ok(finished)
    }

    /// Runs it up to the moment when the target is held.
    ///
    /// # Errors
    /// When it ends before that.
    pub fn hold(self) -> Result<Held> {
        let mut running = self.start()?;
        let prompt = running
            .output
            .as_mut()
            .map_or(Ok(None), |output| output.until(PROMPT))?;
        if prompt.is_some() {
            return Ok(Held { running });
        }
        let finished = running.finish()?;
        Err(Trouble::Failed(format!(
            "never held the target\n{finished}"
        )))
    }
}

/// A memcr at work.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<Lines>,
    errors: Option<Lines>,
    line: String,
}

impl Running {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends its input: it has nobody to ask.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result {
        proc::send(self.pid(), signal)
    }

    /// Waits for a line on its stderr that contains `text`.
    ///
    /// # Errors
    /// When none comes.
    pub fn await_message(&mut self, text: &str) -> Result {
        let lines = self.errors.as_mut().ok_or("its stderr was read already")?;
        let found = lines.until(text)?;
        ensure(found.is_some(), || {
            format!(
                "no message with `{text}` from {}:\n{}",
                self.line,
                lines.text()
            )
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(mut self) -> Result<Finished> {
        let what = format!("the end of {}", self.line);
        let status = until_some(&what, || self.child.try_wait().ok().flatten());
        let status = status.map_err(|trouble| {
            let text = |lines: &Option<Lines>| lines.as_ref().map_or(String::new(), Lines::text);
            Trouble::Failed(format!(
                "{trouble}; it said:\n{}\n{}",
                text(&self.output),
                text(&self.errors)
            ))
        })?;
        let text = |lines: Option<Lines>| lines.map_or(Ok(String::new()), Lines::all);
        Ok(Finished {
            code: status.code(),
            signal: status.signal(),
            out: text(self.output.take())?,
            err: text(self.errors.take())?,
            line: std::mem::take(&mut self.line),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its input ends here, which lets it restore; only then it may be killed.
        self.input = None;
        let _ = until_some("the end of memcr", || self.child.try_wait().ok().flatten());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A memcr that holds its target.
#[derive(Debug)]
pub struct Held {
    running: Running,
}

impl Held {
    /// The pid of memcr.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Sends memcr a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result {
        self.running.signal(signal)
    }

    /// Presses Enter and waits for a message that holds `text`.
    ///
    /// # Errors
    /// When none comes.
    pub fn enter_and_await(&mut self, text: &str) -> Result {
        if let Some(mut input) = self.running.input.take() {
            writeln!(input).context("press enter")?;
        }
        self.running.await_message(text)
    }

    /// Presses Enter and waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn enter(mut self) -> Result<Finished> {
        if let Some(mut input) = self.running.input.take() {
            // memcr may have ended already: its exit code will tell.
            let _ = writeln!(input);
            return self.running.finish();
        }
        self.running.finish()
    }

    /// Closes memcr's input and waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_of_input(mut self) -> Result<Finished> {
        self.running.input = None;
        self.running.finish()
    }

    /// Waits for an end that comes without Enter.
    ///
    /// # Errors
    /// When it does not come.
    pub fn finish(self) -> Result<Finished> {
        let mut running = self.running;
        // Kept open until the end: end of input would mean Enter.
        let _input = running.input.take();
        running.finish()
    }

    /// Restores; anything but success is an error.
    ///
    /// # Errors
    /// When memcr does not exit with 0.
    pub fn release(self) -> Result<Finished> {
        let finished = self.enter()?;
        finished.expect(0)?;
        Ok(finished)
    }
}

/// A memcr that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
    line: String,
}

impl Finished {
    /// Fails unless it exited with `code`.
    ///
    /// # Errors
    /// How it ended, and everything it said.
    pub fn expect(&self, code: i32) -> Result {
        ensure(self.code == Some(code), || {
            format!("want exit code {code}\n{self}")
        })
    }

    /// Fails unless its messages contain `text`.
    ///
    /// # Errors
    /// Everything it said.
    pub fn says(&self, text: &str) -> Result {
        let said = self.err.contains(text) || self.out.contains(text);
        ensure(said, || format!("want a message with `{text}`\n{self}"))
    }

    /// The JSON object on its stdout.
    ///
    /// # Errors
    /// When there is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        let object = self.out.find('{').map_or("", |at| &self.out[at..]);
        serde_json::from_str(object).context(format!("no JSON object on stdout\n{self}"))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            signal,
            out,
            err,
            line,
        } = self;
        write!(
            f,
            "$ {line}\nexit code {code:?} signal {signal:?}\n--- stdout\n{out}\n--- stderr\n{err}"
        )
    }
}
