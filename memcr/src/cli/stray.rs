//! Which flags go with which command. A flag that would change nothing is refused:
//! who gave it expected something of it.

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;

use super::args::{self, Args, Verb};
use super::compat;

/// What is being done, as far as flags are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Job,
    Daemon,
    Checkpoint,
    Restore,
    Recover,
    List,
    CheckConfig,
    Stages,
    StageHelp,
    Inspect,
    Verify,
    Check,
    Print,
}

/// Flags in the order of `--help`, and the modes in which each means something. Flags
/// that are not listed (`-v`, `-q`, `--config`'s own mode flags) go with everything.
const MEANINGFUL: &[(&str, &[Mode])] = {
    use Mode::{
        Check, CheckConfig, Checkpoint, Daemon, Inspect, Job, List, Recover, Restore, StageHelp,
        Stages, Verify,
    };
    &[
        ("pid", &[Job]),
        ("listen", &[Daemon]),
        ("listen_gid", &[Daemon]),
        ("dir", &[Job, Daemon, Checkpoint, CheckConfig]),
        // The daemon waits for no Enter: it means there what happens anyway.
        ("no_wait", &[Job, Daemon]),
        ("proc_mem", &[Job, Daemon, Checkpoint]),
        ("rss_file", &[Job, Daemon, Checkpoint]),
        ("compress", &[Job, Daemon, Checkpoint, CheckConfig]),
        ("checksum", &[Job, Daemon, Checkpoint, CheckConfig]),
        ("encrypt", &[Job, Daemon, Checkpoint, CheckConfig]),
        ("pipeline", &[Job, Daemon, Checkpoint, CheckConfig]),
        (
            "workers",
            &[
                Job,
                Daemon,
                Checkpoint,
                Restore,
                Recover,
                CheckConfig,
                Verify,
            ],
        ),
        ("verify", &[Job, Daemon, Checkpoint]),
        ("idle", &[Job, Daemon, Checkpoint]),
        ("timeout", &[Job, Daemon, Checkpoint]),
        ("on_corrupt", &[Job, Daemon, Checkpoint, Restore, Recover]),
        ("check_config", &[CheckConfig]),
        ("stages", &[Stages]),
        ("stage_help", &[StageHelp]),
        ("parasite_socket_dir", &[Job, Daemon]),
        ("parasite_socket_gid", &[Job, Daemon]),
        ("parasite_socket_netns", &[Job, Daemon]),
        (
            "config",
            &[
                Job,
                Daemon,
                Checkpoint,
                Restore,
                Recover,
                List,
                CheckConfig,
                Stages,
                StageHelp,
                Verify,
            ],
        ),
        (
            "set",
            &[
                Job,
                Daemon,
                Checkpoint,
                Restore,
                Recover,
                CheckConfig,
                Verify,
            ],
        ),
        (
            "state_dir",
            &[Job, Daemon, Checkpoint, Restore, Recover, List],
        ),
        (
            "json",
            &[
                Job,
                Checkpoint,
                Restore,
                Recover,
                List,
                CheckConfig,
                Stages,
                StageHelp,
                Inspect,
                Verify,
                Check,
            ],
        ),
    ]
};

/// Refuses flags that mean nothing for the command given, and a command line that says
/// neither a verb nor a target.
///
/// # Errors
/// The usage error to print.
pub(super) fn check(args: &Args, matches: &ArgMatches) -> Result<(), clap::Error> {
    let mode = mode(args);
    if mode == Mode::Job && args.job.pid.is_none() {
        return Err(usage(
            ErrorKind::MissingRequiredArgument,
            "a target is missing: give --pid <PID>, --listen <PORT|PATH>, or a command",
        ));
    }
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    if given("pipeline") {
        one_way_to_say_it(given)?;
    }
    match MEANINGFUL
        .iter()
        .find(|(id, modes)| given(id) && !modes.contains(&mode))
    {
        None => Ok(()),
        Some((id, _)) => {
            let flag = id.replace('_', "-");
            Err(usage(
                ErrorKind::ArgumentConflict,
                &format!("--{flag} means nothing with {}", name(args, mode)),
            ))
        }
    }
}

/// A bare number is taken for a command, and there is none of that name: what was meant
/// is a target.
pub(super) fn name_the_flag(error: clap::Error) -> clap::Error {
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) if compat::pid(word).is_ok() => usage(
            ErrorKind::InvalidSubcommand,
            &format!("there is no command `{word}`; to checkpoint process {word}: memcr -p {word}"),
        ),
        _ => error,
    }
}

/// `-z`, `-c` and `-e` make a pipeline: beside `--pipeline` it would be anybody's guess
/// where their stages go.
fn one_way_to_say_it(given: impl Fn(&str) -> bool) -> Result<(), clap::Error> {
    let flags = [
        ("compress", "lz4"),
        ("checksum", "md5"),
        ("encrypt", "encrypt"),
    ];
    match flags.into_iter().find(|(id, _)| given(id)) {
        None => Ok(()),
        Some((id, stage)) => Err(usage(
            ErrorKind::ArgumentConflict,
            &format!(
                "--{id} cannot be used with --pipeline, which says by itself which stages there are, \
                 in which order: put `{stage}` into it"
            ),
        )),
    }
}

/// Whether the flag `id` means something with the command `verb`.
pub(super) fn means_something(verb: &str, id: &str) -> bool {
    let mode = match verb {
        "checkpoint" => Mode::Checkpoint,
        "daemon" => Mode::Daemon,
        "restore" => Mode::Restore,
        "recover" => Mode::Recover,
        "list" => Mode::List,
        "inspect" => Mode::Inspect,
        "verify" => Mode::Verify,
        "check" => Mode::Check,
        "stages" => Mode::Stages,
        _ => Mode::Print,
    };
    let listed = MEANINGFUL.iter().find(|(known, _)| *known == id);
    listed.is_none_or(|(_, modes)| modes.contains(&mode))
}

fn mode(args: &Args) -> Mode {
    match &args.verb {
        Some(Verb::Checkpoint(_)) => Mode::Checkpoint,
        Some(Verb::Restore(_)) => Mode::Restore,
        Some(Verb::Daemon) => Mode::Daemon,
        Some(Verb::Recover { .. }) => Mode::Recover,
        Some(Verb::List) => Mode::List,
        Some(Verb::Inspect { .. }) => Mode::Inspect,
        Some(Verb::Verify { .. }) => Mode::Verify,
        Some(Verb::Check) => Mode::Check,
        Some(Verb::Stages) => Mode::Stages,
        Some(Verb::Completions { .. } | Verb::Man { .. }) => Mode::Print,
        None if !args.job.listen.is_empty() => Mode::Daemon,
        None if args.job.stages => Mode::Stages,
        None if args.job.check_config => Mode::CheckConfig,
        None if args.job.stage_help.is_some() => Mode::StageHelp,
        None => Mode::Job,
    }
}

fn name(args: &Args, mode: Mode) -> &'static str {
    match (&args.verb, mode) {
        (None, Mode::Stages) => "--stages",
        (None, Mode::CheckConfig) => "--check-config",
        (None, Mode::StageHelp) => "--stage-help",
        (Some(Verb::Checkpoint(_)), _) => "`checkpoint`",
        (Some(Verb::Restore(_)), _) => "`restore`",
        (Some(Verb::Daemon), _) => "`daemon`",
        (None, Mode::Daemon) => "--listen",
        (Some(Verb::Recover { .. }), _) => "`recover`",
        (Some(Verb::List), _) => "`list`",
        (Some(Verb::Inspect { .. }), _) => "`inspect`",
        (Some(Verb::Verify { .. }), _) => "`verify`",
        (Some(Verb::Check), _) => "`check`",
        (Some(Verb::Stages), _) => "`stages`",
        (Some(Verb::Completions { .. }), _) => "`completions`",
        (Some(Verb::Man { .. }), _) => "`man`",
        (None, _) => "--pid",
    }
}

fn usage(kind: ErrorKind, message: &str) -> clap::Error {
    args::command().error(kind, message)
}

#[cfg(test)]
mod tests {
    use super::MEANINGFUL;
    use crate::cli::args;

    #[test]
    fn every_flag_is_listed() {
        let free = ["verbose", "quiet", "log_format", "help", "version"];
        for arg in args::command().get_arguments() {
            let id = arg.get_id().as_str();
            assert!(
                free.contains(&id) || MEANINGFUL.iter().any(|(known, _)| *known == id),
                "{id} is not listed"
            );
        }
    }
}
