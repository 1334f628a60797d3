//! Decoding: frames of an image become pages again.
//!
//! ```text
//!              ┌─ entry ─ worker 1: read, CRC, head, stage⁻¹, stage⁻¹, populate
//! IndexCursor ─┼─ entry ─ worker 2: …
//!              └─ …
//! OpenImage ─prepare_decode─▶ Decoder ─pass(select)─▶ stats ─pass(select)─▶ stats ─finish─▶ totals
//! ```
//!
//! A pass populates the chunks of the classes it selects. Where all stages take chunks
//! in any order, the others are not even read. Where one wants them in order, each pass
//! decodes them all and populates the selected ones.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use memcr_plugin_api::stage::Image;
use serde::Serialize;

use crate::pages::{ChunkClass, PageRun, PopulatePages};
use crate::pipeline::bench::{Bench, Common};
use crate::pipeline::chain::{Blueprint, Workers};
use crate::pipeline::crew::{Crew, Halt, Stop, Turnstile, guard};
use crate::pipeline::foreman::Foreman;
use crate::pipeline::links::{Chain, SinkStore, sink_error};
use crate::pipeline::{
    Cancel, LinkDescription, PipelineError, Place, Progress, Result, bench, encode,
};
use crate::sink::frame::IndexEntry;
use crate::sink::layout::{Footer, Header, Seed};
use crate::sink::{
    ImageError, ImageFacts, ImageMeta, ImageReader, IndexCursor, ReadImage, TargetIdentity, facts,
};

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

impl DecodeStats {
    fn add(&mut self, other: &Self) {
        self.n_chunks += other.n_chunks;
        self.n_pages += other.n_pages;
        self.n_zero_pages += other.n_zero_pages;
        self.raw_bytes += other.raw_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}

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
}

impl OpenImage {
    /// An image that was just committed.
    pub(super) fn written(
        foreman: Arc<Foreman>,
        blueprint: Blueprint,
        header: &Header,
        footer: Footer,
        target: TargetIdentity,
        n_vmas: u64,
    ) -> Self {
        let facts = facts(header, &footer, n_vmas);
        Self {
            foreman,
            blueprint,
            source: Source::Sink,
            facts,
            target,
            footer,
        }
    }

    /// Reads the image of a sink that was opened, or of a file.
    pub(super) fn open(
        foreman: Arc<Foreman>,
        blueprint: Blueprint,
        source: Source,
    ) -> Result<Self> {
        let from = source.clone();
        let (facts, target, footer) = foreman.with_chain(move |chain| {
            let reader = read(chain, &from)?;
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
        })
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
        self.foreman.with_chain(|chain| {
            let sink = chain.sink()?;
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
        let (source, footer) = (self.source.clone(), self.footer);
        self.foreman.with_chain(move |chain| {
            let reader = read_again(chain, &source, &footer)?;
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
        let (source, footer) = (self.source.clone(), self.footer);
        let workers = Workers(setup.workers.or(self.blueprint.workers.0));
        let (shift, n_workers) = self.foreman.with_chain(move |chain| {
            let reader = read_again(chain, &source, &footer)?;
            Shift::begin(chain, reader, setup, workers)
        })?;
        Decoder::start(Arc::clone(&self.foreman), shift, n_workers)
    }

    /// Decodes every chunk into nothing and checks every digest and total.
    ///
    /// # Errors
    /// As [`OpenImage::prepare_decode`] and [`Decoder::pass`].
    pub fn verify(&self, cancel: Cancel, progress: Arc<Progress>) -> Result<DecodeStats> {
        self.read_meta()?;
        let setup = DecodeSetup {
            populate: Arc::new(Nowhere),
            workers: None,
            cancel,
            progress,
        };
        let mut decoder = self.prepare_decode(setup)?;
        decoder.pass(|_| true)?;
        decoder.finish()
    }

    /// Removes the image. Nothing of it stays behind.
    ///
    /// # Errors
    /// When something stays behind; says what.
    pub fn remove(self) -> Result<()> {
        if let Source::Elsewhere(_, Some(path)) = &self.source {
            let source = |e| memcr_plugin_api::stage::StageError::io(path.display(), &e);
            return std::fs::remove_file(path)
                .map_err(|e| sink_error("file", "cannot remove the image", source(e)));
        }
        self.foreman.with_chain(|chain| {
            let sink = chain.sink()?;
            sink.handle
                .sink_remove()
                .map_err(|e| sink_error(&sink.alias, "cannot remove the image", e))
        })
    }
}

/// Decodes the chunks of an open image, in one or more passes.
pub struct Decoder {
    // Dropped in this order: the foreman ends last, with the last reference to the handles.
    orders: Vec<mpsc::Sender<Arc<Pass>>>,
    done: mpsc::Receiver<()>,
    shift: Arc<Shift>,
    crew: Option<Crew>,
    foreman: Arc<Foreman>,
    n_passes: u64,
    total: DecodeStats,
}

/// What the workers share for all passes.
struct Shift {
    chain: Arc<Chain>,
    common: Common,
    reader: Arc<ImageReader>,
    image: Image,
    populate: Arc<dyn PopulatePages + Send + Sync>,
    progress: Arc<Progress>,
    stop: Arc<Stop>,
    /// One bit for each chunk that was populated.
    populated: Mutex<Vec<u64>>,
    /// Some stage wants its chunks in order.
    sequential: bool,
}

/// One pass over the index.
struct Pass {
    select: Box<dyn Fn(ChunkClass) -> bool + Send + Sync>,
    /// The cursor, and how many entries it handed out.
    cursor: Mutex<(IndexCursor, u64)>,
    turnstiles: Arc<[Option<Turnstile>]>,
    stats: Mutex<DecodeStats>,
}

impl Decoder {
    fn start(foreman: Arc<Foreman>, shift: Shift, n_workers: usize) -> Result<Self> {
        let shift = Arc::new(shift);
        let (orders, inboxes): (Vec<_>, Vec<_>) =
            (0..n_workers).map(|_| mpsc::channel::<Arc<Pass>>()).unzip();
        let inboxes: Mutex<Vec<_>> = Mutex::new(inboxes.into_iter().map(Some).collect());
        let (report, done) = mpsc::channel();
        let (tools, work) = (Arc::clone(&shift), Arc::clone(&shift));
        let crew = Crew::start(
            n_workers,
            &shift.stop,
            move || {
                Bench::new(
                    &tools.chain,
                    &tools.common,
                    tools.reader.max_chunk_bytes(),
                    &encode::turnstiles(&tools.chain),
                )
            },
            move |number, mut bench| {
                let inbox = guard(&inboxes).get_mut(number).and_then(Option::take);
                for pass in inbox.iter().flatten() {
                    let _end = EndOfPass(&report);
                    let ended = work.work(&mut bench, &pass);
                    // Whoever waits for the pass looks into `stop`.
                    let _ = work.stop.note(ended);
                }
            },
        )?;
        Ok(Self {
            orders,
            done,
            shift,
            crew: Some(crew),
            foreman,
            n_passes: 0,
            total: DecodeStats::default(),
        })
    }

    /// Decodes and populates every chunk whose class `select` chooses and that no pass
    /// before populated.
    ///
    /// # Errors
    /// The first failure of any worker.
    pub fn pass(
        &mut self,
        select: impl Fn(ChunkClass) -> bool + Send + Sync + 'static,
    ) -> Result<DecodeStats> {
        let shift = Arc::clone(&self.shift);
        if shift.sequential && self.n_passes > 0 {
            self.foreman.run(move |_| {
                shift
                    .chain
                    .begin_decode(&shift.image, shift.reader.recipe())
            })?;
        }
        self.n_passes += 1;
        let pass = Arc::new(Pass {
            select: Box::new(select),
            cursor: Mutex::new((IndexCursor::new(Arc::clone(&self.shift.reader)), 0)),
            turnstiles: encode::turnstiles(&self.shift.chain),
            stats: Mutex::new(DecodeStats::default()),
        });
        let sent = self
            .orders
            .iter()
            .filter(|order| order.send(Arc::clone(&pass)).is_ok())
            .count();
        let ended = self.done.iter().take(sent).count();
        self.shift
            .stop
            .check()
            .or_else(|_| self.shift.stop.take())?;
        if ended < self.orders.len() {
            return Err(PipelineError::Panicked(
                "a worker ended before the pass did".into(),
            ));
        }
        let stats = *guard(&pass.stats);
        self.total.add(&stats);
        Ok(stats)
    }

    /// Checks that every chunk was populated, and the trailers of all stages. Answers
    /// the sum of all passes.
    ///
    /// # Errors
    /// [`PipelineError::Corrupt`] when a trailer does not fit.
    pub fn finish(self) -> Result<DecodeStats> {
        let (total, shift) = (self.total, Arc::clone(&self.shift));
        let n_chunks = shift.reader.footer().n_chunks;
        if total.n_chunks != n_chunks {
            let what = format!(
                "{} of {n_chunks} chunks were populated when the end was to be checked",
                total.n_chunks
            );
            return Err(PipelineError::Config {
                what,
                hint: String::new(),
            });
        }
        self.foreman
            .run(move |_| shift.chain.finish_decode(n_chunks, shift.reader.trailers()))?;
        Ok(total)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.orders.clear();
        if let Some(crew) = self.crew.take() {
            crew.join();
        }
    }
}

/// Reports the end of a worker's part of a pass, also when it panics.
struct EndOfPass<'a>(&'a mpsc::Sender<()>);

impl Drop for EndOfPass<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Shift {
    /// On the foreman: begins the stages. Answers the shift and its number of workers.
    fn begin(
        chain: &Arc<Chain>,
        reader: ImageReader,
        setup: DecodeSetup,
        workers: Workers,
    ) -> Result<(Self, usize)> {
        chain.check_recipe(reader.recipe())?;
        let (header, footer) = (reader.header(), reader.footer());
        let common = Common {
            image_id: header.image_id,
            seed: Seed::new(&header.image_id),
            page_size: header.page_size,
            chunk_len: header.chunk_len,
        };
        let image = Image {
            page_size: header.page_size,
            id: header.image_id,
            max_chunk_len: u64::from(header.chunk_len) + chain.seal_len() as u64,
            expected_len: footer.raw_bytes,
        };
        chain.begin_decode(&image, reader.recipe())?;
        let buffer_len = bench::buffer_len(chain, &common)?.max(reader.max_chunk_bytes());
        let n_workers = workers.number(chain, buffer_len);
        let shift = Self {
            populated: Mutex::new(vec![0; footer.n_chunks.div_ceil(64) as usize]),
            chain: Arc::clone(chain),
            common,
            reader: Arc::new(reader),
            image,
            populate: setup.populate,
            progress: setup.progress,
            stop: Arc::new(Stop::new(setup.cancel)),
            sequential: chain.is_sequential(),
        };
        Ok((shift, n_workers))
    }

    /// One worker's part of a pass.
    fn work(&self, bench: &mut Bench, pass: &Pass) -> std::result::Result<(), Halt> {
        bench.take_turns(&pass.turnstiles);
        let mut stats = DecodeStats::default();
        while let Some((entry, turn)) = self.next(pass)? {
            let wanted = (pass.select)(entry.class) && self.claim(entry.index);
            if !wanted && !self.sequential {
                continue;
            }
            let (runs, bytes) =
                bench.decode(&self.reader, &entry, turn, &self.stop, &|e, entry| {
                    self.image_error(e, entry)
                })?;
            if wanted {
                self.populate(&entry, runs, bytes)?;
                stats.add(&self.count(&entry));
            }
        }
        guard(&pass.stats).add(&stats);
        Ok(())
    }

    /// The next entry and its turn. Stages that want order want that of the indices,
    /// in which the file was then written.
    fn next(&self, pass: &Pass) -> std::result::Result<Option<(IndexEntry, u64)>, Halt> {
        self.stop.check()?;
        let mut cursor = guard(&pass.cursor);
        let next = cursor
            .0
            .next()
            .map_err(|e| chain_image_error(&self.chain, e))?;
        let turn = cursor.1;
        cursor.1 += 1;
        match next {
            Some(entry) if self.sequential && entry.index != turn => {
                Err(Halt::Failed(PipelineError::Corrupt {
                    place: place(&entry),
                    what: format!(
                        "it lies where chunk {turn} must be, which a stage needs in order"
                    ),
                }))
            }
            next => Ok(next.map(|entry| (entry, turn))),
        }
    }

    /// Marks a chunk as populated; false if it was.
    fn claim(&self, index: u64) -> bool {
        let (word, bit) = ((index / 64) as usize, 1u64 << (index % 64));
        // The reader checked that indices are below the number of chunks.
        guard(&self.populated).get_mut(word).is_some_and(|word| {
            let first = *word & bit == 0;
            *word |= bit;
            first
        })
    }

    fn populate(&self, entry: &IndexEntry, runs: &[PageRun], bytes: &[u8]) -> Result<()> {
        let Some(&first) = runs.first() else {
            return Ok(());
        };
        let place = || Place::Pages {
            first,
            n_runs: runs.len(),
        };
        let populated = self.populate.populate(entry.class, runs, bytes);
        populated.map_err(|source| PipelineError::Populate {
            place: place(),
            source,
        })
    }

    fn count(&self, entry: &IndexEntry) -> DecodeStats {
        let (raw, stored) = (u64::from(entry.raw_len), u64::from(entry.len));
        let zero = u64::from(entry.n_zero_pages) * u64::from(self.common.page_size);
        self.progress.add(raw + zero, zero, stored);
        DecodeStats {
            n_chunks: 1,
            n_pages: u64::from(entry.raw_len / self.common.page_size),
            n_zero_pages: u64::from(entry.n_zero_pages),
            raw_bytes: raw,
            stored_bytes: stored,
        }
    }

    fn image_error(&self, error: ImageError, entry: &IndexEntry) -> PipelineError {
        match error {
            ImageError::Corrupt { why, .. } => PipelineError::Corrupt {
                place: place(entry),
                what: why,
            },
            other => chain_image_error(&self.chain, other),
        }
    }
}

fn place(entry: &IndexEntry) -> Place {
    Place::Chunk {
        doing: "",
        index: entry.index,
        offset: Some(entry.offset),
        address: entry.address,
    }
}

/// A destination that takes everything.
struct Nowhere;

impl PopulatePages for Nowhere {
    fn populate(&self, _: ChunkClass, _: &[PageRun], _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// On the foreman: opens the image for reading.
fn read(chain: &Chain, source: &Source) -> Result<ImageReader> {
    let (store, alias, known): (Arc<dyn ReadImage>, _, _) = match source {
        Source::Sink => (
            Arc::new(SinkStore(Arc::clone(&chain.sink()?.handle))),
            chain.sink()?.alias.as_str(),
            true,
        ),
        Source::Elsewhere(source, _) => (Arc::clone(source), "file", false),
    };
    ImageReader::open(store).map_err(|e| image_error(alias, known, e))
}

/// As [`read`], and what is read must end as before: another image, or an older state
/// of this one, in its place is as wrong as a flipped bit.
fn read_again(chain: &Chain, source: &Source, footer: &Footer) -> Result<ImageReader> {
    let reader = read(chain, source)?;
    if reader.footer() != footer {
        let len_bytes = reader.footer().image_len;
        return Err(PipelineError::Corrupt {
            place: Place::Bytes {
                what: "image",
                offset: 0,
                len_bytes,
            },
            what: "it is another one than the one that was written here".into(),
        });
    }
    Ok(reader)
}

fn chain_image_error(chain: &Chain, error: ImageError) -> PipelineError {
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
