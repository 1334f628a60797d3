//! The `lz4` stage of memcr: each frame is one LZ4 block.
//!
//! A block has no header and no length of its own; the host knows both lengths. The
//! tables of the compressor (16 KiB) live on the stack of the call (liblz4 is built with
//! `LZ4_HEAPMODE` 0), so nothing is allocated per chunk and a worker needs no scratch.

use lz4::block::{CompressionMode, compress_bound, compress_to_buffer, decompress_to_buffer};
use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads, Transform,
};
use memcr_plugin_api::{Host, conformance, register_stage};

register_stage!(transform: Lz4);
conformance!();

#[cfg(test)]
mod tests;

/// Longest frame that liblz4 takes, bytes.
const MAX_INPUT: usize = 0x7E00_0000;

struct Lz4 {
    acceleration: i32,
}

impl Transform for Lz4 {
    type Worker = ();

    const INFO: StageInfo = StageInfo {
        name: "lz4",
        version: env!("CARGO_PKG_VERSION"),
        summary: "compresses each chunk as an LZ4 block",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS | capability::COMPRESSES,
        params: &[ParamSpec {
            name: "acceleration",
            // The limits of liblz4, which would silently clamp what lies beyond.
            kind: ParamKind::Integer { min: 1, max: 65537 },
            default: Some("1"),
            required: false,
            // Blocks decode without knowing it.
            recorded: false,
            help: "higher is faster and compresses less",
        }],
    };

    fn create(params: &Params, _: Host) -> Result<Self> {
        let acceleration = params.parse("acceleration")?.unwrap_or(1);
        Ok(Self { acceleration })
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn bound(&self, in_len: usize) -> usize {
        // Longer frames fail in `encode`, whatever the buffer.
        compress_bound(in_len.min(MAX_INPUT)).unwrap_or(in_len)
    }

    fn encode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<Encoded> {
        if input.len() > MAX_INPUT {
            let message = format!("lz4 takes frames of {MAX_INPUT} bytes, got {}", input.len());
            return Err(StageError::new(code::UNSUPPORTED, message));
        }
        let (mode, out) = (CompressionMode::FAST(self.acceleration), addressable(out));
        // Its one failure, for input of this length, is a buffer that is too small.
        match compress_to_buffer(input, Some(mode), false, out) {
            Ok(len) if len < input.len() => Ok(Encoded::Len(len)),
            Err(_) if out.len() < input.len() => Err(too_small(input.len(), out.len())),
            _ => Ok(Encoded::Pass),
        }
    }

    fn decode(&self, _: &mut (), chunk: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let cap = out.len().min(MAX_INPUT);
        let corrupt = || {
            let message = format!(
                "chunk {} is no LZ4 block of at most {cap} bytes",
                chunk.index
            );
            StageError::new(code::CORRUPT, message)
        };
        // No frame that `encode` wrote is longer than what it was made from.
        if input.len() > MAX_INPUT {
            return Err(corrupt());
        }
        // `LZ4_decompress_safe`: neither reads nor writes outside, whatever the input.
        decompress_to_buffer(input, i32::try_from(cap).ok(), &mut out[..cap]).map_err(|_| corrupt())
    }
}

/// As much of a buffer as liblz4, which counts in `int`, can address.
fn addressable(out: &mut [u8]) -> &mut [u8] {
    let len = out.len().min(i32::MAX as usize);
    &mut out[..len]
}

fn too_small(in_len: usize, cap: usize) -> StageError {
    let message = format!("lz4 cannot store a frame of {in_len} bytes in {cap}");
    StageError::new(code::BUFFER_TOO_SMALL, message)
}
