//! Encoding: chunks of pages become frames in an image.

use std::sync::Arc;

use crate::pages::{ChunkPlan, FetchPages, PageRun};
use crate::pipeline::{Cancel, OpenImage, Progress, Result};
use crate::sink::ImageMeta;

/// What an encoder needs to know before the freeze.
pub struct EncodeSetup {
    /// Pid of the target, for the name of the image.
    pub pid: u32,
    /// Page size of the target, bytes.
    pub page_size: u32,
    /// Bytes of pages expected, at most; 0: unknown.
    pub expected_len_bytes: u64,
    /// Source of the pages.
    pub fetch: Arc<dyn FetchPages + Send + Sync>,
    /// Stops the work.
    pub cancel: Cancel,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

/// An open image that takes chunks. Dropping it removes the image.
pub struct Encoder {}

impl Encoder {
    /// The image's random identity.
    #[must_use]
    pub fn image_id(&self) -> [u8; 16] {
        unimplemented!()
    }

    /// Writes who the target is and its VMA table. Once, before the first `push`.
    ///
    /// # Errors
    /// When the sink does not take it.
    pub fn begin(&mut self, _meta: &ImageMeta) -> Result<()> {
        unimplemented!()
    }

    /// Hands one chunk to the workers. Waits while they have enough to do.
    ///
    /// # Errors
    /// The first failure of any worker, as soon as it is known.
    pub fn push(&mut self, _plan: ChunkPlan) -> Result<()> {
        unimplemented!()
    }

    /// An empty vector for the runs of the next plan, with the capacity of one that the
    /// workers are done with: in steady state nothing is allocated per chunk.
    #[must_use]
    pub fn spare_runs(&mut self) -> Vec<PageRun> {
        unimplemented!()
    }

    /// Waits for the workers, finishes the image and commits it.
    ///
    /// # Errors
    /// Whatever failed; the image is gone then.
    pub fn finish(self) -> Result<OpenImage> {
        unimplemented!()
    }

    /// Stops the workers and removes the image.
    ///
    /// # Errors
    /// When something of the image stays behind; says what.
    pub fn abort(self) -> Result<()> {
        unimplemented!()
    }
}
