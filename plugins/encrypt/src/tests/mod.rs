//! What the stage promises, shown through its trait.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attacks;
mod conformance;
mod format;
mod keyring;
mod keys;
mod round_trip;
mod vectors;

use memcr_plugin_api::Host;
use memcr_plugin_api::stage::{Chunk, Encoded, Image, Params, StageError, Transform};

use crate::frame::Worker;
use crate::suite;
use crate::{Encrypt, suite::AUTO};

/// Every cipher by name.
fn ciphers() -> impl Iterator<Item = &'static str> {
    suite::NAMES.iter().copied().filter(|name| *name != AUTO)
}

fn stage(params: &[(&str, &str)]) -> Encrypt {
    try_stage(params).unwrap()
}

fn try_stage(params: &[(&str, &str)]) -> Result<Encrypt, StageError> {
    Encrypt::create(&Params::new(params.iter().copied()), Host::default())
}

fn image(id: u8) -> Image {
    Image {
        page_size: 4096,
        id: [id; 16],
        max_chunk_len: 1 << 20,
        expected_len: 1 << 30,
    }
}

fn chunk(index: u64) -> Chunk<'static> {
    Chunk {
        index,
        last: false,
        address: 0x7f00_0000_0000 + index * 0x10_0000,
        raw_len: 4096,
        aad: b"header",
    }
}

/// Bytes without a period that a cipher could hide.
fn text(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

fn seal(stage: &Encrypt, worker: &mut Worker, chunk: &Chunk<'_>, input: &[u8]) -> Vec<u8> {
    let mut out = vec![0; stage.bound(input.len())];
    match stage.encode(worker, chunk, input, &mut out).unwrap() {
        Encoded::Len(len) => out.truncate(len),
        Encoded::Pass => panic!("a cipher must not pass"),
    }
    out
}

/// Opens into a buffer exactly as long as the plain text, as the host does.
fn open(
    stage: &Encrypt,
    chunk: &Chunk<'_>,
    frame: &[u8],
    len: usize,
) -> Result<Vec<u8>, StageError> {
    let mut out = vec![0; len];
    let len = stage.decode(&mut stage.worker().unwrap(), chunk, frame, &mut out)?;
    out.truncate(len);
    Ok(out)
}
