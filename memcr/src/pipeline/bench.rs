//! What one worker works with, and the way of one chunk over it.
//!
//! Two buffers are enough for any number of stages: each transform reads one and writes
//! the other, a checksum appends its tag where the frame lies. The frame begins at the
//! same place in both, behind room for the head and the runs, so that the chunk leaves
//! in one write:
//!
//! ```text
//! front   │◀──── headroom ────▶│◀── frame ──▶│ tags │ slack │
//!         │      │ head │ runs │ pages, compressed, …       │
//!                ▲ start of the chunk in the image
//! back    │                    │ the next transform writes here │
//! ```
//!
//! Everything is allocated and touched when the bench is made: the frozen time is for
//! moving bytes, and memory that cannot be had must fail while the target still runs.

use std::hint::black_box;
use std::sync::Arc;

use memcr_plugin_api::abi::{MAX_TAG_LEN, code};
use memcr_plugin_api::stage::{Chunk, Encoded, Image, StageError};

use crate::pages::{FetchPages, PageRun};
use crate::pipeline::calls::{What, Who};
use crate::pipeline::crew::{Halt, Stop, Turnstile};
use crate::pipeline::links::{Chain, Link, Reach};
use crate::pipeline::load::Worker;
use crate::pipeline::queue::Job;
use crate::pipeline::{PipelineError, Place, Result, StageKind, zero};
use crate::sink::frame::{
    CHUNK_AAD_LEN, CHUNK_HEAD_LEN, ChunkHead, FrameRun, IndexEntry, RUN_LEN, check_runs, chunk_crc,
    set_pass,
};
use crate::sink::layout::{Header, Seed, limit};
use crate::sink::{ImageError, ImageReader};

/// What all chunks of an image have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) image_id: [u8; 16],
    pub(super) seed: Seed,
    pub(super) page_size: u32,
    pub(super) chunk_len: u32,
}

impl Common {
    pub(super) fn of(header: &Header) -> Self {
        Self {
            image_id: header.image_id,
            seed: Seed::new(&header.image_id),
            page_size: header.page_size,
            chunk_len: header.chunk_len,
        }
    }

    /// What the stages are told. `expected_len`: bytes of pages, an estimate while encoding.
    pub(super) fn image(&self, chain: &Chain, expected_len: u64) -> Image {
        Image {
            page_size: self.page_size,
            id: self.image_id,
            max_chunk_len: u64::from(self.chunk_len) + chain.seal_len() as u64,
            expected_len,
        }
    }
}

/// A chunk on its way: what its head will say, or says.
struct Item {
    head: ChunkHead,
    /// Where the frame is in the front buffer.
    start: usize,
    len: usize,
}

/// An encoded chunk, ready to be written.
pub(super) struct Sealed<'a> {
    /// Its entry, but for the offset.
    pub(super) entry: IndexEntry,
    pub(super) bytes: &'a [u8],
}

/// The buffers and scratch memory of one worker.
pub(super) struct Bench {
    chain: Arc<Chain>,
    common: Common,
    target: Who,
    workers: Vec<Worker>,
    front: Vec<u8>,
    back: Vec<u8>,
    headroom: usize,
    /// Image id, beginning of the head, runs.
    aad: Vec<u8>,
    runs: Vec<FrameRun>,
    /// Runs with bytes; decoding only.
    stored: Vec<PageRun>,
    /// One for each stage that wants its chunks in order.
    turnstiles: Arc<[Option<Turnstile>]>,
}

/// How long the buffers of a bench are, bytes.
pub(super) fn buffer_len(chain: &Chain, common: &Common) -> Result<usize> {
    let longest = chain
        .reach(common.chunk_len as usize)?
        .into_iter()
        .max()
        .unwrap_or(0);
    Ok(headroom(common) + longest + MAX_TAG_LEN)
}

fn headroom(common: &Common) -> usize {
    CHUNK_HEAD_LEN + max_runs(common) * RUN_LEN
}

fn max_runs(common: &Common) -> usize {
    (common.chunk_len / common.page_size) as usize
}

impl Bench {
    /// Allocates and touches everything. `at_least` is the length of the longest chunk
    /// in an image that is read; 0 when one is written.
    pub(super) fn new(
        chain: &Arc<Chain>,
        common: &Common,
        at_least: usize,
        turnstiles: &Arc<[Option<Turnstile>]>,
    ) -> Result<Self> {
        let len = buffer_len(chain, common)?.max(at_least);
        let scratch = |link: &Link| {
            Worker::create(&link.handle)
                .map_err(|e| link.failed(Place::Step("cannot set up a worker"), e))
        };
        let workers = chain.links.iter().map(scratch).collect::<Result<_>>()?;
        Ok(Self {
            workers,
            front: touched(len)?,
            // A pipeline that changes nothing needs no second buffer.
            back: touched(
                if chain.links.iter().any(|l| l.kind() == StageKind::Transform) {
                    len
                } else {
                    0
                },
            )?,
            headroom: headroom(common),
            aad: Vec::with_capacity(16 + CHUNK_AAD_LEN + max_runs(common) * RUN_LEN),
            runs: Vec::with_capacity(max_runs(common)),
            stored: Vec::with_capacity(max_runs(common)),
            chain: Arc::clone(chain),
            common: common.clone(),
            target: Who::other("the target"),
            turnstiles: Arc::clone(turnstiles),
        })
    }

    /// Takes the turns of another pass.
    pub(super) fn take_turns(&mut self, turnstiles: &Arc<[Option<Turnstile>]>) {
        self.turnstiles = Arc::clone(turnstiles);
    }

    /// Fetches the pages of a chunk and takes them through all stages.
    pub(super) fn encode(
        &mut self,
        job: &Job,
        fetch: &dyn FetchPages,
        stop: &Stop,
    ) -> std::result::Result<Sealed<'_>, Halt> {
        let under_way = stop
            .calls()
            .enter(&self.target, What::chunk("fetch", job.index));
        let mut item = self.fetch(job, fetch)?;
        drop(under_way);
        self.start_aad(&item.head);
        for (run, at) in self
            .runs
            .iter()
            .zip((16 + CHUNK_AAD_LEN..).step_by(RUN_LEN))
        {
            self.aad[at..at + RUN_LEN].copy_from_slice(&run.encode());
        }
        for k in 0..self.chain.links.len() {
            if let Some(turnstile) = &self.turnstiles[k] {
                turnstile.wait(job.index, stop)?;
            }
            self.encode_stage(k, &mut item)?;
            if let Some(turnstile) = &self.turnstiles[k] {
                turnstile.pass();
            }
        }
        Ok(self.seal(item))
    }

    fn fetch(&mut self, job: &Job, fetch: &dyn FetchPages) -> Result<Item> {
        let Job { plan, index, last } = job;
        let page_size = self.common.page_size as usize;
        // `push` checked that a plan is at most a chunk long.
        let len = plan.len_bytes() as usize;
        let pages = &mut self.front[self.headroom..self.headroom + len];
        let (first, n_runs) = (plan.runs.first().copied(), plan.runs.len());
        let address = first.map_or(0, |run| run.addr.0);
        fetch.fetch(plan, pages).map_err(|source| match first {
            Some(first) => PipelineError::Fetch {
                place: Place::Pages { first, n_runs },
                source,
            },
            None => PipelineError::Fetch {
                place: Place::Step("an empty chunk"),
                source,
            },
        })?;
        let kept = zero::pack(plan, page_size, pages, &mut self.runs);
        let head = ChunkHead {
            last: *last,
            class: plan.class,
            index: *index,
            address,
            // Chunks are at most 16 MiB.
            raw_len: kept as u32,
            n_runs: self.runs.len() as u32,
            pass: 0,
            stored_len: 0,
            crc: 0,
        };
        Ok(Item {
            head,
            start: self.headroom,
            len: kept + self.add_seal(kept),
        })
    }

    /// Puts the CRC of the `len` bytes of pages behind them, where the chain wants one.
    /// Answers its length.
    fn add_seal(&mut self, len: usize) -> usize {
        let seal_len = self.chain.seal_len();
        if seal_len > 0 {
            let (pages, slack) = self.front[self.headroom..].split_at_mut(len);
            slack[..seal_len].copy_from_slice(&crc32fast::hash(pages).to_le_bytes());
        }
        seal_len
    }

    /// Lays out what stages authenticate: image id, 36 bytes of the head, room for runs.
    fn start_aad(&mut self, head: &ChunkHead) {
        self.aad.clear();
        self.aad.extend_from_slice(&self.common.image_id);
        self.aad.extend_from_slice(&head.encode()[..CHUNK_AAD_LEN]);
        self.aad
            .resize(16 + CHUNK_AAD_LEN + head.n_runs as usize * RUN_LEN, 0);
    }

    fn encode_stage(&mut self, k: usize, item: &mut Item) -> Result<()> {
        set_pass(&mut self.aad[16..], item.head.pass);
        let chunk = chunk(&item.head, &self.aad);
        let (link, worker) = (&self.chain.links[k], &mut self.workers[k]);
        let failed = |source| link.failed(place("encoding ", &item.head, None), source);
        let bound = link.handle.bound(item.len).map_err(failed)?;
        let end = item.start + item.len;
        match link.kind() {
            StageKind::Checksum => {
                let (frame, slack) = self.front.split_at_mut(end);
                let tag = slack
                    .get_mut(..bound)
                    .ok_or_else(|| failed(too_long(bound, item.len)))?;
                let frame = &frame[item.start..];
                unchanged(&self.chain, frame, || {
                    link.handle.tag(worker, &chunk, frame, tag)
                })
                .map_err(failed)?;
                item.len += bound;
            }
            _ => {
                let input = &self.front[item.start..end];
                let out = self.back.get_mut(self.headroom..self.headroom + bound);
                let out = out.ok_or_else(|| failed(too_long(bound, item.len)))?;
                match link
                    .handle
                    .encode(worker, &chunk, input, out)
                    .map_err(failed)?
                {
                    Encoded::Pass => item.head.pass |= 1 << k,
                    Encoded::Len(len) => {
                        (item.start, item.len) = (self.headroom, len);
                        std::mem::swap(&mut self.front, &mut self.back);
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts head and runs in front of the frame and the CRC into the head.
    fn seal(&mut self, item: Item) -> Sealed<'_> {
        let mut head = item.head;
        // Bounded by `reach`, far below 4 GiB.
        head.stored_len = item.len as u32;
        let begin = item.start - head.runs_end();
        let chunk = &mut self.front[begin..item.start + item.len];
        chunk[..CHUNK_HEAD_LEN].copy_from_slice(&head.encode());
        chunk[CHUNK_HEAD_LEN..head.runs_end()].copy_from_slice(&self.aad[16 + CHUNK_AAD_LEN..]);
        head.crc = chunk_crc(&self.common.seed, chunk);
        chunk[CHUNK_HEAD_LEN - 4..CHUNK_HEAD_LEN].copy_from_slice(&head.crc.to_le_bytes());
        let n_zero_pages: u32 = self
            .runs
            .iter()
            .filter(|run| run.zero)
            .map(|run| run.n_pages)
            .sum();
        let entry = IndexEntry {
            offset: 0,
            index: head.index,
            address: head.address,
            len: chunk.len() as u32,
            raw_len: head.raw_len,
            crc: head.crc,
            // A chunk of 16 MiB has at most 4096 pages.
            n_zero_pages: n_zero_pages as u16,
            class: head.class,
            last: head.last,
        };
        Sealed {
            entry,
            bytes: chunk,
        }
    }

    /// Reads a chunk and takes its frame back through all stages. Answers the runs that
    /// have bytes, and the bytes. `turn` is its number in the order of the stages that
    /// want one.
    pub(super) fn decode(
        &mut self,
        reader: &ImageReader,
        entry: &IndexEntry,
        turn: u64,
        stop: &Stop,
        image_error: &dyn Fn(ImageError, &IndexEntry) -> PipelineError,
    ) -> std::result::Result<(&[PageRun], &[u8]), Halt> {
        let head = reader
            .read_chunk(entry, &mut self.front)
            .map_err(|e| image_error(e, entry))?;
        self.check_head(&head, entry)?;
        let reach = self.chain.reach(head.raw_len as usize)?;
        let mut item = Item {
            head,
            start: head.runs_end(),
            len: head.stored_len as usize,
        };
        for k in (0..self.chain.links.len()).rev() {
            if let Some(turnstile) = &self.turnstiles[k] {
                turnstile.wait(turn, stop)?;
            }
            self.decode_stage(k, &mut item, &reach, entry)?;
            if let Some(turnstile) = &self.turnstiles[k] {
                turnstile.pass();
            }
        }
        let end = self.check_seal(&item).map_err(|what| {
            let place = place("", &head, Some(entry.offset));
            self.chain.lied(0, place, &what)
        })?;
        Ok((&self.stored, &self.front[item.start..end]))
    }

    /// Checks what `add_seal` put behind the pages. Answers where the pages end.
    fn check_seal(&self, item: &Item) -> std::result::Result<usize, String> {
        let (raw_len, seal_len) = (item.head.raw_len as usize, self.chain.seal_len());
        if item.len != raw_len + seal_len {
            let wanted = raw_len + seal_len;
            return Err(format!(
                "its frame decodes to {} bytes, its head asks for {wanted}",
                item.len
            ));
        }
        let (pages, seal) = self.front[item.start..item.start + item.len].split_at(raw_len);
        if seal_len > 0 && crc32fast::hash(pages).to_le_bytes() != seal {
            return Err("its pages are not those that were stored".into());
        }
        Ok(item.start + raw_len)
    }

    /// Checks head and runs against the index and each other, and lays out the runs and
    /// what the stages authenticated.
    fn check_head(&mut self, head: &ChunkHead, entry: &IndexEntry) -> Result<()> {
        let corrupt = |what| PipelineError::Corrupt {
            place: place("", head, Some(entry.offset)),
            what,
        };
        let Common {
            page_size,
            chunk_len,
            ..
        } = self.common;
        let runs = self
            .front
            .get(CHUNK_HEAD_LEN..head.runs_end())
            .unwrap_or_default();
        let n_zero =
            check_runs(head, runs, page_size, chunk_len, &mut self.stored).map_err(corrupt)?;
        if !entry.agrees(head, n_zero) {
            return Err(corrupt("its head and its entry in the index differ".into()));
        }
        let may_pass = self
            .chain
            .links
            .iter()
            .enumerate()
            .filter(|(_, link)| link.can(PASS))
            .map(|(k, _)| 1u16 << k);
        if head.pass & !may_pass.sum::<u16>() != 0 {
            return Err(corrupt(format!(
                "it passes over stages ({:#06b}) that must not be",
                head.pass
            )));
        }
        self.start_aad(head);
        self.aad[16 + CHUNK_AAD_LEN..]
            .copy_from_slice(&self.front[CHUNK_HEAD_LEN..head.runs_end()]);
        Ok(())
    }

    fn decode_stage(
        &mut self,
        k: usize,
        item: &mut Item,
        reach: &Reach,
        entry: &IndexEntry,
    ) -> Result<()> {
        // A stage sees the mask as it was when it encoded: bits of the stages before it.
        set_pass(&mut self.aad[16..], item.head.pass & ((1 << k) - 1));
        let chunk = chunk(&item.head, &self.aad);
        let (link, worker) = (&self.chain.links[k], &mut self.workers[k]);
        let at = || place("decoding ", &item.head, Some(entry.offset));
        let chain = &self.chain;
        let failed = |source| chain.judged(k, link.failed_decoding(at(), source));
        let short = |wanted: usize| {
            let what = format!(
                "its frame of {} bytes cannot be one of stage `{}` ({wanted})",
                item.len, link.alias
            );
            chain.lied(k, at(), &what)
        };
        let input = &self.front[item.start..item.start + item.len];
        match link.kind() {
            StageKind::Checksum => {
                let tag_len = link.handle.bound(item.len).map_err(failed)?;
                let (frame, tag) = input
                    .split_at_checked(item.len.wrapping_sub(tag_len))
                    .ok_or_else(|| short(tag_len))?;
                unchanged(chain, frame, || {
                    link.handle.check(worker, &chunk, frame, tag)
                })
                .map_err(failed)?;
                item.len = frame.len();
            }
            _ if item.head.pass & (1 << k) != 0 => {}
            _ => {
                let out = self
                    .back
                    .get_mut(..reach[k])
                    .ok_or_else(|| short(reach[k]))?;
                item.len = link
                    .handle
                    .decode(worker, &chunk, input, out)
                    .map_err(failed)?;
                item.start = 0;
                std::mem::swap(&mut self.front, &mut self.back);
            }
        }
        Ok(())
    }
}

/// The capability of a stage that may leave a frame as it is.
const PASS: u64 = memcr_plugin_api::abi::capability::COMPRESSES;

const _: () = assert!(
    limit::STAGES <= u16::BITS as usize,
    "the pass mask has a bit for every stage"
);

fn chunk<'a>(head: &ChunkHead, aad: &'a [u8]) -> Chunk<'a> {
    Chunk {
        index: head.index,
        last: head.last,
        address: head.address,
        raw_len: u64::from(head.raw_len),
        aad,
    }
}

fn place(doing: &'static str, head: &ChunkHead, offset: Option<u64>) -> Place {
    Place::Chunk {
        doing,
        index: head.index,
        offset,
        address: head.address,
    }
}

fn too_long(bound: usize, len: usize) -> StageError {
    let message = format!(
        "it asks for {bound} bytes for a frame of {len}, more than for a longer one before"
    );
    StageError::new(code::INTERNAL, message)
}

/// Lets a stage look at a frame that it is only to read, and sees to it that it does no more.
/// Where the pages have a seal that tells. Elsewhere nothing would: the CRC of a chunk is made
/// behind all stages, and checked in front of them.
fn unchanged(
    chain: &Chain,
    frame: &[u8],
    look: impl FnOnce() -> std::result::Result<(), StageError>,
) -> std::result::Result<(), StageError> {
    if chain.seal_len() > 0 {
        return look();
    }
    // The compiler must not believe that nobody writes there.
    let crc = || crc32fast::hash(black_box(frame));
    let before = crc();
    look()?;
    if crc() == before {
        return Ok(());
    }
    let message = "it has changed the bytes that it was only to read";
    Err(StageError::new(code::INTERNAL, message).hint("this is a defect of the plugin"))
}

/// `len` bytes that the kernel has really given us.
fn touched(len: usize) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(len)
        .map_err(|e| PipelineError::Resource {
            doing: format!("allocate a buffer of {len} bytes"),
            source: std::io::Error::new(std::io::ErrorKind::OutOfMemory, e.to_string()),
        })?;
    // Not zeros: the allocator would hand out pages that do not exist yet.
    buffer.resize(len, 0xa5);
    Ok(buffer)
}
