//! What an image says of itself, without any plugin.

use std::path::Path;

use serde::Serialize;

use crate::sink::ImageError;

/// Totals and lengths of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageFacts {
    /// Random identity, 32 hex digits.
    pub image_id: String,
    /// Format version.
    pub version: (u16, u16),
    /// Architecture of the target (ELF `e_machine`).
    pub arch: u16,
    /// Page size, bytes.
    pub page_size: u32,
    /// Longest chunk, bytes.
    pub chunk_len_bytes: u64,
    /// Number of chunks.
    pub n_chunks: u64,
    /// Pages whose bytes are stored.
    pub n_pages: u64,
    /// Pages of zeros, which are not.
    pub n_zero_pages: u64,
    /// Bytes of the stored pages before the first stage.
    pub raw_bytes: u64,
    /// Bytes of all frames behind the last stage.
    pub stored_bytes: u64,
    /// Length of the image, bytes.
    pub image_bytes: u64,
    /// Number of VMAs.
    pub n_vmas: u64,
    /// Unix time of the image, seconds.
    pub created: u64,
}

/// One stage in the image's description of its pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageSummary {
    /// The word the user wrote.
    pub alias: String,
    /// Name of the stage.
    pub name: String,
    /// Version of the plugin that wrote it.
    pub version: String,
    /// Recorded parameters.
    pub params: Vec<(String, String)>,
}

/// Everything an image says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageSummary {
    /// Totals and lengths.
    pub facts: ImageFacts,
    /// Stages in encode order.
    pub pipeline: Vec<StageSummary>,
    /// Pid of the target.
    pub pid: u32,
    /// Start time of the target, clock ticks since boot.
    pub start_time: u64,
    /// Boot id.
    pub boot_id: String,
    /// Name of the target, lossy UTF-8.
    pub comm: String,
    /// Executable of the target, lossy UTF-8.
    pub exe: String,
    /// Mappings as lines of `maps`, lossy UTF-8.
    pub vmas: Vec<String>,
    /// raw bytes over stored bytes; 0 when nothing is stored.
    pub ratio: f64,
}

/// Reads an image file's head, tables and footer.
///
/// # Errors
/// When it is none, is corrupt, or cannot be read.
pub fn inspect(_path: &Path) -> Result<ImageSummary, ImageError> {
    unimplemented!()
}
