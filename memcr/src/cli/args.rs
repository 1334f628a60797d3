//! The command line: every flag is defined here, once.
//!
//! Help, man page and completions are made from these definitions. What a flag of the
//! C memcr means in ours is in `compat`; which flags go together with which
//! command is in `stray`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::exit::Exit;
use crate::restore;

/// Takes the memory of a live process away and gives it back.
///
/// With -p: freezes the process, sends its pages through a pipeline of stages into a
/// sink, drops them from RAM, holds the process until Enter is pressed, and gives every
/// byte back.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "memcr",
    version,
    after_long_help = Exit::help_table(),
    arg_required_else_help = true,
    disable_help_subcommand = true,
    override_usage = "memcr -p <PID> [OPTIONS]\n       memcr -l <PORT|PATH> [OPTIONS]\n       memcr <COMMAND> [OPTIONS]"
)]
pub struct Args {
    /// What is done without a verb.
    #[command(flatten)]
    pub job: Job,
    /// What several commands understand.
    #[command(flatten)]
    pub common: Common,
    /// Another command.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// The main job, and what the C memcr also did without a verb. Flags that say how to
/// checkpoint are global: `checkpoint` has them too.
#[derive(Debug, Clone, ClapArgs)]
pub struct Job {
    /// Process to checkpoint
    #[arg(short, long, value_name = "PID", allow_negative_numbers = true, value_parser = super::compat::pid,
          conflicts_with = "listen")]
    pub pid: Option<u32>,

    /// Be the daemon, for clients at this TCP port of 127.0.0.1, or at this UNIX socket;
    /// may be repeated (same as the command `daemon`)
    #[arg(global = true, short, long, value_name = "PORT|PATH", action = ArgAction::Append)]
    pub listen: Vec<OsString>,

    /// Group that owns the daemon's UNIX socket and may act on every process: name or number
    #[arg(global = true, short = 'g', long, value_name = "GID")]
    pub listen_gid: Option<String>,

    /// Directory for the image: parameter `dir` of the sink
    #[arg(global = true, short, long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Do not wait for Enter: checkpoint, then restore at once; of the daemon: without effect
    #[arg(global = true, short, long)]
    pub no_wait: bool,

    /// Read pages from /proc/PID/mem instead of with process_vm_readv
    #[arg(global = true, short = 'm', long)]
    pub proc_mem: bool,

    /// Also drop clean pages of private file mappings
    #[arg(global = true, short = 'f', long)]
    pub rss_file: bool,

    /// Compress the image
    #[arg(global = true, short = 'z', long, value_name = "ALGORITHM", value_enum, ignore_case = true,
          num_args = 0..=1, default_missing_value = "lz4")]
    pub compress: Option<Compression>,

    /// Compute and check an MD5 digest of the raw pages
    #[arg(global = true, short, long)]
    pub checksum: bool,

    /// Encrypt the image
    #[arg(global = true, short, long, value_name = "CIPHER", value_enum, ignore_case = true,
          num_args = 0..=1, default_missing_value = "aes-128-cbc")]
    pub encrypt: Option<Cipher>,

    /// Stages in encode order, the last one a sink: names, aliases or a pipeline of the configuration
    #[arg(global = true, long, value_name = "STAGE,...,SINK")]
    pub pipeline: Option<String>,

    /// Threads that encode and decode [default: one per CPU]
    #[arg(global = true, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Read the image back and decode it before anything is dropped
    #[arg(global = true, long)]
    pub verify: bool,

    /// Let everybody else on the machine go first during the checkpoint, for which the process
    /// stands still the longer; restores are as fast as ever
    #[arg(global = true, long)]
    pub idle: bool,

    /// Undo the checkpoint if it is not complete after so many seconds; of the daemon: give
    /// up every checkpoint, and answer every restore, by then
    #[arg(global = true, short = 't', long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = super::compat::seconds)]
    pub timeout: Option<std::time::Duration>,

    /// What becomes of a process whose image is damaged
    #[arg(
        global = true,
        long,
        value_name = "WHAT",
        value_enum,
        default_value = "kill"
    )]
    pub on_corrupt: OnCorrupt,

    /// Check configuration, pipeline and plugins, then end
    #[arg(long, conflicts_with = "pid")]
    pub check_config: bool,

    /// List the stages found (same as the command `stages`)
    #[arg(long, conflicts_with_all = ["pid", "check_config"])]
    pub stages: bool,

    /// Show the parameters of one stage
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["pid", "check_config", "stages"])]
    pub stage_help: Option<String>,

    /// Accepted and without effect: the channel to the target has no name
    #[arg(
        global = true,
        short = 'S',
        long,
        value_name = "DIR",
        hide_short_help = true
    )]
    pub parasite_socket_dir: Option<PathBuf>,

    /// Accepted and without effect: the channel to the target has no name
    #[arg(
        global = true,
        short = 'G',
        long,
        value_name = "GID",
        hide_short_help = true
    )]
    pub parasite_socket_gid: Option<String>,

    /// Accepted and without effect: the channel to the target has no name
    #[arg(global = true, short = 'N', long, hide_short_help = true)]
    pub parasite_socket_netns: bool,
}

/// Flags that stand before or behind a verb.
#[derive(Debug, Clone, ClapArgs)]
pub struct Common {
    /// Configuration file [default: the first pipeline.toml found]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Give a parameter of a stage a value; may be repeated
    #[arg(long, value_name = "STAGE.KEY=VALUE", global = true, action = ArgAction::Append)]
    pub set: Vec<String>,

    /// Directory with the journals of held processes [default: /run/memcr for root,
    /// $XDG_RUNTIME_DIR/memcr or /tmp/memcr-UID for others]
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,

    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,

    /// Form of the lines on stderr
    #[arg(
        long,
        value_name = "FORM",
        value_enum,
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,

    /// Say more on stderr; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

/// The commands with a name.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Take the memory of a process away and leave the process held
    ///
    /// When it returns, no process of memcr is left. The target is stopped, and would
    /// wait at its first missing page if somebody continued it.
    Checkpoint(Whom),
    /// Give a held process its memory back and let it run
    Restore(Whom),
    /// Do what clients ask for, until a signal ends it
    ///
    /// Listens where -l, or `listen` in the daemon's section of pipeline.toml, says. Each
    /// process that it holds has a process of memcr's beside it. Told to end, it leaves
    /// them held (`on_stop` says otherwise), and the next daemon takes them over.
    Daemon,
    /// Finish the sessions of a memcr that died
    ///
    /// A process whose memory was not all stored yet runs on with all of it. One whose
    /// image is complete is restored, or left held with --hold. What belongs to a process
    /// that has ended is removed. Without PID: every session that was interrupted; those
    /// that `memcr checkpoint` left held stay so, unless --all is given.
    Recover {
        /// Only the session with this process
        #[arg(value_name = "PID", allow_negative_numbers = true, value_parser = super::compat::pid)]
        target: Option<u32>,
        /// Also restore what `memcr checkpoint` left held
        #[arg(long, conflicts_with = "target")]
        all: bool,
        /// Leave held what can be held
        #[arg(long)]
        hold: bool,
    },
    /// List the processes that are held
    ///
    /// Their states: storing, dropping, held, restoring, which is how far a memcr is that
    /// works on it; held with no memcr beside it, after `memcr checkpoint`; interrupted,
    /// because its memcr died, and gone, because the process has ended: `memcr recover`
    /// finishes both; unknown and damaged, where it cannot be told.
    List,
    /// Show what an image holds: pipeline, target, mappings, totals
    Inspect {
        /// Image file
        image: PathBuf,
    },
    /// Read every byte of an image as a restore would, without touching a process
    Verify {
        /// Image file
        image: PathBuf,
    },
    /// Show which kernel features memcr finds, and what it does without each
    Check,
    /// List the stages found, and the files that are none with the reason
    Stages,
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Print the man page
    Man {
        /// Of this command instead of memcr as a whole
        verb: Option<String>,
    },
}

/// Which process, or which processes as one.
#[derive(Debug, Clone, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// This process
    #[arg(value_name = "PID", allow_negative_numbers = true, value_parser = super::compat::pid)]
    pub target: Option<u32>,

    /// This process and all its descendants, as one: at a checkpoint all are held or none, at a
    /// restore none runs before all have their memory
    #[arg(long, value_name = "PID", allow_negative_numbers = true, value_parser = super::compat::pid)]
    pub tree: Option<u32>,

    /// All processes of this cgroup and of those below it, as one: its path below
    /// /sys/fs/cgroup, with the / at its beginning
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
}

/// Values of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object in each line
    Json,
}

/// Values of `--on-corrupt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnCorrupt {
    /// It is killed: its memory is lost
    Kill,
    /// It stays held, in case the image can be repaired
    Hold,
}

impl From<OnCorrupt> for restore::OnCorrupt {
    fn from(what: OnCorrupt) -> Self {
        match what {
            OnCorrupt::Kill => Self::Kill,
            OnCorrupt::Hold => Self::Hold,
        }
    }
}

/// Values of `-z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Fast
    Lz4,
    /// Smaller
    Zstd,
}

impl Compression {
    /// The stage that does it.
    #[must_use]
    pub fn stage(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Values of `-e`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // the names say it
pub enum Cipher {
    #[value(name = "aes-128-cbc")]
    Aes128Cbc,
    #[value(name = "aes-192-cbc")]
    Aes192Cbc,
    #[value(name = "aes-256-cbc")]
    Aes256Cbc,
}

impl Cipher {
    /// Value of the parameter `cipher` of the stage `encrypt`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Cbc => "aes-128-cbc",
            Self::Aes192Cbc => "aes-192-cbc",
            Self::Aes256Cbc => "aes-256-cbc",
        }
    }
}

/// The definition as clap holds it, for parsing, help, man page and completions. The help
/// of a command shows no flag that would be refused with it.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Args::command();
    // Only then have the commands the flags that stand before or behind them.
    command.build();
    command.mut_subcommands(|verb| {
        let name = verb.get_name().to_owned();
        verb.mut_args(|arg| {
            let means_nothing = !super::stray::means_something(&name, arg.get_id().as_str());
            arg.hide(means_nothing)
        })
    })
}

/// The same for completions, which would offer hidden flags too: a command has those of
/// the global flags that mean something with it as its own, and no others.
#[must_use]
pub fn command_to_complete() -> clap::Command {
    let command = Args::command();
    let globals = command.get_arguments().filter(|arg| arg.is_global_set());
    let globals: Vec<_> = globals.map(|arg| arg.clone().global(false)).collect();
    command
        .mut_args(|arg| arg.global(false))
        .mut_subcommands(|verb| {
            let name = verb.get_name().to_owned();
            let fits =
                |arg: &&clap::Arg| super::stray::means_something(&name, arg.get_id().as_str());
            verb.args(globals.iter().filter(fits))
        })
}
