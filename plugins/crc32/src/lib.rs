//! The `crc32` stage of memcr: a CRC-32 (IEEE) behind every frame and one over the image.
//!
//! ```text
//!   frame 0 │ crc 0      frame 1 │ crc 1      …        trailer: crc of (crc 0, crc 1, …)
//! ```
//!
//! CRCs are stored little-endian. The one over the image finds what those behind the
//! frames cannot: a frame that is missing, doubled or changed places with another.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crc32fast::Hasher;
use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::order::InOrder;
use memcr_plugin_api::stage::{
    Checksum, Chunk, Image, Params, Result, StageError, StageInfo, Threads,
};
use memcr_plugin_api::{Host, conformance, register_stage};

register_stage!(checksum: Crc32);
conformance!();

#[cfg(test)]
mod tests;

#[derive(Default)]
struct Crc32 {
    image: Mutex<Whole>,
}

/// The CRC over the CRCs of all chunks, in their order.
#[derive(Default)]
struct Whole {
    order: InOrder<u32>,
    hasher: Hasher,
}

impl Checksum for Crc32 {
    type Worker = ();

    const INFO: StageInfo = StageInfo {
        name: "crc32",
        version: env!("CARGO_PKG_VERSION"),
        summary: "finds accidental damage by a CRC-32 per chunk and over the image",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS,
        params: &[],
    };

    fn create(_: &Params, _: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn begin_encode(&self, _: &Image) -> Result<Vec<u8>> {
        *self.image() = Whole::default();
        Ok(Vec::new())
    }

    fn begin_decode(&self, _: &Image, _: &[u8]) -> Result<()> {
        *self.image() = Whole::default();
        Ok(())
    }

    fn tag_len(&self) -> usize {
        size_of::<u32>()
    }

    fn tag(&self, _: &mut (), chunk: &Chunk<'_>, input: &[u8], tag: &mut [u8]) -> Result<()> {
        let crc = crc32fast::hash(input);
        tag.copy_from_slice(&crc.to_le_bytes());
        self.image().add(chunk.index, crc)
    }

    fn check(&self, _: &mut (), chunk: &Chunk<'_>, input: &[u8], tag: &[u8]) -> Result<()> {
        let crc = crc32fast::hash(input);
        if tag != crc.to_le_bytes() {
            let message = format!(
                "chunk {} of {} bytes has CRC-32 {crc:08x}, stored is {}",
                chunk.index,
                input.len(),
                hex(tag)
            );
            return Err(StageError::new(code::CORRUPT, message));
        }
        self.image().add(chunk.index, crc)
    }

    fn finish_encode(&self, n_chunks: u64) -> Result<Vec<u8>> {
        Ok(self
            .image()
            .crc(n_chunks, code::INTERNAL)?
            .to_le_bytes()
            .to_vec())
    }

    fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        let crc = self.image().crc(n_chunks, code::CORRUPT)?;
        if trailer != crc.to_le_bytes() {
            let message = format!("the image has CRC-32 {crc:08x}, stored is {}", hex(trailer));
            return Err(StageError::new(code::CORRUPT, message));
        }
        Ok(())
    }
}

impl Crc32 {
    // A panic under the lock makes the handle unusable before anybody meets its poison.
    fn image(&self) -> MutexGuard<'_, Whole> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Whole {
    fn add(&mut self, index: u64, crc: u32) -> Result<()> {
        let hasher = &mut self.hasher;
        self.order.put(index, crc, |crc| {
            hasher.update(&crc.to_le_bytes());
            Ok(())
        })
    }

    /// Fails with `incomplete` when not all chunks came.
    fn crc(&self, n_chunks: u64, incomplete: i32) -> Result<u32> {
        self.order.check_complete(n_chunks, incomplete)?;
        Ok(self.hasher.clone().finalize())
    }
}

/// A stored CRC as a number, or what is there instead.
fn hex(stored: &[u8]) -> String {
    match <[u8; 4]>::try_from(stored) {
        Ok(bytes) => format!("{:08x}", u32::from_le_bytes(bytes)),
        Err(_) => format!("{} bytes instead of 4", stored.len()),
    }
}
