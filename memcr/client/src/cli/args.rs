//! The command line: every flag is defined here, once. Help and man page are made from
//! these definitions. Which flags go together is in `order`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};
use clap::{Parser, ValueEnum};
use memcr_client::{Compress, Location};

use super::exit::Exit;

/// Asks memcr's daemon to take the memory of a process away, or to give it back.
///
/// Speaks the daemon's own protocol, whose answers carry reasons. A daemon that does not
/// speak it (a C memcr) is asked again in the old one: version 2 with -d or -z, else
/// version 1.
#[derive(Debug, Parser)]
#[command(
    name = "memcr-client",
    version,
    after_long_help = Exit::help_table(),
    arg_required_else_help = true,
    override_usage = "memcr-client -l <PORT|PATH> -p <PID> -c|-r|-cr [OPTIONS]\n       \
                      memcr-client -l <PORT|PATH> --status|--list|--abort [OPTIONS]"
)]
pub(crate) struct Args {
    /// Where the daemon listens: a TCP port of this machine, or the path of a UNIX socket
    #[arg(short, long, value_name = "PORT|PATH", required_unless_present = "man", value_parser = location())]
    pub(crate) location: Option<Location>,

    /// Process to act on
    #[arg(short, long, value_name = "PID", allow_negative_numbers = true, value_parser = pid())]
    pub(crate) pid: Option<i32>,

    /// A process and all its descendants, as one
    #[arg(long, value_name = "PID", allow_negative_numbers = true, value_parser = pid())]
    pub(crate) tree: Option<i32>,

    /// All processes of a cgroup and of those below it, as one; its path begins with /
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,

    /// Take the memory away and hold the process
    #[arg(short, long)]
    pub(crate) checkpoint: bool,

    /// Give the memory back; with -c: after the checkpoint
    #[arg(short, long)]
    pub(crate) restore: bool,

    /// Stop a checkpoint that is not complete: the process runs on
    #[arg(long)]
    pub(crate) abort: bool,

    /// Tell how the daemon is; with -p: how this process is
    #[arg(long)]
    pub(crate) status: bool,

    /// List the sessions of the daemon
    #[arg(long)]
    pub(crate) list: bool,

    /// Directory for the image
    #[arg(short, long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Compress the image
    #[arg(
        short = 'z',
        long,
        value_name = "ALGORITHM",
        value_enum,
        ignore_case = true
    )]
    pub(crate) compress: Option<Compression>,

    /// A pipeline of the daemon's configuration, by its name
    #[arg(long, value_name = "NAME", conflicts_with = "compress")]
    pub(crate) pipeline: Option<String>,

    /// Let everybody else on the machine go first, for which the process stands still longer
    #[arg(long)]
    pub(crate) idle: bool,

    /// Give up after so many seconds
    ///
    /// The daemon undoes a checkpoint that is not complete by then; a restore goes on. A
    /// daemon that speaks only the old protocol cannot be told, and goes on with both.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// Speak version 1 of the old protocol
    #[arg(short = 'v', long, conflicts_with = "v2")]
    pub(crate) v1: bool,

    /// Speak version 2 of the old protocol
    #[arg(long)]
    pub(crate) v2: bool,

    /// Print the answer as a JSON object instead of text, one for each procedure
    #[arg(long)]
    pub(crate) json: bool,

    /// Print the man page
    #[arg(long, hide = true, exclusive = true)]
    pub(crate) man: bool,
}

/// Values of `-z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// Fast
    Lz4,
    /// Smaller
    Zstd,
    /// Not at all
    None,
}

impl From<Compression> for Compress {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
            Compression::None => Self::None,
        }
    }
}

fn location() -> ValueParser {
    let parse = |word: OsString| Location::parse(&word);
    ValueParser::new(OsStringValueParser::new().try_map(parse))
}

fn pid() -> ValueParser {
    clap::value_parser!(i32).range(1..).into()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| String::from("not a number of seconds"))?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if time.is_zero() => Err("must be more than 0".into()),
        Ok(time) => Ok(time),
        Err(_) => Err("not a length of time".into()),
    }
}
