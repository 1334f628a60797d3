//! The daemon: clients without rights ask, it may and does.
//!
//! ```text
//!   client ──v1, v2, lines of JSON──▶ server ──fork──▶ session's process ──ptrace──▶ target
//!   client ──────────────────────────▶  │  └──fork──▶ session's process ──ptrace──▶ target
//!                                       └ journals: whatever ends it, the next one goes on
//! ```
//!
//! One thread that never waits for one thing alone, and one child for each session: a
//! plugin that crashes, a disk that hangs, a target that does not stop costs one session
//! something, and nobody else. The children are forked without an exec, so that what the
//! daemon has read and relocated is there once for all of them.
//!
//! | file | what |
//! |---|---|
//! | `settings`, `listen` | what is in force, where clients connect |
//! | `peer`, `rules`, `permit` | who somebody is, what they may do, and whether they still may |
//! | `connection`, `poller`, `server` | bytes in and out, and everything that happens |
//! | `desk`, `group`, `members` | every session and who waits for it; many processes as one |
//! | `child`, `link` | the process of a session, and what it and the daemon say to each other |
//! | `metrics` | counters for others to read |
//!
//! `memcr checkpoint --tree` and its like are a daemon that serves one request and nobody
//! else: see [`alone`].

pub(crate) mod alone;
mod child;
mod connection;
mod desk;
mod group;
mod link;
mod listen;
mod members;
mod metrics;
mod peer;
mod permit;
mod poller;
mod rules;
mod server;
mod settings;

use std::time::Instant;

use crate::cli::args::Args;
use crate::cli::config::{self, Config};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::session::journal::StateDir;
use crate::sys::fork;
pub(crate) use child::Home;
use child::Task;
use link::{Link, News};
use listen::Listener;
use server::Server;
use settings::Settings;

/// Serves clients until a signal ends it.
///
/// # Errors
/// It cannot begin: what is configured does not fit, somebody else listens there, another
/// daemon works with the same state directory.
pub(crate) fn run(args: &Args, config: &Config, home: Home) -> Result<(), Failure> {
    let settings = Settings::new(config, args)?;
    if settings.locations.is_empty() {
        let failure = Failure::new(Exit::Usage, "nowhere to listen");
        let hint = "give --listen PORT or --listen PATH, or `listen` in the section [daemon] of pipeline.toml";
        return Err(failure.with_hint(Some(hint)));
    }
    try_pipeline(args, config, &home)?;
    raise_descriptors();
    let state_dir = StateDir::open(Some(&home.state_dir))?;
    let _alone = state_dir.lock_for_daemon()?;
    let mut listeners = Vec::new();
    for location in &settings.locations {
        let (door, daemon) = (settings.door, &settings.daemon);
        let listener = Listener::open(location, door, daemon.tcp_address, daemon.tcp_trust);
        listeners.push(listener.map_err(|error| Failure::new(error.exit(), error))?);
    }
    let failed = |error| Failure::new(Exit::Internal, format!("the daemon cannot go on: {error}"));
    let mut server = Server::new(home, settings.clone(), state_dir).map_err(failed)?;
    server.adopt_all(Instant::now());
    for listener in listeners {
        server.listen(listener).map_err(failed)?;
    }
    for location in &settings.locations {
        tracing::info!("listening at {location}");
    }
    settings.warn();
    settings.say_ready();
    server.run().map_err(failed)
}

/// Whether the pipeline that is configured works here: in a child, because plugins are
/// loaded for it, and whatever they start must not be in the daemon.
fn try_pipeline(args: &Args, config: &Config, home: &Home) -> Result<(), Failure> {
    let choice = config::pipeline(config, &args.job, &args.common.set)?;
    let failed = |error| Failure::new(Exit::Internal, format!("cannot try the pipeline: {error}"));
    let (ours, theirs) = Link::pair().map_err(failed)?;
    let task = Task::Try(Box::new(choice));
    let started = fork::spawn(theirs.into(), server::STOP, |link| {
        child::run(home, &task, Link::from(link))
    });
    let child = started.map_err(failed)?;
    let said = ours.hear::<News>(false);
    let ended = child.reap().map_err(failed)?;
    match said {
        Ok(Some(News::End { answer, .. })) => Failure::of_answer(&answer).map_or(Ok(()), Err),
        _ => {
            let what = format!("the pipeline crashes when it is loaded ({ended:?})");
            Err(Failure::new(Exit::Plugin, what))
        }
    }
}

/// Two descriptors for each session, and one for each client: as many as we may have.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}
