//! The `passthrough` stage of memcr: hands on every frame as it is.
//!
//! It is the template for a new transform, and the baseline: what a pipeline costs when
//! its stages do nothing but move bytes.

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, Params, Result, StageError, StageInfo, Threads, Transform,
};
use memcr_plugin_api::{Host, conformance, register_stage};

register_stage!(transform: Passthrough);
conformance!();

struct Passthrough;

impl Transform for Passthrough {
    // Scratch memory of one thread, for example a compressor's tables.
    type Worker = ();

    const INFO: StageInfo = StageInfo {
        name: "passthrough",
        version: env!("CARGO_PKG_VERSION"),
        summary: "hands on every frame as it is",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS,
        params: &[],
    };

    fn create(_: &Params, _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    // The host lends `encode` a buffer of this length.
    fn bound(&self, in_len: usize) -> usize {
        in_len
    }

    fn encode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<Encoded> {
        hand_on(input, out).map(Encoded::Len)
    }

    fn decode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        hand_on(input, out)
    }
}

/// A frame may be damaged: never trust that it fits.
fn hand_on(input: &[u8], out: &mut [u8]) -> Result<usize> {
    let Some(to) = out.get_mut(..input.len()) else {
        let message = format!(
            "the frame has {} bytes, the buffer {}",
            input.len(),
            out.len()
        );
        return Err(StageError::new(code::BUFFER_TOO_SMALL, message));
    };
    to.copy_from_slice(input);
    Ok(input.len())
}
