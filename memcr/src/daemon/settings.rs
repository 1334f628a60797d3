//! What is in force for one run of the daemon: configuration and flags together.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use memcr_wire::Location;
use sd_notify::NotifyState;

use super::desk::Limits;
use super::listen::Door;
use super::rules::{Choices, Rules};
use crate::cli::args::Args;
use crate::cli::config::{self, Config, Daemon, Given, OnStop, Origin, TcpTrust};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;

/// How often the server wakes up when nothing happens at all.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Each takes a few MiB while it works. More than this do not make the last one come
/// earlier.
const RESTORES_PER_CPU: usize = 4;

/// What is in force.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) rules: Rules,
    pub(super) choices: Choices,
    pub(super) limits: Limits,
    pub(super) timeout: Option<Duration>,
    pub(super) on_stop: OnStop,
    pub(super) metrics: Option<PathBuf>,
    pub(super) locations: Vec<Location>,
    pub(super) door: Door,
    pub(super) daemon: Daemon,
    /// How often the service manager wants to hear from us, at the most.
    pub(super) heartbeat: Duration,
    /// It has a service manager that is to hear how it goes, if there is one.
    is_service: bool,
    has_watchdog: bool,
    beaten: Option<Instant>,
}

impl Settings {
    /// Of a memcr that serves nobody but its own user.
    pub(super) fn alone(config: &Config, args: &Args) -> Self {
        let daemon = config.settings.daemon.settled(&config.settings.pipelines);
        Self {
            on_stop: OnStop::Hold,
            metrics: None,
            // Whoever started us may be a service, which we are not.
            is_service: false,
            heartbeat: HEARTBEAT,
            has_watchdog: false,
            ..Self::with(config, args, daemon, None, Vec::new())
        }
    }

    /// Of the configuration and the command line.
    ///
    /// # Errors
    /// A group that there is not, a location that is none.
    pub(super) fn new(config: &Config, args: &Args) -> Result<Self, Failure> {
        let daemon = config.settings.daemon.settled(&config.settings.pipelines);
        let group = args.job.listen_gid.clone().map(|value| Given {
            value,
            origin: Origin::Flag("--listen-gid".into()),
        });
        let group = group.or_else(|| daemon.group.clone());
        let group = group.map(|group| config::gid(&group)).transpose()?;
        let locations = locations(args, &daemon)?;
        Ok(Self::with(config, args, daemon, group, locations))
    }

    fn with(
        config: &Config,
        args: &Args,
        daemon: Daemon,
        group: Option<u32>,
        locations: Vec<Location>,
    ) -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let n_checkpoints = match daemon.max_checkpoints {
            0 => n_cpus,
            n => n.into(),
        };
        let door = Door {
            group,
            others: daemon.others,
        };
        Self {
            config: config.clone(),
            rules: Rules::new(group, daemon.others),
            choices: Choices::new(&daemon),
            limits: Limits {
                n_checkpoints,
                n_restores: n_cpus * RESTORES_PER_CPU,
                n_sessions: daemon.max_sessions as usize,
            },
            timeout: args.job.timeout.or(daemon.timeout),
            on_stop: daemon.on_stop,
            metrics: daemon.metrics.clone(),
            locations,
            door,
            daemon,
            // Half of what it allows, as sd_watchdog_enabled(3) recommends.
            heartbeat: watchdog.map_or(HEARTBEAT, |limit| HEARTBEAT.min(limit / 2)),
            is_service: true,
            has_watchdog: watchdog.is_some(),
            beaten: None,
        }
    }

    /// Says what the operator should know who has opened the daemon to the world.
    pub(super) fn warn(&self) {
        let address = self.daemon.tcp_address;
        let has_port = self
            .locations
            .iter()
            .any(|it| matches!(it, Location::Port(_)));
        if has_port && self.daemon.tcp_trust == TcpTrust::All {
            let who = match address.is_loopback() {
                true => "every user of this machine",
                false => "everybody who reaches it",
            };
            tracing::warn!("{who} may act on every process, by TCP at {address} (tcp_trust)");
        }
    }

    /// Tells the service manager that clients can connect.
    pub(super) fn say_ready(&self) {
        say(&[NotifyState::Ready]);
    }

    /// Tells it that the end has begun.
    pub(super) fn say_stopping(&self) {
        if self.is_service {
            say(&[NotifyState::Stopping]);
        }
    }

    /// Tells it that we are alive, when it is time.
    pub(super) fn beat(&mut self, now: Instant) {
        let is_time = self
            .beaten
            .is_none_or(|last| now.duration_since(last) >= self.heartbeat / 2);
        if self.has_watchdog && is_time {
            self.beaten = Some(now);
            say(&[NotifyState::Watchdog]);
        }
    }
}

/// Without a service manager nobody is told anything.
fn say(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!("the service manager does not listen: {error}");
    }
}

fn locations(args: &Args, daemon: &Daemon) -> Result<Vec<Location>, Failure> {
    let mut words: Vec<std::ffi::OsString> = args.job.listen.clone();
    if words.is_empty() {
        words = daemon
            .listen
            .iter()
            .map(|it| it.value.clone().into())
            .collect();
    }
    let parse = |word: &std::ffi::OsString| {
        Location::parse(word).map_err(|error| Failure::new(Exit::Usage, error))
    };
    words.iter().map(parse).collect()
}
