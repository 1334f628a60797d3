//! The `zstd` stage of memcr: each frame is one zstd frame that decodes alone.
//!
//! zstd's own checksum is off: the image has a checksum per chunk, over the same bytes.
//! Its worker threads are off too: the host already runs as many chunks at once as there
//! are CPUs.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, Image, ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads,
    Transform,
};
use memcr_plugin_api::{Host, conformance, register_stage};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::compress_bound;

register_stage!(transform: Zstd);
conformance!();

#[cfg(test)]
mod tests;

/// Length of the frame on which a new worker is tried, bytes, until an image tells its
/// own: memcr's chunks unless told otherwise.
const USUAL_CHUNK_LEN: usize = 256 * 1024;
/// Longest frame on which a new worker is tried, bytes, whatever an image says.
const MAX_WARM_UP_LEN: usize = 4 * 1024 * 1024;

struct Zstd {
    level: i32,
    warm_up_len: AtomicUsize,
}

/// Scratch memory of one thread: zstd's tables, kept from chunk to chunk.
struct Worker {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

impl Transform for Zstd {
    type Worker = Worker;

    const INFO: StageInfo = StageInfo {
        name: "zstd",
        version: env!("CARGO_PKG_VERSION"),
        summary: "compresses each chunk as a zstd frame",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS | capability::COMPRESSES,
        params: &[ParamSpec {
            name: "level",
            // Beyond 19 lie the levels that need hundreds of MiB; below -7 those that
            // barely compress.
            kind: ParamKind::Integer { min: -7, max: 19 },
            // The target stands still meanwhile: time counts for more than the last
            // per cent of ratio, which is why this is not zstd's own default of 3.
            default: Some("1"),
            required: false,
            // Frames decode without knowing it.
            recorded: false,
            help: "higher compresses more and takes longer",
        }],
    };

    fn create(params: &Params, _: Host) -> Result<Self> {
        let level = params.parse("level")?.unwrap_or(1);
        Ok(Self {
            level,
            warm_up_len: AtomicUsize::new(USUAL_CHUNK_LEN),
        })
    }

    fn worker(&self) -> Result<Worker> {
        let mut worker = self.cold_worker().map_err(|error| {
            let message = format!("zstd cannot set up level {}: {error}", self.level);
            StageError::new(code::UNSUPPORTED, message)
        })?;
        // zstd allocates its tables with the first frame: that is to happen now, not
        // while the target stands still.
        let len = self.warm_up_len.load(Ordering::Relaxed);
        worker.warm_up(len).map_err(|error| {
            let message = format!("zstd fails on a frame of zeros at level {}", self.level);
            StageError::new(code::INTERNAL, format!("{message}: {error}"))
        })?;
        Ok(worker)
    }

    fn begin_encode(&self, image: &Image) -> Result<Vec<u8>> {
        self.expect_chunks(image);
        Ok(Vec::new())
    }

    fn begin_decode(&self, image: &Image, _: &[u8]) -> Result<()> {
        self.expect_chunks(image);
        Ok(())
    }

    fn bound(&self, in_len: usize) -> usize {
        compress_bound(in_len)
    }

    fn encode(
        &self,
        worker: &mut Worker,
        _: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        match worker.compressor.compress_to_buffer(input, out) {
            Ok(len) if len < input.len() => Ok(Encoded::Len(len)),
            // The longest frame fits a buffer of the length that `bound` gives.
            Err(error) if out.len() >= self.bound(input.len()) => Err(StageError::new(
                code::INTERNAL,
                format!("zstd fails on a frame of {} bytes: {error}", input.len()),
            )),
            Err(_) if out.len() < input.len() => Err(StageError::new(
                code::BUFFER_TOO_SMALL,
                format!(
                    "zstd cannot store a frame of {} bytes in {}",
                    input.len(),
                    out.len()
                ),
            )),
            _ => Ok(Encoded::Pass),
        }
    }

    fn decode(
        &self,
        worker: &mut Worker,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let cap = out.len();
        worker
            .decompressor
            .decompress_to_buffer(input, out)
            .map_err(|error| {
                let message = format!(
                    "chunk {} is no zstd frame of at most {cap} bytes: {error}",
                    chunk.index
                );
                StageError::new(code::CORRUPT, message)
            })
    }
}

impl Zstd {
    /// Workers made from now on are tried on frames as long as this image's chunks.
    fn expect_chunks(&self, image: &Image) {
        let len = usize::try_from(image.max_chunk_len).unwrap_or(usize::MAX);
        self.warm_up_len
            .store(len.min(MAX_WARM_UP_LEN), Ordering::Relaxed);
    }

    fn cold_worker(&self) -> io::Result<Worker> {
        let mut compressor = Compressor::new(self.level)?;
        compressor.include_checksum(false)?;
        Ok(Worker {
            compressor,
            decompressor: Decompressor::new()?,
        })
    }
}

impl Worker {
    fn warm_up(&mut self, len: usize) -> io::Result<()> {
        let mut chunk = vec![0; len];
        let mut frame = vec![0; compress_bound(len)];
        let len = self.compressor.compress_to_buffer(&chunk, &mut frame[..])?;
        self.decompressor
            .decompress_to_buffer(&frame[..len], &mut chunk[..])?;
        Ok(())
    }
}
