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
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use memcr_plugin_api::stage::Image;
use serde::Serialize;

use crate::pages::{ChunkClass, PageRun, PopulatePages};
use crate::pipeline::bench::{Bench, Common};
use crate::pipeline::calls::{What, Who};
use crate::pipeline::chain::Workers;
use crate::pipeline::crew::{Crew, Halt, Stop, Turnstile, answer, guard};
use crate::pipeline::foreman::Foreman;
use crate::pipeline::links::Chain;
use crate::pipeline::open::chain_image_error;
use crate::pipeline::shift::turnstiles;
use crate::pipeline::{Cancel, PipelineError, Place, Priority, Progress, Result, bench};
use crate::sink::frame::IndexEntry;
use crate::sink::{ImageError, ImageReader, IndexCursor};

/// What a decoder needs.
pub struct DecodeSetup {
    /// Destination of the pages.
    pub populate: Arc<dyn PopulatePages + Send + Sync>,
    /// Number of workers; `None`: as the pipeline was asked for.
    pub workers: Option<NonZeroUsize>,
    /// Of the workers.
    pub priority: Priority,
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
pub(super) struct Shift {
    chain: Arc<Chain>,
    common: Common,
    reader: Arc<ImageReader>,
    image: Image,
    populate: Arc<dyn PopulatePages + Send + Sync>,
    progress: Arc<Progress>,
    stop: Arc<Stop>,
    target: Who,
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
    pub(super) fn start(
        foreman: Arc<Foreman>,
        shift: Shift,
        n_workers: usize,
        priority: Priority,
    ) -> Result<Self> {
        let shift = Arc::new(shift);
        let (orders, inboxes): (Vec<_>, Vec<_>) =
            (0..n_workers).map(|_| mpsc::channel::<Arc<Pass>>()).unzip();
        let inboxes: Mutex<Vec<_>> = Mutex::new(inboxes.into_iter().map(Some).collect());
        let (report, done) = mpsc::channel();
        let (tools, work) = (Arc::clone(&shift), Arc::clone(&shift));
        let crew = Crew::start(
            n_workers,
            priority,
            &shift.stop,
            move || {
                Bench::new(
                    &tools.chain,
                    &tools.common,
                    tools.reader.max_chunk_bytes(),
                    &turnstiles(&tools.chain),
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

    /// Number of its workers.
    #[must_use]
    pub fn n_workers(&self) -> usize {
        self.orders.len()
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
            turnstiles: turnstiles(&self.shift.chain),
            stats: Mutex::new(DecodeStats::default()),
        });
        let sent = self
            .orders
            .iter()
            .filter(|order| order.send(Arc::clone(&pass)).is_ok())
            .count();
        let stop = &self.shift.stop;
        let ended = (0..sent).map_while(|_| answer(&self.done, stop)).count();
        if ended < sent {
            stop.calls().leave();
        }
        stop.check().or_else(|_| stop.take())?;
        if ended < self.orders.len() {
            return Err(PipelineError::Panicked(
                "a worker ended before the pass did".into(),
            ));
        }
        let stats = *guard(&pass.stats);
        self.total.add(&stats);
        Ok(stats)
    }

    /// Checks that every chunk was populated, and the trailers of all stages, which an image
    /// that was never finished does not have. Answers the sum of all passes.
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
        if !shift.reader.is_part() {
            self.foreman
                .run(move |_| shift.chain.finish_decode(n_chunks, shift.reader.trailers()))?;
        }
        Ok(total)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.orders.clear();
        if let Some(crew) = self.crew.take() {
            crew.leave(&self.shift.stop);
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
        // The reader checked that indices are below the number of bits.
        guard(&self.populated).get_mut(word).is_some_and(|word| {
            let first = *word & bit == 0;
            *word |= bit;
            first
        })
    }

    /// Writes into the target, unless the work was stopped.
    ///
    /// The order matters: first the call is known, then comes the look. A thread that was
    /// left behind in a stage may come back at any time, when another try is under way
    /// or the target runs again. Either the stop is seen here, or whoever stopped the
    /// work has seen this call, and nobody tries again before it is back.
    fn populate(
        &self,
        entry: &IndexEntry,
        runs: &[PageRun],
        bytes: &[u8],
    ) -> std::result::Result<(), Halt> {
        let Some(&first) = runs.first() else {
            return Ok(());
        };
        let calls = self.stop.calls();
        let _under_way = calls.enter(&self.target, What::chunk("populate", entry.index));
        self.stop.check()?;
        let place = || Place::Pages {
            first,
            n_runs: runs.len(),
        };
        let populated = self.populate.populate(entry.class, runs, bytes);
        populated.map_err(|source| {
            let place = place();
            Halt::Failed(PipelineError::Populate { place, source })
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

/// On the foreman: begins the stages. Answers the shift and its number of workers.
pub(super) fn begin(
    chain: &Arc<Chain>,
    reader: ImageReader,
    setup: DecodeSetup,
    stop: Stop,
    workers: Workers,
) -> Result<(Shift, usize)> {
    chain.check_recipe(reader.recipe())?;
    let (header, footer) = (reader.header(), reader.footer());
    let common = Common::of(header);
    let image = common.image(chain, footer.raw_bytes);
    chain.begin_decode(&image, reader.recipe())?;
    let buffer_len = bench::buffer_len(chain, &common)?.max(reader.max_chunk_bytes());
    let n_workers = workers.number(chain, buffer_len);
    let shift = Shift {
        populated: Mutex::new(vec![0; reader.index_end().div_ceil(64) as usize]),
        chain: Arc::clone(chain),
        common,
        reader: Arc::new(reader),
        image,
        populate: setup.populate,
        progress: setup.progress,
        stop: Arc::new(stop),
        target: Who::other("the target"),
        sequential: chain.is_sequential(),
    };
    Ok((shift, n_workers))
}

fn place(entry: &IndexEntry) -> Place {
    Place::Chunk {
        doing: "",
        index: entry.index,
        offset: Some(entry.offset),
        address: entry.address,
    }
}
