//! What the workers of an encoder share, and what each of them does.
//!
//! ```text
//! queue ─▶ fetch, stages, seal ─▶ its turn ─▶ place ─▶ write ─▶ queue
//!          (bench)                └ sinks and stages that want an order
//! ```

use std::sync::Arc;

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::StageError;

use crate::pages::FetchPages;
use crate::pipeline::bench::{self, Bench, Common};
use crate::pipeline::chain::Workers;
use crate::pipeline::crew::{Halt, Stop, Turnstile};
use crate::pipeline::links::{Chain, Link, SinkStore, sink_error};
use crate::pipeline::queue::{Job, Queue};
use crate::pipeline::{EncodeSetup, PipelineError, Progress, Result, open, orphan};
use crate::sink::frame::{CHUNK_HEAD_LEN, INDEX_ENTRY_LEN, RUN_LEN};
use crate::sink::layout::{Footer, Header, limit};
use crate::sink::{ImageMeta, ImageWriter, Mark, WriteImage};

/// Room in the sink for header, tables and footer of a target with some thousand VMAs.
const TABLES_LEN: u64 = 512 << 10;

/// Chunks that wait for each worker: more than it encodes until a caller that was woken has got
/// a CPU, all of which the workers have.
const N_AHEAD: usize = 8;
/// But no more than two for each where together they would be longer than that, bytes: what
/// waits cannot be dropped yet.
const LEN_AHEAD: usize = 8 << 20;

fn n_ahead(n_workers: usize, chunk_len: usize) -> usize {
    let most = LEN_AHEAD / chunk_len.max(1);
    (N_AHEAD * n_workers).min(most).max(2 * n_workers)
}

/// What the workers share.
pub(super) struct Shift {
    pub(super) chain: Arc<Chain>,
    pub(super) common: Common,
    fetch: Arc<dyn FetchPages + Send + Sync>,
    progress: Arc<Progress>,
    pub(super) stop: Arc<Stop>,
    pub(super) queue: Queue,
    pub(super) turnstiles: Arc<[Option<Turnstile>]>,
    /// For a sink that must be written in order, and for stages that must be read so.
    sink_turn: Option<Turnstile>,
    /// Only places are handed out in order, writes need not be.
    anywhere: bool,
    pub(super) store: SinkStore,
    writer: ImageWriter,
}

/// A shift that is about to begin.
pub(super) struct Opened {
    pub(super) shift: Arc<Shift>,
    pub(super) n_workers: usize,
    /// Why nobody but this process could read the image, if so.
    pub(super) only_here: Option<PipelineError>,
}

impl Shift {
    /// On the foreman: begins the stages, opens the sink, writes the head.
    pub(super) fn open(
        chain: &Arc<Chain>,
        setup: EncodeSetup,
        stop: Arc<Stop>,
        header: &Header,
        workers: Workers,
    ) -> Result<Opened> {
        let common = Common::of(header);
        let n_workers = workers.number(chain, bench::buffer_len(chain, &common)?);
        let frame_len = longest_frame(chain, header)?;
        let expected_len = setup.expected_len_bytes;
        let image = common.image(chain, expected_len);
        let begun = chain.begin_encode(&image)?;
        let only_here = orphan::prove(chain, &image, &begun).err();
        let new = NewImage {
            id: header.image_id,
            pid: u64::from(setup.pid),
            expected_len: sink_len(header, frame_len, expected_len),
            compressed: chain.any(capability::COMPRESSES),
            keep: setup.keep && only_here.is_none(),
        };
        let sink = chain.sink()?;
        let store = SinkStore(Arc::clone(&sink.handle));
        let recipe = chain.open_sink(begun, &new)?.encode();
        let created = ImageWriter::create(&store, header, &recipe);
        let writer = created.map_err(|e| {
            let failure = sink_error(&sink.alias, "cannot write the head of the image", e);
            failure.after(open::remove(sink))
        })?;
        // Stages that must be read in order are written in order: the order of the file
        // is that of the indices then.
        let anywhere = sink.can(capability::WRITE_ANYWHERE);
        let in_order = !anywhere || chain.is_sequential();
        let shift = Self {
            fetch: setup.fetch,
            progress: setup.progress,
            stop,
            queue: Queue::new(n_ahead(n_workers, common.chunk_len as usize)),
            turnstiles: turnstiles(chain),
            sink_turn: in_order.then(Turnstile::new),
            anywhere,
            chain: Arc::clone(chain),
            common,
            store,
            writer,
        };
        Ok(Opened {
            shift: Arc::new(shift),
            n_workers,
            only_here,
        })
    }

    /// What a worker does until the queue ends or somebody fails.
    pub(super) fn work(&self, mut bench: Bench) {
        while let Ok(Some(job)) = self.queue.pop(&self.stop) {
            let done = self.one(&mut bench, &job);
            if self.stop.note(done).is_err() {
                return;
            }
            self.queue.give_back(job.plan.runs);
        }
    }

    fn one(&self, bench: &mut Bench, job: &Job) -> std::result::Result<(), Halt> {
        let sealed = bench.encode(job, &*self.fetch, &self.stop)?;
        let (raw, stored) = (job.plan.len_bytes(), u64::from(sealed.entry.len));
        let zero = raw - u64::from(sealed.entry.raw_len);
        if let Some(turnstile) = &self.sink_turn {
            turnstile.wait(job.index, &self.stop)?;
        }
        let failed = |e| self.sink_failed("cannot write a chunk", e);
        let offset = self
            .writer
            .place(&self.wanted(), sealed.entry)
            .map_err(failed)?;
        if let Some(turnstile) = self.sink_turn.as_ref().filter(|_| self.anywhere) {
            turnstile.pass();
        }
        self.wanted()
            .write_at(offset, sealed.bytes)
            .map_err(failed)?;
        self.writer.written(job.index, offset, stored);
        if let Some(turnstile) = self.sink_turn.as_ref().filter(|_| !self.anywhere) {
            turnstile.pass();
        }
        self.progress.add(raw, zero, stored);
        Ok(())
    }

    /// On the foreman: writes who the target is and its VMA table.
    pub(super) fn write_meta(&self, meta: &ImageMeta) -> Result<()> {
        let written = self.writer.write_meta(&self.wanted(), meta);
        written.map_err(|e| self.sink_failed("cannot write the VMA table", e))
    }

    /// Up to where the image is written.
    pub(super) fn mark(&self) -> Mark {
        self.writer.mark()
    }

    /// On the foreman: makes the image visible before it is complete. Answers its locator.
    pub(super) fn keep(&self) -> Result<String> {
        let failed = |e| self.sink_failed("cannot keep the image", e);
        let sink = &self.store.0;
        sink.sink_commit(self.mark().len_bytes, 0).map_err(failed)?;
        sink.sink_locator().map_err(failed)
    }

    /// On the foreman, when all chunks are written.
    pub(super) fn finish(&self) -> Result<Footer> {
        let n_chunks = self.writer.n_chunks();
        let trailers = self.chain.finish_encode(n_chunks)?;
        let failed = |e| self.sink_failed("cannot write the end of the image", e);
        let footer = self.writer.finish(&self.wanted(), &trailers);
        let footer = footer.map_err(failed)?;
        let committed = self.store.0.sink_commit(footer.image_len, footer.raw_bytes);
        committed.map_err(|e| self.sink_failed("cannot commit the image", e))?;
        Ok(footer)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted(self)
    }

    /// Of two failures the one that stopped the work; the other came of it.
    pub(super) fn first(&self, failure: PipelineError) -> PipelineError {
        match self.stop.take() {
            Ok(()) | Err(PipelineError::Ended(_)) => failure,
            Err(first) => first,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.stop.check().or_else(|_| self.stop.take())
    }

    fn sink_failed(&self, doing: &'static str, error: StageError) -> PipelineError {
        let alias = self.chain.sink.as_ref().map_or("sink", |sink| &sink.alias);
        sink_error(alias, doing, error)
    }
}

/// The sink, as long as the work goes on. Who comes back late from a stage, or waited for
/// somebody who did, finds an image that was given up, and writes nothing.
struct Wanted<'a>(&'a Shift);

impl WriteImage for Wanted<'_> {
    fn write_at(&self, offset: u64, data: &[u8]) -> std::result::Result<(), StageError> {
        let given_up = |_| StageError::new(code::INTERNAL, "the image was given up");
        self.0.stop.check().map_err(given_up)?;
        self.0.store.write_at(offset, data)
    }
}

/// One for each stage that wants its chunks in order.
pub(super) fn turnstiles(chain: &Chain) -> Arc<[Option<Turnstile>]> {
    let wants = |link: &Link| (!link.can(capability::INDEPENDENT_CHUNKS)).then(Turnstile::new);
    chain.links.iter().map(wants).collect()
}

/// How long the frame of a whole chunk can be in the image. No longer than any reader takes: to
/// learn that from the image would be too late.
fn longest_frame(chain: &Chain, header: &Header) -> Result<usize> {
    let chunk_len = header.chunk_len as usize;
    let frame_len = chain.reach(chunk_len)?[chain.links.len()];
    if frame_len > limit::FRAME_LEN as usize {
        return Err(PipelineError::Config {
            what: format!(
                "of a chunk of {chunk_len} bytes these stages may make {frame_len} bytes, \
                 more than {} fit into an image",
                limit::FRAME_LEN
            ),
            hint: "make `chunk` smaller".into(),
        });
    }
    Ok(frame_len)
}

/// Bytes that the image can take when no stage makes anything shorter; 0: unknown.
fn sink_len(header: &Header, frame_len: usize, expected_len: u64) -> u64 {
    if expected_len == 0 {
        return 0;
    }
    let n_chunks = expected_len.div_ceil(u64::from(header.chunk_len));
    let beside =
        frame_len.saturating_sub(header.chunk_len as usize) + CHUNK_HEAD_LEN + INDEX_ENTRY_LEN;
    let runs = expected_len / u64::from(header.page_size) * RUN_LEN as u64;
    expected_len + n_chunks * beside as u64 + runs + TABLES_LEN
}
