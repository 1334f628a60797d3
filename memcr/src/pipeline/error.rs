//! What can go wrong in this room.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::pages::PageRun;
use crate::pipeline::CancelReason;
use crate::sink::ImageError;
use memcr_plugin_api::stage::StageError;

/// Result of this room.
pub type Result<T> = std::result::Result<T, PipelineError>;

/// A plugin that cannot be loaded: what failed, the facts, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct LoadError {
    /// What failed, naming the plugin or its file.
    pub what: String,
    /// The facts: file, found and wanted version, searched directories.
    pub detail: String,
    /// What the user can do, or empty.
    pub hint: String,
}

/// Why a pipeline could not be built or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A plugin cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A parameter does not fit its stage.
    #[error("{what}")]
    Param {
        /// Alias of the stage.
        stage: String,
        /// Key of the parameter; who knows where it was given can say so.
        key: String,
        /// What does not fit, with the allowed alternatives.
        what: String,
        /// What the user can do, or empty.
        hint: String,
    },
    /// The stages do not fit together.
    #[error("{what}")]
    Config {
        /// What does not fit, with the allowed alternatives.
        what: String,
        /// What the user can do, or empty.
        hint: String,
    },
    /// A plugin answered a failure, or broke the rules.
    #[error("stage `{stage}`: {doing}")]
    Plugin {
        /// Alias of the stage.
        stage: String,
        /// What was asked of it.
        doing: Place,
        /// Its answer.
        source: Box<StageError>,
    },
    /// The key does not fit the image. The bytes may still be right.
    #[error("stage `{stage}`: wrong key")]
    WrongKey {
        /// Alias of the stage.
        stage: String,
        /// Its answer.
        source: Box<StageError>,
    },
    /// The sink could not take or give bytes (no room, I/O failure). Nothing is proved
    /// about bytes that it already has.
    #[error("sink `{stage}`: {doing}")]
    Sink {
        /// Alias of the sink.
        stage: String,
        /// What was asked of it.
        doing: Place,
        /// Its answer.
        source: Box<StageError>,
    },
    /// The bytes of the image are not those that were written: they are lost.
    #[error("the image is corrupt: {place}: {what}")]
    Corrupt {
        /// Where.
        place: Place,
        /// What does not fit.
        what: String,
    },
    /// The image cannot be read, but is not proved corrupt (other version, limits).
    #[error(transparent)]
    Image(ImageError),
    /// Pages of the target cannot be read.
    #[error("cannot read {place} of the target")]
    Fetch {
        /// First and last run of the chunk.
        place: Place,
        /// Why.
        source: io::Error,
    },
    /// Pages of the target cannot be written.
    #[error("cannot populate {place} of the target")]
    Populate {
        /// First run of the chunk.
        place: Place,
        /// Why.
        source: io::Error,
    },
    /// Somebody stopped the work.
    #[error("stopped: {0}")]
    Cancelled(CancelReason),
    /// A call has not come back, and nothing else has. It is left behind; until it is back
    /// nothing can be asked of this pipeline. Nothing is proved about the bytes.
    #[error("{who}: {what} has not come back for {}", seconds(.waited))]
    Stalled {
        /// Whose call it is: a stage, a sink, the target.
        who: String,
        /// The call, and its chunk.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A stage does not bring back what was given to it, although the image is as it was
    /// written. It may have got it wrong then, or now: nothing is proved about the bytes.
    #[error("{place}: {what}")]
    Lied {
        /// The chunk.
        place: Place,
        /// What does not fit, and whose doing it is.
        what: String,
    },
    /// This machine has no thread or no memory for us.
    #[error("cannot {doing}")]
    Resource {
        /// What was wanted, with its numbers.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// An image failed, and something of it stays behind. Neither is linked as a cause:
    /// the text holds both with theirs.
    #[error("{}; moreover, {}", causes(failure), causes(leftover))]
    Leftover {
        /// What failed first.
        failure: Box<PipelineError>,
        /// What stays behind, and why.
        leftover: Box<PipelineError>,
    },
    /// The pipeline stopped before; its failure was reported then.
    #[error("the pipeline has ended: {0}")]
    Ended(&'static str),
    /// A thread of the crew panicked: a defect of memcr.
    #[error("a worker of the pipeline panicked: {0}")]
    Panicked(String),
}

const STALL_HINT: &str =
    "if it only is slow: raise `stall_limit` in pipeline.toml, 0 waits for ever";
const LIE_HINT: &str = "try another version of the stage, or leave it out of the pipeline";

impl PipelineError {
    /// What the user can do, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        let hint = match self {
            Self::Load(e) => &e.hint,
            Self::Param { hint, .. } | Self::Config { hint, .. } => hint,
            Self::Plugin { source, .. }
            | Self::WrongKey { source, .. }
            | Self::Sink { source, .. } => &source.hint,
            Self::Leftover { failure, .. } => return failure.hint(),
            Self::Stalled { .. } => return Some(STALL_HINT),
            Self::Lied { .. } => return Some(LIE_HINT),
            _ => return None,
        };
        (!hint.is_empty()).then_some(hint.as_str())
    }

    /// The same failure, and what its cleanup left behind, if anything.
    pub(super) fn after(self, cleanup: Result<()>) -> Self {
        match cleanup {
            Ok(()) => self,
            Err(leftover) => Self::Leftover {
                failure: Box::new(self),
                leftover: Box::new(leftover),
            },
        }
    }

    /// The bytes of the image are provably lost: the only reason to give up a target.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Leftover { failure, .. } => failure.is_corrupt(),
            other => matches!(other, Self::Corrupt { .. }),
        }
    }
}

fn seconds(waited: &Duration) -> String {
    match waited.as_secs() {
        0 => format!("{} ms", waited.as_millis()),
        secs => format!("{secs} s"),
    }
}

/// An error and its causes, for a log line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", causes(source)),
        None => error.to_string(),
    }
}

/// A place in the work, for messages. Made only when something failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A step that concerns the whole image or handle, as a verb phrase.
    Step(&'static str),
    /// One chunk.
    Chunk {
        /// What was done to it.
        doing: &'static str,
        /// Its index in the image.
        index: u64,
        /// Where it begins in the image, bytes; `None` while encoding.
        offset: Option<u64>,
        /// Address of its first page in the target.
        address: u64,
    },
    /// A range of the image file.
    Bytes {
        /// What it holds.
        what: &'static str,
        /// Its first byte.
        offset: u64,
        /// Its length, bytes.
        len_bytes: u64,
    },
    /// Pages of the target.
    Pages {
        /// First run.
        first: PageRun,
        /// Number of runs.
        n_runs: usize,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => f.write_str(step),
            Self::Chunk {
                doing,
                index,
                offset,
                address,
            } => {
                write!(f, "{doing}chunk {index} (address {address:#x}")?;
                match offset {
                    Some(offset) => write!(f, ", offset {offset})"),
                    None => f.write_str(")"),
                }
            }
            Self::Bytes {
                what,
                offset,
                len_bytes,
            } => {
                write!(f, "{what} (offset {offset}, {len_bytes} bytes)")
            }
            Self::Pages { first, n_runs: 1 } => write!(f, "{first}"),
            Self::Pages { first, n_runs } => {
                write!(f, "{first} and {} more runs", n_runs.saturating_sub(1))
            }
        }
    }
}
