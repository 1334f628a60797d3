//! A complete stage in Rust: a transform that inverts every bit.
//!
//! A plugin is a crate of its own with `crate-type = ["cdylib"]`; its library is to be
//! called `libmemcr_stage_NAME.so`. This one is built as an example and loaded by tests.

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, Params, Result, StageError, StageInfo, Threads, Transform,
};
use memcr_plugin_api::{Host, register_stage};

register_stage!(transform: Invert);

struct Invert;

impl Transform for Invert {
    type Worker = ();
    const INFO: StageInfo = StageInfo {
        name: "invert",
        version: "1.0.0",
        summary: "inverts every bit; an example",
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
    fn bound(&self, in_len: usize) -> usize {
        in_len
    }
    fn encode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<Encoded> {
        invert(input, out).map(Encoded::Len)
    }
    fn decode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        invert(input, out)
    }
}

fn invert(input: &[u8], out: &mut [u8]) -> Result<usize> {
    let (len, cap) = (input.len(), out.len());
    let Some(out) = out.get_mut(..len) else {
        let message = format!("a frame of {len} bytes does not fit a buffer of {cap}");
        return Err(StageError::new(code::BUFFER_TOO_SMALL, message));
    };
    for (to, from) in out.iter_mut().zip(input) {
        *to = !from;
    }
    Ok(len)
}
