//! The daemon under test: started in a rig, spoken to, ended by its pid.
//!
//! ```text
//!   Setup::new(&rig)…start() ─▶ Daemon ─┬─ client(), checkpoint(), restore(), …   our own protocol
//!        ▲                              ├─ wire()                                 bytes
//!        │ start() again: a new one     ├─ stop()    SIGTERM, exit code 0 ─▶ Finished
//!        └──────────────────────────────┴─ kill()    SIGKILL: its sessions park their targets
//! ```
//!
//! Dropped, it is killed, and what its sessions have left is restored.

use crate::memcr::Running;
use crate::wait::{DEADLINE, until, until_some};
use crate::{Context, Finished, Memcr, Result, Rig, Trouble, Wire, ensure, proc};
use memcr_client::{Answer, Ask, Choice, Client, ClientError, Location, Subject};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A daemon in the making. A clone starts another one in the same place.
#[derive(Debug, Clone)]
pub struct Setup {
    memcr: Memcr,
    socket: PathBuf,
    state_dir: PathBuf,
    port: Option<u16>,
    /// Keys of the section `[daemon]`, and whole sections behind them.
    config: String,
    config_file: PathBuf,
}

impl Setup {
    /// Images and journals in `rig`, a socket there, and the pipeline of the rig.
    #[must_use]
    pub fn new(rig: &Rig) -> Self {
        let memcr = Memcr::new().args(["daemon", "--pipeline", rig.pipeline()]);
        let sink = rig.pipeline().rsplit(',').next().unwrap_or_default();
        let memcr = memcr.args(["--set", &format!("{sink}.dir={}", rig.dir_text())]);
        Self {
            memcr,
            socket: rig.dir().join("socket"),
            state_dir: rig.state_dir(),
            port: None,
            config: String::new(),
            config_file: rig.dir().join("pipeline.toml"),
        }
    }

    /// Adds lines to the section `[daemon]` of its configuration; sections of their own
    /// come last.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// Changes its command line.
    #[must_use]
    pub fn memcr(mut self, change: impl FnOnce(Memcr) -> Memcr) -> Self {
        self.memcr = change(self.memcr);
        self
    }

    /// Listens at another path.
    #[must_use]
    pub fn socket(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.socket);
        self
    }

    /// Has its journals elsewhere.
    #[must_use]
    pub fn state_dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.state_dir);
        self
    }

    /// Listens at a TCP port, too.
    ///
    /// # Errors
    /// When there is none.
    pub fn with_port(mut self) -> Result<Self> {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        self.port = Some(free.local_addr()?.port());
        Ok(self)
    }

    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(self) -> Result<Daemon> {
        let mut running = self.command()?.start()?;
        running.close_input();
        if let Err(trouble) = running.await_message("listening at") {
            let finished = running.finish()?;
            return Err(Trouble::Failed(format!("{trouble}\n{finished}")));
        }
        let setup = self;
        Ok(Daemon {
            running: Some(running),
            setup,
        })
    }

    /// Runs one that cannot begin, up to its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run(self) -> Result<Finished> {
        self.command()?.run()
    }

    fn command(&self) -> Result<Memcr> {
        let text = format!("[daemon]\n{}", self.config);
        std::fs::write(&self.config_file, text).context(self.config_file.display())?;
        let mut memcr = self.memcr.clone().arg("--config").arg(&self.config_file);
        memcr = memcr.arg("--state-dir").arg(&self.state_dir);
        memcr = memcr.arg("--listen").arg(&self.socket);
        Ok(match self.port {
            Some(port) => memcr.args(["--listen", &port.to_string()]),
            None => memcr,
        })
    }
}

/// A daemon that listens.
#[derive(Debug)]
pub struct Daemon {
    running: Option<Running>,
    setup: Setup,
}

impl Daemon {
    /// One as tests want it that do not care.
    ///
    /// # Errors
    /// As [`Setup::start`].
    pub fn start(rig: &Rig) -> Result<Self> {
        Setup::new(rig).start()
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.as_ref().map_or(0, Running::pid)
    }

    /// The path of its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.setup.socket
    }

    /// How it was started.
    #[must_use]
    pub fn setup(&self) -> Setup {
        self.setup.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn location(&self) -> Location {
        Location::Path(self.setup.socket.clone())
    }

    /// Everywhere it listens: its socket, and its port if it has one.
    #[must_use]
    pub fn locations(&self) -> Vec<Location> {
        let port = self.setup.port.map(Location::Port);
        [self.location()].into_iter().chain(port).collect()
    }

    /// A new connection on which our own protocol is spoken.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn client(&self) -> Result<Client> {
        let mut client = Client::connect(&self.location()).context("connect to the daemon")?;
        client.set_patience(Some(DEADLINE));
        Ok(client)
    }

    /// A new connection for bytes.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn wire(&self) -> Result<Wire> {
        Wire::open(&self.location())
    }

    /// Asks; anything but success is an error.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn ask(&self, ask: Ask) -> Result<Answer> {
        let what = format!("{ask:?}");
        self.client()?.ask(ask).context(what)
    }

    /// Asks for something that must be refused with this exit code.
    ///
    /// # Errors
    /// When it is not.
    pub fn refused(&self, ask: Ask, code: u8) -> Result<Answer> {
        let what = format!("{ask:?}");
        match self.client()?.ask(ask) {
            Err(ClientError::NotDone(answer)) if answer.exit_code == code => Ok(*answer),
            other => Err(Trouble::Failed(format!(
                "{what}: want exit code {code}, got {other:?}"
            ))),
        }
    }

    /// Checkpoints a process; anything but success is an error.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn checkpoint(&self, pid: u32) -> Result<Answer> {
        self.ask(checkpoint_of(pid))
    }

    /// Restores a process; anything but success is an error.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn restore(&self, pid: u32) -> Result<Answer> {
        self.ask(restore_of(pid))
    }

    /// What it says of itself. As it does one thing after the other, all that was sent to
    /// it before has arrived when this answers.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Value> {
        let answer = self.ask(Ask::Status { pid: None })?;
        Ok(Value::Object(answer.object))
    }

    /// What it says of a process.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status_of(&self, pid: u32) -> Result<Value> {
        let pid = pid.cast_signed();
        let answer = self.ask(Ask::Status { pid: Some(pid) })?;
        Ok(Value::Object(answer.object))
    }

    /// The sessions of its list.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn list(&self) -> Result<Vec<Value>> {
        let answer = self.ask(Ask::List)?;
        let sessions = answer.object.get("sessions").and_then(Value::as_array);
        let sessions = sessions.ok_or("an answer to `list` without sessions")?;
        Ok(sessions.clone())
    }

    /// Waits until it says that the process is in this state.
    ///
    /// # Errors
    /// When that does not come.
    pub fn await_state(&self, pid: u32, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let found = until_some(&format!("state `{state}` of process {pid}"), || {
            last = self.status_of(pid).ok()?;
            (last["state"] == state).then(|| last.clone())
        });
        found.map_err(|trouble| Trouble::Failed(format!("{trouble}; it is {last}")))
    }

    /// Its children.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// The process of the session with `pid`: the one that traces it.
    ///
    /// # Errors
    /// When none comes to trace it.
    pub fn session_of(&self, pid: u32) -> Result<u32> {
        until_some(&format!("somebody to trace process {pid}"), || {
            let tracer = proc::field(&proc::text(pid, "status").ok()?, "TracerPid").ok()?;
            tracer.parse().ok().filter(|tracer| *tracer != 0)
        })
    }

    /// Waits until the process of a session has stopped itself at a fault point, and
    /// answers it.
    ///
    /// # Errors
    /// When none stops.
    pub fn stopped_session(&self) -> Result<u32> {
        until_some("a session to stop itself", || {
            let mut children = self.children().into_iter();
            children.find(|&child| proc::state(child, child) == Some('T'))
        })
    }

    /// How many descriptors it has open.
    #[must_use]
    pub fn n_fds(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        fds.map_or(0, Iterator::count)
    }

    /// Waits until it has said something that contains `text`.
    ///
    /// # Errors
    /// When it does not say it.
    pub fn await_message(&mut self, text: &str) -> Result {
        let running = self.running.as_mut().ok_or("the daemon has ended")?;
        running.await_message(text)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result {
        proc::send(self.pid(), signal)
    }

    /// Ends it as a service manager does; it must exit with 0, and leave no child.
    ///
    /// # Errors
    /// How else it ended, and all it said.
    pub fn stop(mut self) -> Result<Finished> {
        let children = self.children();
        let running = self.running.take().ok_or("the daemon has ended")?;
        running.signal(Signal::TERM)?;
        let finished = running.finish()?;
        finished.expect(0)?;
        let left: Vec<&u32> = children.iter().filter(|pid| proc::lives(**pid)).collect();
        ensure(left.is_empty(), || {
            format!("its processes {left:?} are left\n{finished}")
        })?;
        ensure(!self.setup.socket.exists(), || {
            "its socket is left".to_owned()
        })?;
        Ok(finished)
    }

    /// Waits for an end that somebody else has brought about.
    ///
    /// # Errors
    /// When it does not come.
    pub fn finish(mut self) -> Result<Finished> {
        let running = self.running.take().ok_or("the daemon has ended")?;
        running.finish()
    }

    /// Kills it alone, and waits until its sessions have parked their targets and ended.
    ///
    /// # Errors
    /// When they do not end.
    pub fn kill(mut self) -> Result<Finished> {
        let children = self.children();
        let running = self.running.take().ok_or("the daemon has ended")?;
        running.signal(Signal::KILL)?;
        let finished = running.finish()?;
        await_end(&children)?;
        Ok(finished)
    }

    /// Kills it and its sessions' processes, so that none of them can do anything more.
    ///
    /// # Errors
    /// When they do not end.
    pub fn kill_all(mut self) -> Result<Finished> {
        // Nobody of them is to notice that another one is gone.
        self.signal(Signal::STOP)?;
        let children = self.children();
        for &child in &children {
            proc::send(child, Signal::KILL)?;
        }
        let running = self.running.take().ok_or("the daemon has ended")?;
        running.signal(Signal::KILL)?;
        let finished = running.finish()?;
        await_end(&children)?;
        Ok(finished)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        let children = children(running.pid());
        let _ = running.signal(Signal::KILL);
        drop(running);
        for &child in &children {
            // One that a fault has stopped would stay for ever.
            let _ = proc::send(child, Signal::CONT);
        }
        let _ = await_end(&children);
        let left = std::fs::read_dir(&self.setup.state_dir);
        if left.is_ok_and(|mut left| left.next().is_some()) {
            let recover = Memcr::new().args(["recover", "--all"]);
            let _ = recover.state_dir(&self.setup.state_dir).run();
        }
    }
}

/// A request: checkpoint a process, all else as the daemon likes it.
#[must_use]
pub fn checkpoint_of(pid: u32) -> Ask {
    Ask::Checkpoint {
        subject: Subject::Pid(pid.cast_signed()),
        choice: Choice::default(),
        timeout: None,
    }
}

/// A request: restore a process.
#[must_use]
pub fn restore_of(pid: u32) -> Ask {
    Ask::Restore {
        subject: Subject::Pid(pid.cast_signed()),
        timeout: None,
    }
}

/// A request: stop the checkpoint of a process.
#[must_use]
pub fn abort_of(pid: u32) -> Ask {
    Ask::Abort {
        subject: Subject::Pid(pid.cast_signed()),
    }
}

/// The children of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let text = proc::text(pid, &format!("task/{pid}/children")).unwrap_or_default();
    let pids = text.split_whitespace().map(str::parse);
    pids.filter_map(std::result::Result::ok).collect()
}

/// Waits until none of these processes is left.
///
/// # Errors
/// When one stays.
pub fn await_end(pids: &[u32]) -> Result {
    for &pid in pids {
        until(&format!("the end of process {pid}"), || !proc::lives(pid))?;
    }
    Ok(())
}
