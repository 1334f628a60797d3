//! A committed image, and reading everything of it but its chunks.
//!
//! ```text
//! committed here ──written──▶ OpenImage ──read_meta, prepare_decode──▶ read the image again,
//! found by a sink ──open────▶             verify, remove                end as before?
//! a file, a vector ──open──▶
//! ```
//!
//! What was written of an image that was never finished is opened in the same way: of it no
//! more is read than its writer had said is written, and stages have said no last words.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use memcr_plugin_api::stage::StageError;

use crate::pages::{ChunkClass, PageRun, PopulatePages};
use crate::pipeline::chain::{Blueprint, Workers};
use crate::pipeline::crew::Stop;
use crate::pipeline::decode::{self, DecodeSetup, DecodeStats, Decoder};
use crate::pipeline::error::causes;
use crate::pipeline::foreman::Foreman;
use crate::pipeline::links::{Chain, Link, SinkStore, sink_error};
use crate::pipeline::{Cancel, LinkDescription, PipelineError, Place, Priority, Progress, Result};
use crate::sink::layout::{Footer, Header};
use crate::sink::{
    ImageError, ImageFacts, ImageMeta, ImageReader, Mark, ReadImage, TargetIdentity, facts, hex,
};
use crate::sys::keyring;

/// Where an open image is read from.
#[derive(Clone)]
pub(super) enum Source {
    /// The sink of the chain.
    Sink,
    /// Something that was opened without one: a file, with its path, or a vector.
    Elsewhere(Arc<dyn ReadImage>, Option<PathBuf>),
}

/// A committed image and the pipeline that reads it. Dropping it leaves the image.
pub struct OpenImage {
    foreman: Arc<Foreman>,
    blueprint: Blueprint,
    source: Source,
    facts: ImageFacts,
    target: TargetIdentity,
    /// What must be read back: the footer that was written or first read.
    footer: Footer,
    extent: Extent,
    only_here: bool,
}

/// How much of an image there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Whole,
    /// What its writer had come to.
    Part(Mark),
}

impl OpenImage {
    /// An image that was just committed. `only_here`: no other process could read it.
    pub(super) fn written(
        foreman: Arc<Foreman>,
        blueprint: Blueprint,
        header: &Header,
        footer: Footer,
        target: TargetIdentity,
        n_vmas: u64,
        only_here: bool,
    ) -> Self {
        let facts = facts(header, &footer, n_vmas);
        Self {
            foreman,
            blueprint,
            source: Source::Sink,
            facts,
            target,
            footer,
            extent: Extent::Whole,
            only_here,
        }
    }

    /// Reads the image of a sink that was opened, or of a file.
    pub(super) fn open(
        foreman: Arc<Foreman>,
        blueprint: Blueprint,
        source: Source,
        extent: Extent,
    ) -> Result<Self> {
        let from = source.clone();
        let (facts, target, footer) = foreman.with_chain(move |chain| {
            let reader = read(chain, &from, extent)?;
            chain.check_recipe(reader.recipe())?;
            let n_vmas = reader.n_vmas() as u64;
            Ok((
                facts(reader.header(), reader.footer(), n_vmas),
                reader.target().clone(),
                *reader.footer(),
            ))
        })?;
        Ok(Self {
            foreman,
            blueprint,
            source,
            facts,
            target,
            footer,
            extent,
            only_here: false,
        })
    }

    /// The same, read by so many workers where nothing else is said; `None`: one per CPU,
    /// as far as the memory budget goes.
    #[must_use]
    pub fn with_workers(mut self, workers: Option<NonZeroUsize>) -> Self {
        self.blueprint.workers = Workers(workers);
        self
    }

    /// Its totals and lengths.
    #[must_use]
    pub fn facts(&self) -> &ImageFacts {
        &self.facts
    }

    /// Its pipeline, in encode order.
    #[must_use]
    pub fn describe(&self) -> &[LinkDescription] {
        &self.blueprint.links
    }

    /// Nobody but this process, which has made it, could read it.
    #[must_use]
    pub fn is_only_here(&self) -> bool {
        self.only_here
    }

    /// The target that the image is of.
    #[must_use]
    pub fn target(&self) -> &TargetIdentity {
        &self.target
    }

    /// What finds the image again: see [`crate::pipeline::Pipeline::open_image`]. Of an
    /// image that was opened as a file, its path.
    ///
    /// # Errors
    /// When the sink cannot tell.
    pub fn locator(&self) -> Result<String> {
        if let Source::Elsewhere(_, Some(path)) = &self.source {
            return Ok(path.display().to_string());
        }
        self.foreman.with_sink(|sink| {
            sink.handle
                .sink_locator()
                .map_err(|e| sink_error(&sink.alias, "cannot tell where the image is", e))
        })
    }

    /// Reads the target and its VMA table.
    ///
    /// # Errors
    /// As [`OpenImage::prepare_decode`].
    pub fn read_meta(&self) -> Result<ImageMeta> {
        let (source, footer, extent) = (self.source.clone(), self.footer, self.extent);
        self.foreman.with_chain(move |chain| {
            let reader = read_again(chain, &source, &footer, extent)?;
            let vmas = reader
                .read_vmas()
                .map_err(|e| chain_image_error(chain, e))?;
            Ok(ImageMeta {
                target: reader.target().clone(),
                vmas,
            })
        })
    }

    /// Opens the image for reading, checks everything but the chunks (head, tables,
    /// index, footer), starts the workers. The target is still untouched.
    ///
    /// # Errors
    /// [`PipelineError::Corrupt`], `WrongKey`, `Sink`, `Plugin`, `Resource`.
    pub fn prepare_decode(&self, setup: DecodeSetup) -> Result<Decoder> {
        let (source, footer, extent) = (self.source.clone(), self.footer, self.extent);
        let workers = Workers(setup.workers.or(self.blueprint.workers.0));
        let stop = Stop::new(setup.cancel.clone(), Arc::clone(self.foreman.calls()));
        let priority = setup.priority;
        let (shift, n_workers) = self.foreman.with_chain(move |chain| {
            let reader = read_again(chain, &source, &footer, extent)?;
            decode::begin(chain, reader, setup, stop, workers)
        })?;
        Decoder::start(Arc::clone(&self.foreman), shift, n_workers, priority)
    }

    /// Decodes every chunk into nothing and checks every digest and total.
    ///
    /// # Errors
    /// As [`OpenImage::prepare_decode`] and [`Decoder::pass`].
    pub fn verify(&self, cancel: Cancel, progress: Arc<Progress>) -> Result<DecodeStats> {
        self.verify_at(Priority::Normal, cancel, progress)
    }

    /// The same by workers that let others go first.
    ///
    /// # Errors
    /// As [`OpenImage::verify`].
    pub fn verify_at(
        &self,
        priority: Priority,
        cancel: Cancel,
        progress: Arc<Progress>,
    ) -> Result<DecodeStats> {
        self.read_meta()?;
        let setup = DecodeSetup {
            populate: Arc::new(Nowhere),
            workers: None,
            priority,
            cancel,
            progress,
        };
        let mut decoder = self.prepare_decode(setup)?;
        decoder.pass(|_| true)?;
        decoder.finish()
    }

    /// Removes the image, and the keys that its stages kept. Nothing of it stays behind.
    ///
    /// # Errors
    /// When something stays behind; says what. An image whose sink does not come back
    /// goes when it does, if this process still is there.
    pub fn remove(self) -> Result<()> {
        forget_keys(&self.footer.image_id);
        if let Source::Elsewhere(_, Some(path)) = &self.source {
            let source = |e| StageError::io(path.display(), &e);
            return std::fs::remove_file(path)
                .map_err(|e| sink_error("file", "cannot remove the image", source(e)));
        }
        remove_image(&self.foreman)
    }

    /// Removes the image because of `failure`: the same, and what stays behind.
    pub(crate) fn remove_after(self, failure: PipelineError) -> PipelineError {
        failure.after(self.remove())
    }
}

/// Takes away what stages kept in the keyring for an image that goes. What stays is told,
/// but is no failure: without its image a key opens nothing.
pub(super) fn forget_keys(image_id: &[u8; 16]) {
    if let Err(error) = keyring::forget(image_id) {
        tracing::warn!("a key of an image that is removed stays in the user keyring: {error}");
    }
}

/// Lets nothing expire that stages kept in the keyring for an image that is needed from now on.
pub(super) fn retain_keys(image_id: &[u8; 16]) -> Result<()> {
    keyring::retain(image_id).map_err(|source| PipelineError::Resource {
        doing: "keep the key of the image in the user keyring".into(),
        source,
    })
}

/// Removes the image of the foreman's sink, or leaves it to him if the sink hangs.
pub(super) fn remove_image(foreman: &Foreman) -> Result<()> {
    let removed = foreman.with_sink(remove);
    if matches!(removed, Err(PipelineError::Stalled { .. })) {
        let calls = Arc::clone(foreman.calls());
        foreman.post(move |floor| {
            // The sink has its handle to itself for this.
            calls.wait_for_sink();
            if let Err(error) = floor.sink().and_then(remove) {
                tracing::error!("an image stays behind: {}", causes(&error));
            }
        });
    }
    removed
}

/// On the foreman: removes the image of a sink.
pub(super) fn remove(sink: &Link) -> Result<()> {
    sink.handle
        .sink_remove()
        .map_err(|e| sink_error(&sink.alias, "cannot remove the image", e))
}

/// A destination that takes everything.
struct Nowhere;

impl PopulatePages for Nowhere {
    fn populate(&self, _: ChunkClass, _: &[PageRun], _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// On the foreman: opens the image for reading.
fn read(chain: &Chain, source: &Source, extent: Extent) -> Result<ImageReader> {
    let (store, alias, known): (Arc<dyn ReadImage>, _, _) = match source {
        Source::Sink => (
            Arc::new(SinkStore(Arc::clone(&chain.sink()?.handle))),
            chain.sink()?.alias.as_str(),
            true,
        ),
        Source::Elsewhere(source, _) => (Arc::clone(source), "file", false),
    };
    let opened = match extent {
        Extent::Whole => ImageReader::open(store),
        Extent::Part(mark) => ImageReader::open_part(store, mark),
    };
    opened.map_err(|e| image_error(alias, known, e))
}

/// As [`read`], and what is read must be the image that was written, and end as it did:
/// another state of it is as wrong as a flipped bit. Another image in its place proves
/// nothing about this one, which somebody may have moved.
fn read_again(
    chain: &Chain,
    source: &Source,
    footer: &Footer,
    extent: Extent,
) -> Result<ImageReader> {
    let reader = read(chain, source, extent)?;
    let found = reader.header().image_id;
    if found != footer.image_id {
        return Err(PipelineError::Image(ImageError::Another {
            found: hex(&found),
            wanted: hex(&footer.image_id),
        }));
    }
    if reader.footer() != footer {
        let len_bytes = reader.footer().image_len;
        return Err(PipelineError::Corrupt {
            place: Place::Bytes {
                what: "image",
                offset: 0,
                len_bytes,
            },
            what: "it is not as it was written here".into(),
        });
    }
    Ok(reader)
}

pub(super) fn chain_image_error(chain: &Chain, error: ImageError) -> PipelineError {
    image_error(
        chain.sink.as_ref().map_or("file", |sink| &sink.alias),
        true,
        error,
    )
}

/// `known`: the image was one of ours before, so that a broken magic or version is damage.
pub(super) fn image_error(alias: &str, known: bool, error: ImageError) -> PipelineError {
    match error {
        ImageError::Corrupt {
            what,
            offset,
            len_bytes,
            why,
        } => PipelineError::Corrupt {
            place: Place::Bytes {
                what,
                offset,
                len_bytes,
            },
            what: why,
        },
        ImageError::Io { source, .. } | ImageError::Open(source) => {
            sink_error(alias, "cannot read the image", source)
        }
        other if known => PipelineError::Corrupt {
            place: Place::Step("header"),
            what: other.to_string(),
        },
        other => PipelineError::Image(other),
    }
}
