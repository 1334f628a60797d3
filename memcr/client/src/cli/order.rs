//! From flags to what is to be done, and which flags go together.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap::error::ErrorKind;
use memcr_client::{Ask, Choice, Command, Compress, Location, Subject};
use memcr_wire::legacy::{LegacyRequest, Version};

use super::args::Args;

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) location: Location,
    pub(crate) job: Job,
    pub(crate) subject: Option<Subject>,
    pub(crate) speaks: Speaks,
    pub(crate) json: bool,
    pub(crate) timeout: Option<Duration>,
    choice: Choice,
    /// The directory as the user gave it: to an old daemon it goes so.
    dir: Option<PathBuf>,
}

/// One of the three kinds of things that can be asked for.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// What the old protocol knows too.
    Procedures(Vec<Command>),
    /// What only our own knows.
    Ask(Ask),
}

/// In which protocol the daemon is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Our own; should the daemon not know it, what it does know.
    Own,
    /// This one of the old ones.
    Old(Version),
}

impl Order {
    /// What `args` order, after [`check`].
    pub(crate) fn new(args: &Args) -> Result<Self, clap::Error> {
        let Some(location) = args.location.clone() else {
            return Err(wrong(ErrorKind::MissingRequiredArgument, "-l is missing"));
        };
        let subject = subject(args);
        let dir = args.dir.as_ref();
        let absolute = dir.map(std::path::absolute).transpose();
        let absolute = absolute
            .map_err(|error| wrong(ErrorKind::Io, &format!("-d cannot be resolved: {error}")))?;
        Ok(Self {
            location,
            job: job(args, subject.as_ref()),
            subject,
            speaks: speaks(args),
            json: args.json,
            timeout: args.timeout,
            choice: Choice {
                pipeline: args.pipeline.clone(),
                dir: absolute,
                compress: args.compress.map(Compress::from),
                idle: args.idle,
            },
            dir: args.dir.clone(),
        })
    }

    /// A procedure in our own protocol.
    pub(crate) fn ask(&self, command: Command) -> Option<Ask> {
        let subject = self.subject.clone()?;
        let timeout = self.timeout;
        Some(match command {
            Command::Checkpoint => Ask::Checkpoint {
                subject,
                choice: self.choice.clone(),
                timeout,
            },
            // Where its image is and how it is compressed is in the daemon's books.
            Command::Restore => Ask::Restore { subject, timeout },
        })
    }

    /// A procedure in the old protocol, if that can say it.
    pub(crate) fn old(&self, command: Command) -> Option<LegacyRequest> {
        let Some(Subject::Pid(pid)) = self.subject else {
            return None;
        };
        if self.choice.pipeline.is_some() || self.choice.idle {
            return None;
        }
        let has_options = self.dir.is_some() || self.choice.compress.is_some();
        let version = match self.speaks {
            Speaks::Old(version) => version,
            Speaks::Own if has_options => Version::V2,
            Speaks::Own => Version::V1,
        };
        let dir = self.dir.clone().map(OsString::from);
        Some(LegacyRequest {
            version,
            command,
            pid,
            dir: dir.map(OsString::into_vec),
            compress: self.choice.compress,
        })
    }
}

/// Refuses flags that do not go together.
pub(crate) fn check(args: &Args) -> Result<(), clap::Error> {
    if args.man {
        return Ok(());
    }
    let job = one_job(args)?;
    check_subject(args, job)?;
    check_choice(args, job)?;
    check_protocol(args, job)
}

/// `-c`, `-r` or both, or one of the others.
fn one_job(args: &Args) -> Result<&'static str, clap::Error> {
    let procedure = if args.checkpoint { "-c" } else { "-r" };
    let given = [
        (args.checkpoint || args.restore, procedure),
        (args.abort, "--abort"),
        (args.status, "--status"),
        (args.list, "--list"),
    ];
    let mut given = given.into_iter().filter(|(is_given, _)| *is_given);
    match (given.next(), given.next()) {
        (Some((_, job)), None) => Ok(job),
        (None, _) => Err(wrong(
            ErrorKind::MissingRequiredArgument,
            "nothing to do: give -c, -r or both, or one of --abort, --status and --list",
        )),
        (Some((_, one)), Some((_, other))) => Err(wrong(
            ErrorKind::ArgumentConflict,
            &format!("{one} and {other} cannot be done at the same time"),
        )),
    }
}

fn check_subject(args: &Args, job: &str) -> Result<(), clap::Error> {
    let others = [args.tree.is_some(), args.cgroup.is_some()];
    let n_others = others.into_iter().filter(|is_given| *is_given).count();
    let n_subjects = n_others + usize::from(args.pid.is_some());
    let what = match job {
        "--list" if n_subjects > 0 => "--list is about all processes: it takes none".into(),
        "--status" if n_others > 0 => {
            "--status is about one process (-p) or, without it, the daemon".into()
        }
        "--list" | "--status" => return Ok(()),
        _ if n_subjects == 1 => return Ok(()),
        _ => format!("{job} needs one of -p, --tree and --cgroup"),
    };
    let kind = match n_subjects {
        0 => ErrorKind::MissingRequiredArgument,
        _ => ErrorKind::ArgumentConflict,
    };
    Err(wrong(kind, &what))
}

/// The directory and the compression are let pass with -r alone: in version 2 of the old
/// protocol every request may have them.
fn check_choice(args: &Args, job: &str) -> Result<(), clap::Error> {
    let is_procedure = args.checkpoint || args.restore;
    for (flag, is_given, fits) in [
        ("-d", args.dir.is_some(), is_procedure),
        ("-z", args.compress.is_some(), is_procedure),
        ("--pipeline", args.pipeline.is_some(), args.checkpoint),
        ("--idle", args.idle, args.checkpoint),
    ] {
        if is_given && !fits {
            let what = format!("{flag} says how to checkpoint, and means nothing to {job}");
            return Err(wrong(ErrorKind::ArgumentConflict, &what));
        }
    }
    Ok(())
}

fn check_protocol(args: &Args, job: &str) -> Result<(), clap::Error> {
    let version = match (args.v1, args.v2) {
        (false, false) => return Ok(()),
        (true, _) => "--v1",
        (false, true) => "--v2",
    };
    let needs_v2 = args.v1 && (args.dir.is_some() || args.compress.is_some());
    if needs_v2 {
        let what = "version 1 of the protocol can say neither a directory (-d) nor a \
                    compression (-z): leave out -v, or say --v2";
        return Err(wrong(ErrorKind::ArgumentConflict, what));
    }
    let beyond = [
        (!args.checkpoint && !args.restore, job),
        (args.tree.is_some(), "--tree"),
        (args.cgroup.is_some(), "--cgroup"),
        (args.pipeline.is_some(), "--pipeline"),
        (args.idle, "--idle"),
    ];
    match beyond.into_iter().find(|(is_given, _)| *is_given) {
        None => Ok(()),
        Some((_, flag)) => Err(wrong(
            ErrorKind::ArgumentConflict,
            &format!("the old protocol ({version}) cannot say {flag}"),
        )),
    }
}

fn subject(args: &Args) -> Option<Subject> {
    let pid = args.pid.map(Subject::Pid);
    let tree = args.tree.map(Subject::Tree);
    pid.or(tree)
        .or_else(|| args.cgroup.clone().map(Subject::Cgroup))
}

fn job(args: &Args, subject: Option<&Subject>) -> Job {
    match subject {
        Some(subject) if args.abort => Job::Ask(Ask::Abort {
            subject: subject.clone(),
        }),
        _ if args.status => Job::Ask(Ask::Status { pid: args.pid }),
        _ if args.list => Job::Ask(Ask::List),
        _ => {
            let wanted = [
                (args.checkpoint, Command::Checkpoint),
                (args.restore, Command::Restore),
            ];
            let wanted = wanted.into_iter().filter(|(is_wanted, _)| *is_wanted);
            Job::Procedures(wanted.map(|(_, command)| command).collect())
        }
    }
}

fn speaks(args: &Args) -> Speaks {
    match (args.v1, args.v2) {
        (true, _) => Speaks::Old(Version::V1),
        (_, true) => Speaks::Old(Version::V2),
        _ => Speaks::Own,
    }
}

fn wrong(kind: ErrorKind, what: &str) -> clap::Error {
    Args::command().error(kind, what)
}
