//! Decoding: frames of an image become pages again.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::Serialize;

use crate::pages::{ChunkClass, PopulatePages};
use crate::pipeline::{Cancel, LinkDescription, Progress, Result};
use crate::sink::{ImageFacts, ImageMeta, TargetIdentity};

/// What a decoder needs.
pub struct DecodeSetup {
    /// Destination of the pages.
    pub populate: Arc<dyn PopulatePages + Send + Sync>,
    /// Number of workers; `None`: as the pipeline was asked for.
    pub workers: Option<NonZeroUsize>,
    /// Stops the work.
    pub cancel: Cancel,
    /// Shows how far it is.
    pub progress: Arc<Progress>,
}

/// What one pass over an image moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DecodeStats {
    /// Chunks populated.
    pub n_chunks: u64,
    /// Pages populated.
    pub n_pages: u64,
    /// Pages of zeros in these chunks, which were not stored.
    pub n_zero_pages: u64,
    /// Bytes populated.
    pub raw_bytes: u64,
    /// Bytes read from the sink.
    pub stored_bytes: u64,
}

/// A committed image and the pipeline that reads it. Dropping it leaves the image.
pub struct OpenImage {}

impl OpenImage {
    /// Its totals and lengths.
    #[must_use]
    pub fn facts(&self) -> &ImageFacts {
        unimplemented!()
    }

    /// Its pipeline, in encode order.
    #[must_use]
    pub fn describe(&self) -> &[LinkDescription] {
        unimplemented!()
    }

    /// What finds the image again: see [`crate::pipeline::Pipeline::open_image`].
    ///
    /// # Errors
    /// When the sink cannot tell.
    pub fn locator(&self) -> Result<String> {
        unimplemented!()
    }

    /// The target that the image is of.
    #[must_use]
    pub fn target(&self) -> &TargetIdentity {
        unimplemented!()
    }

    /// Reads the VMA table.
    ///
    /// # Errors
    /// As [`OpenImage::prepare_decode`].
    pub fn read_meta(&self) -> Result<ImageMeta> {
        unimplemented!()
    }

    /// Opens the image for reading, checks everything but the chunks (head, tables,
    /// index, footer), starts the workers. The target is still untouched.
    ///
    /// # Errors
    /// [`crate::pipeline::PipelineError::Corrupt`], `WrongKey`, `Sink`, `Plugin`, `Resource`.
    pub fn prepare_decode(&self, _setup: DecodeSetup) -> Result<Decoder> {
        unimplemented!()
    }

    /// Decodes every chunk into nothing and checks every digest and total.
    ///
    /// # Errors
    /// As [`OpenImage::prepare_decode`] and [`Decoder::pass`].
    pub fn verify(&self, _cancel: Cancel, _progress: Arc<Progress>) -> Result<DecodeStats> {
        unimplemented!()
    }

    /// Removes the image. Nothing of it stays behind.
    ///
    /// # Errors
    /// When something stays behind; says what.
    pub fn remove(self) -> Result<()> {
        unimplemented!()
    }
}

/// Decodes the chunks of an open image, in one or more passes.
pub struct Decoder {}

impl Decoder {
    /// Decodes and populates every chunk whose class `select` chooses and that no pass
    /// before populated.
    ///
    /// # Errors
    /// The first failure of any worker.
    pub fn pass(
        &mut self,
        _select: impl Fn(ChunkClass) -> bool + Send + Sync + 'static,
    ) -> Result<DecodeStats> {
        unimplemented!()
    }

    /// Checks that every chunk was populated, and the trailers of all stages.
    ///
    /// # Errors
    /// [`crate::pipeline::PipelineError::Corrupt`] when a trailer does not fit.
    pub fn finish(self) -> Result<DecodeStats> {
        unimplemented!()
    }
}
