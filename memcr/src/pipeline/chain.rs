//! A pipeline: loaded, ordered and checked stages with their handles.

use std::num::NonZeroUsize;
use std::path::Path;

use crate::pipeline::{EncodeSetup, Encoder, LinkDescription, OpenImage, Result, SearchPath};

/// Default length of a chunk, bytes: large enough to amortise a read and a frame, small
/// enough to stay in a core's L2 cache through all stages.
pub const DEFAULT_CHUNK_LEN: u64 = 256 * 1024;

/// One stage as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageSpec {
    /// The word the user wrote (alias or plugin name); messages use it.
    pub alias: String,
    /// Plugin name, or a path with a `/`.
    pub plugin: String,
    /// Parameters; a later value of a key replaces an earlier one.
    pub params: Vec<(String, String)>,
}

/// A pipeline as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineSpec {
    /// In encode order; the last one is the sink.
    pub stages: Vec<StageSpec>,
    /// Number of workers; `None`: one per CPU, as far as the memory budget goes.
    pub workers: Option<NonZeroUsize>,
    /// Longest chunk, bytes; see [`DEFAULT_CHUNK_LEN`].
    pub chunk_len_bytes: u64,
}

impl Default for PipelineSpec {
    fn default() -> Self {
        Self {
            stages: Vec::new(),
            workers: None,
            chunk_len_bytes: DEFAULT_CHUNK_LEN,
        }
    }
}

/// Loaded, ordered and checked stages with their handles. All calls into plugins are
/// made on threads of its own, never on the caller's.
pub struct Pipeline {}

impl Pipeline {
    /// Loads the plugins, checks their order and parameters, and makes their handles.
    ///
    /// # Errors
    /// [`crate::pipeline::PipelineError::Load`], `Config`, `Plugin`.
    pub fn load(_spec: &PipelineSpec, _search: &SearchPath) -> Result<Self> {
        unimplemented!()
    }

    /// Its stages, in encode order.
    #[must_use]
    pub fn describe(&self) -> &[LinkDescription] {
        unimplemented!()
    }

    /// Some stage hides the bytes from a reader of the image.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        unimplemented!()
    }

    /// What the sink stores takes RAM of this machine.
    #[must_use]
    pub fn stores_in_memory(&self) -> bool {
        unimplemented!()
    }

    /// Longest chunk, bytes.
    #[must_use]
    pub fn chunk_len_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Does everything that can fail early: opens the sink, starts the workers,
    /// allocates and touches their buffers, writes the head of the image. The target
    /// still runs.
    ///
    /// # Errors
    /// Whatever failed; nothing stays behind.
    pub fn prepare_encode(self, _setup: EncodeSetup) -> Result<Encoder> {
        unimplemented!()
    }

    /// Opens a committed image by the locator its sink answered.
    ///
    /// # Errors
    /// When the sink does not find it.
    pub fn open_image(self, _locator: &str) -> Result<OpenImage> {
        unimplemented!()
    }

    /// Opens an image file with the pipeline that it describes itself. `overrides` adds
    /// parameters that an image does not hold (keys), by alias or name of the stage, and
    /// may name another plugin file for it.
    ///
    /// # Errors
    /// [`crate::pipeline::PipelineError::Image`], `Corrupt`, `Load`, `Config`, `Plugin`.
    pub fn open_file(
        _path: &Path,
        _search: &SearchPath,
        _overrides: &[StageSpec],
    ) -> Result<OpenImage> {
        unimplemented!()
    }
}
