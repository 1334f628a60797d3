//! What an image says of itself, without any plugin.

use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::sink::error::Result;
use crate::sink::layout::{Footer, Header};
use crate::sink::{FileImage, ImageError, ImageReader, ReadImage, VmaTable};

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
    /// Bytes of all chunks in the image: frames behind the last stage, heads and runs.
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
    /// Program and version that wrote it.
    pub writer: String,
    /// Stages in encode order.
    pub pipeline: Vec<StageSummary>,
    /// Pid of the target.
    pub pid: u32,
    /// Start time of the target, clock ticks since boot.
    pub start_time: u64,
    /// Boot id, as the kernel writes it.
    pub boot_id: String,
    /// Name of the target, lossy UTF-8.
    pub comm: String,
    /// Executable of the target, lossy UTF-8.
    pub exe: String,
    /// Mappings as lines of `maps`, lossy UTF-8.
    #[serde(serialize_with = "lines")]
    pub vmas: VmaTable,
    /// Raw bytes over stored bytes; 0 when nothing is stored.
    pub ratio: f64,
}

/// Reads an image file's head, tables, index and footer. Its chunks are not read:
/// that is `verify`.
///
/// # Errors
/// When it is none, is corrupt, or cannot be read.
pub fn inspect(path: &Path) -> Result<ImageSummary> {
    let file = FileImage::open(path).map_err(ImageError::Open)?;
    inspect_source(Arc::new(file))
}

/// As [`inspect`], of an image that is somewhere else.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_source(source: Arc<dyn ReadImage>) -> Result<ImageSummary> {
    summary(&ImageReader::open(source)?)
}

/// Totals and lengths from what an image begins and ends with.
pub(crate) fn facts(header: &Header, footer: &Footer, n_vmas: u64) -> ImageFacts {
    ImageFacts {
        image_id: hex(&header.image_id),
        version: header.version,
        arch: header.arch,
        page_size: header.page_size,
        chunk_len_bytes: u64::from(header.chunk_len),
        n_chunks: footer.n_chunks,
        n_pages: footer.n_pages,
        n_zero_pages: footer.n_zero_pages,
        raw_bytes: footer.raw_bytes,
        stored_bytes: footer.stored_bytes,
        image_bytes: footer.image_len,
        n_vmas,
        created: header.created,
    }
}

fn summary(reader: &ImageReader) -> Result<ImageSummary> {
    let facts = facts(reader.header(), reader.footer(), reader.n_vmas() as u64);
    let (target, recipe) = (reader.target(), reader.recipe());
    let stages = recipe.stages.iter().map(|stage| StageSummary {
        alias: stage.alias.clone(),
        name: stage.name.clone(),
        version: stage.version.clone(),
        params: stage.params.clone(),
    });
    let ratio = if facts.stored_bytes == 0 {
        0.0
    } else {
        facts.raw_bytes as f64 / facts.stored_bytes as f64
    };
    Ok(ImageSummary {
        writer: recipe.writer.clone(),
        pipeline: stages.collect(),
        pid: target.pid,
        start_time: target.start_time,
        boot_id: uuid(&target.boot_id),
        comm: String::from_utf8_lossy(&target.comm).into_owned(),
        exe: String::from_utf8_lossy(&target.exe).into_owned(),
        vmas: reader.read_vmas()?,
        ratio,
        facts,
    })
}

/// One at a time: all of them take a multiple of the table, which anybody may have made long.
fn lines<S: Serializer>(vmas: &VmaTable, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(vmas.iter().map(|vma| vma.to_string()))
}

/// Digits of an id, as it is shown and named everywhere.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex = hex(bytes);
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
