//! The `md5` stage of memcr: an MD5 digest behind every frame and one over the image.
//!
//! ```text
//!   frame 0 │ md5 0      frame 1 │ md5 1      …        trailer: md5 of (md5 0, md5 1, …)
//! ```
//!
//! The one over the image finds what those behind the frames cannot: a frame that is
//! missing, doubled or changed places with another. MD5 finds accidents, not attacks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::order::InOrder;
use memcr_plugin_api::stage::{
    Checksum, Chunk, Image, Params, Result, StageError, StageInfo, Threads,
};
use memcr_plugin_api::{Host, conformance, register_stage};
use openssl::error::ErrorStack;
use openssl::hash::{Hasher, MessageDigest};

register_stage!(checksum: Md5);
conformance!();

#[cfg(test)]
mod tests;

/// Length of an MD5 digest, bytes.
const DIGEST_LEN: usize = 16;
type Digest = [u8; DIGEST_LEN];

struct Md5 {
    image: Mutex<Whole>,
}

/// The digest over the digests of all chunks, in their order.
struct Whole {
    order: InOrder<Digest>,
    hasher: Hasher,
}

impl Checksum for Md5 {
    /// A digest context, used again for every chunk.
    type Worker = Hasher;

    const INFO: StageInfo = StageInfo {
        name: "md5",
        version: env!("CARGO_PKG_VERSION"),
        summary: "finds accidental damage by an MD5 digest per chunk and over the image",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS,
        params: &[],
    };

    fn create(_: &Params, _: Host) -> Result<Self> {
        // Where OpenSSL may not do MD5 (FIPS), this is the call that fails.
        let image = Mutex::new(Whole::new()?);
        Ok(Self { image })
    }

    fn worker(&self) -> Result<Hasher> {
        let mut hasher = new_hasher()?;
        digest(&mut hasher, &[])?;
        Ok(hasher)
    }

    fn begin_encode(&self, _: &Image) -> Result<Vec<u8>> {
        *self.image() = Whole::new()?;
        Ok(Vec::new())
    }

    fn begin_decode(&self, _: &Image, _: &[u8]) -> Result<()> {
        *self.image() = Whole::new()?;
        Ok(())
    }

    fn tag_len(&self) -> usize {
        DIGEST_LEN
    }

    fn tag(
        &self,
        hasher: &mut Hasher,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &mut [u8],
    ) -> Result<()> {
        let digest = digest(hasher, input)?;
        tag.copy_from_slice(&digest);
        self.image().add(chunk.index, digest)
    }

    fn check(
        &self,
        hasher: &mut Hasher,
        chunk: &Chunk<'_>,
        input: &[u8],
        tag: &[u8],
    ) -> Result<()> {
        let digest = digest(hasher, input)?;
        if tag != digest {
            let message = format!(
                "chunk {} of {} bytes has MD5 {}, stored is {}",
                chunk.index,
                input.len(),
                hex(&digest),
                hex(tag)
            );
            return Err(StageError::new(code::CORRUPT, message));
        }
        self.image().add(chunk.index, digest)
    }

    fn finish_encode(&self, n_chunks: u64) -> Result<Vec<u8>> {
        Ok(self.image().digest(n_chunks, code::INTERNAL)?.to_vec())
    }

    fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        let digest = self.image().digest(n_chunks, code::CORRUPT)?;
        if trailer != digest {
            let message = format!(
                "the image has MD5 {}, stored is {}",
                hex(&digest),
                hex(trailer)
            );
            return Err(StageError::new(code::CORRUPT, message));
        }
        Ok(())
    }
}

impl Md5 {
    // A panic under the lock makes the handle unusable before anybody meets its poison.
    fn image(&self) -> MutexGuard<'_, Whole> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Whole {
    fn new() -> Result<Self> {
        Ok(Self {
            order: InOrder::default(),
            hasher: new_hasher()?,
        })
    }

    fn add(&mut self, index: u64, digest: Digest) -> Result<()> {
        let hasher = &mut self.hasher;
        self.order.put(index, digest, |digest| {
            hasher.update(&digest).map_err(|error| failed(&error))
        })
    }

    /// Fails with `incomplete` when not all chunks came.
    fn digest(&self, n_chunks: u64, incomplete: i32) -> Result<Digest> {
        self.order.check_complete(n_chunks, incomplete)?;
        // A copy: finishing the hasher itself would begin a new digest.
        digest(&mut self.hasher.clone(), &[])
    }
}

fn new_hasher() -> Result<Hasher> {
    Hasher::new(MessageDigest::md5()).map_err(|error| {
        StageError::new(
            code::UNSUPPORTED,
            format!("this OpenSSL does not do MD5: {error}"),
        )
        .hint("use the stage crc32, or encrypt, which notices damage too")
    })
}

/// Ends the digest of all bytes given to `hasher` and `input`; the next one begins anew.
fn digest(hasher: &mut Hasher, input: &[u8]) -> Result<Digest> {
    hasher.update(input).map_err(|error| failed(&error))?;
    let bytes = hasher.finish().map_err(|error| failed(&error))?;
    Digest::try_from(&*bytes).map_err(|_| {
        StageError::new(
            code::INTERNAL,
            format!("OpenSSL answers an MD5 of {} bytes", bytes.len()),
        )
    })
}

fn failed(error: &ErrorStack) -> StageError {
    StageError::new(code::INTERNAL, format!("OpenSSL fails in MD5: {error}"))
}

/// A digest as text, or what is there instead.
fn hex(stored: &[u8]) -> String {
    if stored.len() != DIGEST_LEN {
        return format!("{} bytes instead of {DIGEST_LEN}", stored.len());
    }
    stored.iter().map(|byte| format!("{byte:02x}")).collect()
}
