#![allow(clippy::unwrap_used, clippy::expect_used)]

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Chunk, Encoded, Params, Transform};

use super::Lz4;

const CHUNK: Chunk<'_> = Chunk {
    index: 7,
    last: false,
    address: 0x7000,
    raw_len: 4096,
    aad: &[],
};

fn stage(acceleration: &str) -> Lz4 {
    let params = Params::new([("acceleration", acceleration)]);
    Lz4::create(&params, Host::none()).unwrap()
}

/// Lines that resemble each other, as in a heap of strings.
fn lines() -> Vec<u8> {
    let line = |i: u32| format!("object {} of class {} at {:x}\n", i, i % 7, i * 48);
    (0..3000).map(line).collect::<String>().into_bytes()
}

fn encode(stage: &Lz4, input: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; stage.bound(input.len())];
    match stage.encode(&mut (), &CHUNK, input, &mut out).unwrap() {
        Encoded::Len(len) => Some(out[..len].to_vec()),
        Encoded::Pass => None,
    }
}

#[test]
fn acceleration_reaches_the_compressor() {
    let (slow, fast) = (stage("1"), stage("64"));
    let input = lines();
    assert!(encode(&slow, &input).unwrap().len() < encode(&fast, &input).unwrap().len());
}

#[test]
fn a_frame_is_a_plain_lz4_block() {
    let input = lines();
    let frame = encode(&stage("1"), &input).unwrap();
    let size = i32::try_from(input.len()).unwrap();
    assert_eq!(lz4::block::decompress(&frame, Some(size)).unwrap(), input);
}

#[test]
fn what_does_not_become_smaller_is_passed_over() {
    let noise: Vec<u8> = (0..4096_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    assert_eq!(encode(&stage("1"), &noise[..64]), None);
    assert_eq!(encode(&stage("1"), &[]), None);
    assert_eq!(encode(&stage("1"), b"x"), None);
}

#[test]
fn a_block_that_is_longer_than_its_chunk_is_corrupt() {
    let stage = stage("1");
    let frame = encode(&stage, &vec![0; 1 << 20]).unwrap();
    let error = stage.decode(&mut (), &CHUNK, &frame, &mut [0; 4096]);
    let error = error.unwrap_err();
    assert_eq!(error.code, code::CORRUPT);
    assert_eq!(
        error.message,
        "chunk 7 is no LZ4 block of at most 4096 bytes"
    );
}
