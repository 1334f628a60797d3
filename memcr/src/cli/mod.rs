//! Flags, configuration and messages for people. Touches no target and loads no plugin
//! itself: it calls the rooms that do.
//!
//! ```text
//! words ──compat──▶ args ──stray──▶ run ──▶ job │ stages │ image │ check │ print
//!                              config ──────┘      │
//!                                 Failure ◀────────┘──▶ stderr, Exit
//! ```

pub mod args;
mod check;
mod check_config;
pub mod compat;
pub mod config;
pub mod exit;
pub mod failure;
mod group;
mod image;
mod interactive;
pub(crate) mod job;
pub(crate) mod list;
mod log;
mod manner;
mod print;
mod progress;
mod report;
pub(crate) mod sessions;
pub(crate) mod signals;
pub(crate) mod stages;
mod stray;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};

use args::{Args, LogFormat, Verb};
use config::{Config, Places};
use exit::Exit;
use failure::Failure;
use manner::Manner;
use memcr_text::Out;

use crate::daemon;
use crate::pipeline::{Cancel, Priority, SearchPath};
use crate::session::gate::Open;
use crate::session::journal::StateDir;
use crate::sys;

/// The command line in `words`, the first of which is the name of the program.
///
/// # Errors
/// What clap has to say: usage errors, but also help and version.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    let words = compat::split_clusters(words);
    // What a command hides takes building all of them, a millisecond's work in all: it is for
    // who reads it.
    let matches = Args::command()
        .try_get_matches_from(&words)
        .or_else(|_| args::command().try_get_matches_from(&words))
        .map_err(stray::name_the_flag)?;
    let args = Args::from_arg_matches(&matches)?;
    stray::check(&args, &matches)?;
    Ok(args)
}

/// Says what clap has to say of `words`. Help and version are answers, and results like any
/// other: whether they could be written counts. Everything else is a usage error.
#[must_use]
pub fn answer(error: &clap::Error, words: &[OsString]) -> Exit {
    let manner = Manner::of(words);
    if error.use_stderr() {
        return manner.complain(error);
    }
    match error.print() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(&unwritten(error), manner.form);
            Exit::Internal
        }
        _ => Exit::Ok,
    }
}

/// Does what `args` say.
///
/// # Errors
/// What went wrong, with the exit code for it. With `--json` it is on stdout already.
pub fn run(args: &Args) -> Result<(), Failure> {
    // Before there is a second thread. Should it fail, waits are slower and no less right.
    let _ = sys::wait::block_sigchld();
    sys::heap::keep_small();
    sys::last_words::listen();
    log::init(args);
    let mut out = Out::default();
    let done = dispatch(args, &mut out);
    if let (Err(failure), true) = (&done, args.common.json) {
        out.json(&failure.to_json());
    }
    // Of a checkpoint more is left than what nobody could read.
    let hint = matches!(args.verb, Some(Verb::Checkpoint(_)))
        .then_some("it is held all the same: see `memcr list`");
    done.and(
        out.finish()
            .map_err(|error| unwritten(error).with_hint(hint)),
    )
}

fn unwritten(error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("cannot write to stdout: {error}"))
}

fn dispatch(args: &Args, out: &mut Out) -> Result<(), Failure> {
    let json = args.common.json;
    match &args.verb {
        Some(Verb::Checkpoint(whom)) => match whom.target {
            Some(target) => with_target(args, target, out, job::park)?,
            None => group::checkpoint(args, whom, out)?,
        },
        Some(Verb::Restore(whom)) => match whom.target {
            Some(target) => sessions::with(args, &load(args)?, |sessions| {
                sessions.restore(target.cast_signed(), out)
            })?,
            None => group::restore(args, whom, out)?,
        },
        Some(Verb::Daemon) => serve(args)?,
        Some(Verb::Recover { target, all, hold }) => {
            sessions::with(args, &load(args)?, |sessions| match target {
                Some(target) => sessions.recover_one(target.cast_signed(), *hold, out),
                None => sessions.recover_every(*all, *hold, args.common.log_format, out),
            })?
        }
        Some(Verb::List) => list::run(&state_dir(args, &load(args)?), json, out)?,
        Some(Verb::Inspect { image }) => image::inspect(image, json, out)?,
        Some(Verb::Verify { image }) => {
            let (config, overrides) = (load(args)?, config::overrides(&args.common.set)?);
            let workers = config::workers(&config, &args.job);
            image::verify(image, &search(&config), &overrides, workers, json, out)?;
        }
        Some(Verb::Check) => check::run(json, out),
        Some(Verb::Completions { shell }) => print::completions(*shell, out),
        Some(Verb::Man { verb }) => print::man(verb.as_deref(), out)?,
        Some(Verb::Stages) => stages::list(&search(&load(args)?), json, out),
        None => without_verb(args, out)?,
    }
    Ok(())
}

fn without_verb(args: &Args, out: &mut Out) -> Result<(), Failure> {
    if !args.job.listen.is_empty() {
        return serve(args);
    }
    if let Some(pid) = args.job.pid {
        return with_target(args, pid, out, job::run);
    }
    let json = args.common.json;
    let config = load(args)?;
    let search = search(&config);
    if args.job.stages {
        stages::list(&search, json, out);
        return Ok(());
    }
    if let Some(name) = &args.job.stage_help {
        return stages::help(&config, name, &search, json, out);
    }
    // `stray` has seen to it that there is a target or --check-config.
    check_config::run(args, &config, &search, out)
}

/// `daemon`, `--listen`.
fn serve(args: &Args) -> Result<(), Failure> {
    compat::say_without_effect(&args.job);
    let config = load(args)?;
    daemon::run(args, &config, home(args, &config))
}

/// What the children of a daemon need to know.
fn home(args: &Args, config: &Config) -> daemon::Home {
    daemon::Home {
        args: args.clone(),
        search: search(config),
        state_dir: state_dir(args, config),
    }
}

/// Does what `what` does with process `pid`, as configuration and flags say.
fn with_target(
    args: &Args,
    pid: u32,
    out: &mut Out,
    what: impl FnOnce(&job::Order<'_>, &mut Out) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let config = load(args)?;
    let order = job::Order {
        args,
        pid,
        state_dir: &state_dir(args, &config),
        search: &search(&config),
        choice: &config::pipeline(&config, &args.job, &args.common.set)?,
        priority: Priority::Normal,
        group: None,
        gate: Arc::new(Open),
        cancel: Cancel::new(),
    };
    what(&order, out)
}

fn load(args: &Args) -> Result<Config, Failure> {
    let places = Places::of_process(sys::is_secure());
    Ok(Config::load(args.common.config.as_deref(), &places)?)
}

fn search(config: &Config) -> SearchPath {
    SearchPath::standard(config.settings.stage_path.as_deref().unwrap_or_default())
}

/// Where journals are.
fn state_dir(args: &Args, config: &Config) -> PathBuf {
    let given = args.common.state_dir.as_ref();
    let given = given.or(config.settings.state_dir.as_ref());
    given.cloned().unwrap_or_else(StateDir::default_path)
}

/// Says on stderr what went wrong.
pub fn complain(failure: &Failure, form: LogFormat) {
    log::complain(failure, form);
}
