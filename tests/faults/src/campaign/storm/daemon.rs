//! The daemon as a process: started, ended, measured.

use memcr_client::{Client, Location};
use memcr_harness::daemon::children;
use memcr_harness::wait::{until, until_some};
use memcr_harness::{Context, Result, Rig, ensure, place, proc};
use rustix::process::Signal;
use std::fmt;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

/// Where everything is: configuration, socket, images, journals, and what was said.
#[derive(Debug, Clone)]
pub(super) struct Place {
    rig: Arc<Rig>,
    port: u16,
}

impl Place {
    /// A fresh one.
    pub(super) fn new() -> Result<Self> {
        let place = Self {
            rig: Arc::new(Rig::new()?),
            port: free_port()?,
        };
        std::fs::create_dir(place.other_dir())?;
        std::fs::write(place.config(), place.configuration())?;
        Ok(place)
    }

    fn configuration(&self) -> String {
        format!(
            "pipeline = \"lz4,crc32,file\"\n\
             [pipelines]\n\
             secret = \"lz4,encrypt,file\"\n\
             [stage.file]\n\
             dir = \"{}\"\n\
             [daemon]\n\
             listen = [\"{}\", \"{}\"]\n",
            self.rig.dir_text(),
            self.socket().display(),
            self.port,
        )
    }

    fn config(&self) -> PathBuf {
        self.rig.dir().join("storm.toml")
    }

    fn socket(&self) -> PathBuf {
        self.rig.dir().join("socket")
    }

    fn log(&self) -> PathBuf {
        self.rig.dir().join("log")
    }

    fn other_dir(&self) -> PathBuf {
        self.rig.dir().join("other")
    }

    /// Where it listens.
    pub(super) fn locations(&self) -> Vec<Location> {
        vec![Location::Path(self.socket()), Location::Port(self.port)]
    }

    /// Directories that clients may name.
    pub(super) fn dirs(&self) -> Vec<PathBuf> {
        vec![self.rig.dir().to_owned(), self.other_dir()]
    }

    /// Images and journals that are there.
    pub(super) fn left(&self) -> Vec<String> {
        let mut left = self.rig.left();
        let others = std::fs::read_dir(self.other_dir()).into_iter().flatten();
        left.extend(others.flatten().map(|it| it.path().display().to_string()));
        left
    }

    /// Puts what the daemon said where it stays.
    pub(super) fn keep_log(&self) -> Result<PathBuf> {
        let kept = place::scratch().join(format!("memcr-storm-{}.log", std::process::id()));
        std::fs::copy(self.log(), &kept).context(kept.display())?;
        Ok(kept)
    }

    /// What the daemons said that none of them says.
    pub(super) fn panics(&self) -> Result<Vec<String>> {
        let said = std::fs::read(self.log()).context("what the daemon said")?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let panics = said.lines().filter(|line| line.contains("panicked"));
        Ok(panics.map(str::to_owned).collect())
    }

    fn dir(&self) -> &Path {
        self.rig.dir()
    }
}

/// A port that nobody has. Not one of those that the kernel gives to clients: while no
/// daemon is there, one of ours might get it and be connected with itself.
fn free_port() -> Result<u16> {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let mut ports =
        (first..first + 1000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    ports.next().ok_or_else(|| "no port is free".into())
}

/// A daemon; killed on drop, and its sessions then park their targets by themselves.
///
/// Not the harness's, which waits for the sessions of one that was killed: here the next
/// one begins while they are at it.
#[derive(Debug)]
pub(super) struct Daemon {
    place: Place,
    child: Child,
}

impl Daemon {
    /// Starts one and waits until it answers.
    pub(super) fn start(place: &Place) -> Result<Self> {
        let daemon = Self {
            place: place.clone(),
            child: command(place)?.spawn().context("start memcr daemon")?,
        };
        daemon.await_ready()?;
        Ok(daemon)
    }

    fn await_ready(&self) -> Result {
        let pid = self.pid();
        until("the daemon to answer", || {
            let is_new = |answer: memcr_client::Answer| answer.object["pid"] == pid;
            let asked = Client::connect(&Location::Path(self.place.socket()));
            let said = asked.and_then(|mut client| client.status(None));
            said.is_ok_and(is_new) || !proc::lives(pid)
        })?;
        ensure(proc::lives(pid), || {
            let log = std::fs::read_to_string(self.place.log()).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            format!("the daemon did not start: {last:#?}")
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Sends it a signal and waits for its end.
    pub(super) fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        proc::send(self.pid(), signal)?;
        let waited = until_some("the end of the daemon", || {
            self.child.try_wait().ok().flatten()
        });
        waited.context(format!("{signal:?} to the daemon"))
    }

    /// A new one in its place, which has ended.
    pub(super) fn again(&mut self) -> Result {
        self.child = command(&self.place)?
            .spawn()
            .context("start memcr daemon")?;
        self.await_ready()
    }

    /// What it has, once nobody is connected and no session is left.
    pub(super) fn footprint_at_rest(&self) -> Result<Footprint> {
        let mut last = self.footprint()?;
        let what = "the daemon to close what clients have left";
        until(what, || {
            self.footprint().is_ok_and(|now| {
                let is_at_rest = now.n_sockets <= N_LISTENERS && now.children.is_empty();
                last = now;
                is_at_rest
            })
        })
        .context(format!("{last}"))?;
        Ok(last)
    }

    fn footprint(&self) -> Result<Footprint> {
        let pid = self.pid();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors")?;
        let links: Vec<PathBuf> = fds
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .collect();
        let is_socket = |link: &&PathBuf| link.to_string_lossy().starts_with("socket:");
        let status = proc::text(pid, "status")?;
        Ok(Footprint {
            n_fds: links.len(),
            n_sockets: links.iter().filter(is_socket).count(),
            anon_kib: proc::kib(&status, "RssAnon")?,
            rss_kib: proc::kib(&status, "VmRSS")?,
            children: children(pid),
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Errors: it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket for each location.
const N_LISTENERS: usize = 2;

/// What the daemon has of the machine's.
#[derive(Debug, Clone)]
pub(super) struct Footprint {
    n_fds: usize,
    n_sockets: usize,
    anon_kib: u64,
    rss_kib: u64,
    /// Zombies too.
    children: Vec<u32>,
}

impl Footprint {
    /// Not more than `before`: of descriptors not one, of memory no more than `slack_kib`.
    pub(super) fn expect_like(&self, before: &Self, slack_kib: u64) -> Result {
        let is_like = self.n_fds <= before.n_fds
            && self.anon_kib <= before.anon_kib + slack_kib
            && self.rss_kib <= before.rss_kib + slack_kib;
        ensure(is_like, || {
            format!("the daemon had {before}, and has {self}")
        })
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, RssAnon {} KiB, VmRSS {} KiB, {} children",
            self.n_fds,
            self.anon_kib,
            self.rss_kib,
            self.children.len()
        )
    }
}

/// The parent of a process; `None` if it is gone.
pub(super) fn parent_of(pid: u32) -> Option<u32> {
    let stat = proc::text(pid, "stat").ok()?;
    // The name in parentheses may contain anything, also `) R`.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Processes of memcr's that have to do with this place: of a daemon that is gone too.
pub(super) fn processes_of(place: &Place) -> Vec<u32> {
    let mark = place.config().display().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_ours = |pid: &u32| proc::text(*pid, "cmdline").is_ok_and(|it| it.contains(&mark));
    pids.filter(is_ours).collect()
}

/// Whether it ended as it was told to.
pub(super) fn ended_well(status: ExitStatus) -> bool {
    status.success() && status.signal().is_none()
}

fn command(place: &Place) -> Result<Command> {
    let mut command = Command::new(place::memcr()?);
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.log())?;
    command
        .arg("daemon")
        .arg("--config")
        .arg(place.config())
        .arg("--state-dir")
        .arg(place.dir().join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Whatever the developer has configured must not decide over tests.
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", "/nonexistent");
    if let Some(dir) = place::stages()? {
        command.env("MEMCR_STAGE_PATH", dir);
    }
    Ok(command)
}
