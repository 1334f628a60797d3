//! The command line.

use std::path::{Path, PathBuf};

use clap::Parser;
use clap::builder::ArgPredicate;

use crate::case::{Case, Sink};
use crate::shapes::Part;

/// Pipelines that are measured unless others are named.
const PIPELINES: [&str; 5] = ["plain", "lz4", "zstd", "crc32,lz4", "md5,lz4,encrypt"];
/// The same with --shapes: what moves bytes fastest, and what is used most.
const SHAPES_PIPELINES: [&str; 2] = ["plain", "lz4"];

/// Measures checkpoint and restore beside the limits of the machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "memcr-bench")]
pub(crate) struct Args {
    /// Memory of the target, MiB; with --peers 512
    #[arg(
        long,
        value_name = "MIB,...",
        value_delimiter = ',',
        default_value = "64,512,2048",
        default_value_if("peers", ArgPredicate::IsPresent, "512")
    )]
    pub(crate) sizes: Vec<u64>,

    /// Runs of everything, of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,

    /// Stages before the sink, in encode order; `plain` for none; may be repeated
    /// [default: plain lz4 zstd crc32,lz4 md5,lz4,encrypt; with --shapes: plain lz4]
    #[arg(long = "pipeline", value_name = "STAGE,...")]
    pub(crate) pipelines: Vec<String>,

    /// Where images go
    #[arg(
        long,
        value_name = "SINK,...",
        value_delimiter = ',',
        default_value = "tmpfs,file"
    )]
    pub(crate) sinks: Vec<Sink>,

    /// What the target's memory holds: heap, pointer, text, random or zero; the table of
    /// pipelines is made for each
    #[arg(
        long = "content",
        value_name = "CONTENT,...",
        value_delimiter = ',',
        default_value = "heap"
    )]
    pub(crate) contents: Vec<String>,

    /// Threads of memcr and of the limits [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) workers: Option<u16>,

    /// Directory for images of the sink file; on a disk, to mean anything
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) file_dir: PathBuf,

    /// Directory for images of the sink tmpfs [default: a tmpfs with huge pages, as memcr mounts
    /// one, which a bench that is killed leaves mounted; /dev/shm where that is not to be had]
    #[arg(long, value_name = "DIR")]
    pub(crate) tmpfs_dir: Option<PathBuf>,

    /// Measure this memcr [default: the one built with this program]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) memcr: Option<PathBuf>,

    /// Compare with another memcr, run by run, instead of with the limits
    #[arg(long, value_name = "PROGRAM", conflicts_with = "smoke")]
    pub(crate) vs: Option<PathBuf>,

    /// Measure a daemon that holds many targets: the memory that is won, the restores that
    /// clients wait for
    #[arg(long, conflicts_with_all = ["vs", "smoke"])]
    pub(crate) fleet: bool,

    /// Restores through the daemon, idle and under load, with --fleet
    #[arg(long, value_name = "N", default_value_t = 200, requires = "fleet",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) samples: u32,

    /// Checkpoint and restore N targets at once through a daemon, and one at a time; a part of
    /// --fleet
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true,
          default_missing_value = "20", conflicts_with_all = ["vs", "smoke", "fleet"],
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) crowd: Option<u16>,

    /// Measure zram and CRIU beside memcr
    #[arg(long, conflicts_with_all = ["vs", "smoke", "fleet", "crowd"])]
    pub(crate) peers: bool,

    /// The CRIU to measure, with --peers
    #[arg(long, value_name = "PROGRAM", default_value = "criu")]
    pub(crate) criu: PathBuf,

    /// Measure what the shape of a target costs: many threads, a sparse reservation, holes,
    /// thousands of mappings, sizes up to 8 GiB; beside plain memory in the same round.
    /// With `=PART,...` only these parts
    #[arg(long, value_name = "PART,...", value_delimiter = ',', require_equals = true,
          num_args = 0.., default_missing_values = ["fixed", "fragments", "sizes"],
          conflicts_with_all = ["vs", "smoke", "fleet", "crowd", "peers"])]
    pub(crate) shapes: Vec<Part>,

    /// Also write everything measured into a file, as one JSON object
    #[arg(long, value_name = "FILE", conflicts_with = "smoke")]
    pub(crate) json: Option<PathBuf>,

    /// Do not let the target check its memory after each run
    #[arg(long)]
    pub(crate) no_verify: bool,

    /// Run everything once at 16 MiB and judge only whether it works
    #[arg(long)]
    pub(crate) smoke: bool,
}

impl Args {
    /// Directory for images of the sink tmpfs.
    pub(crate) fn tmpfs_dir(&self) -> &Path {
        self.tmpfs_dir.as_deref().unwrap_or(Path::new("/dev/shm"))
    }

    /// What the target's memory holds, where only one content is measured.
    pub(crate) fn content(&self) -> &str {
        self.contents.first().map_or("heap", String::as_str)
    }

    /// The same for each content.
    pub(crate) fn by_content(&self) -> Vec<Self> {
        let only = |content: &String| Self {
            contents: vec![content.clone()],
            ..self.clone()
        };
        self.contents.iter().map(only).collect()
    }

    /// Every pipeline into every sink.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let pipelines: Vec<&str> = match &self.pipelines[..] {
            [] if !self.shapes.is_empty() => SHAPES_PIPELINES.into(),
            [] => PIPELINES.into(),
            given => given.iter().map(String::as_str).collect(),
        };
        let case = |sink| pipelines.iter().map(move |stages| Case::new(stages, sink));
        self.sinks.iter().copied().flat_map(case).collect()
    }

    /// Threads that work at once.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.map_or_else(cores, usize::from)
    }
}

/// CPUs this process may run on.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
