//! What the host knows of a plugin: a copy of its table's words and numbers.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// What a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    /// Changes the bytes of frames.
    Transform,
    /// Appends a tag to frames.
    Checksum,
    /// Keeps the frames.
    Sink,
}

/// What the host may do with a plugin at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadModel {
    /// One call at a time.
    Serial,
    /// One call at a time on each handle.
    PerHandle,
    /// Any calls at once.
    Parallel,
}

/// How a plugin was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// The root module of `abi_stable`, its layout checked.
    AbiStable,
    /// The C symbol `memcr_stage_v1`.
    C,
}

/// The kind of a parameter with its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ParamType {
    /// Any text.
    String,
    /// An integer, limits included.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// Bytes, limits included.
    Size {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// One of these words.
    Choice {
        /// The words.
        choices: Vec<String>,
    },
    /// A path.
    Path,
    /// A number of an open descriptor.
    Fd,
}

/// One parameter of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParamDescription {
    /// Key in `pipeline.toml` and `--set`.
    pub name: String,
    /// Kind and limits.
    #[serde(flatten)]
    pub ty: ParamType,
    /// Value when the user gives none.
    pub default: Option<String>,
    /// The user must give a value.
    pub required: bool,
    /// Stored in the image.
    pub recorded: bool,
    /// Says where something is, not how bytes are encoded.
    #[serde(skip)]
    pub place: bool,
    /// One line of help.
    pub help: String,
}

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageDescription {
    /// Name of the stage.
    pub name: String,
    /// What it does.
    pub kind: StageKind,
    /// Its own version.
    pub version: String,
    /// ABI major and minor version it was built for.
    pub abi_version: (u16, u16),
    /// Thread model.
    pub threads: ThreadModel,
    /// Names of its capabilities (`independent-chunks`, `compresses`, …).
    pub capabilities: Vec<&'static str>,
    /// One line.
    pub summary: String,
    /// Its parameters.
    pub params: Vec<ParamDescription>,
    /// The file it was loaded from.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// How it was entered.
    pub door: Door,
    /// The bits behind `capabilities`.
    #[serde(skip)]
    pub capability_bits: u64,
}

/// One loaded stage of a pipeline, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkDescription {
    /// The word the user wrote.
    pub alias: String,
    /// Name of the stage.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it does.
    pub kind: StageKind,
    /// Names of its capabilities.
    pub capabilities: Vec<&'static str>,
    /// The file it was loaded from.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
}

/// A path need not be UTF-8, which JSON has to be.
fn shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}
