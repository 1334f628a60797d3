//! What can be wrong with a configuration, whether from a file or from flags.

use std::path::PathBuf;

use super::origin::Origin;

/// A configuration that memcr cannot work with. The target was not touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what a configuration can be.
    #[error("the configuration {} {why}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a predicate.
        why: String,
    },
    /// Something in a file is wrong.
    #[error("{origin}: {message}")]
    Entry {
        /// Where.
        origin: Origin,
        /// What.
        message: String,
    },
    /// A `--set` is wrong.
    #[error("--set {text}: {message}")]
    Set {
        /// The value of the flag.
        text: String,
        /// What.
        message: String,
    },
    /// The list of stages is wrong.
    #[error("pipeline `{pipeline}` (from {origin}): {message}")]
    Pipeline {
        /// The list.
        pipeline: String,
        /// Who said so.
        origin: Origin,
        /// What.
        message: String,
    },
}
