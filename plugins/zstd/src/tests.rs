#![allow(clippy::unwrap_used, clippy::expect_used)]

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Chunk, Encoded, Image, Params, Transform};

use super::{MAX_WARM_UP_LEN, Zstd};

const CHUNK: Chunk<'_> = Chunk {
    index: 7,
    last: false,
    address: 0x7000,
    raw_len: 4096,
    aad: &[],
};

fn stage(level: &str) -> Zstd {
    Zstd::create(&Params::new([("level", level)]), Host::none()).unwrap()
}

/// Lines that resemble each other, as in a heap of strings.
fn lines() -> Vec<u8> {
    let line = |i: u32| format!("object {} of class {} at {:x}\n", i, i % 7, i * 48);
    (0..3000).map(line).collect::<String>().into_bytes()
}

fn encode(stage: &Zstd, input: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; stage.bound(input.len())];
    let mut worker = stage.worker().unwrap();
    match stage.encode(&mut worker, &CHUNK, input, &mut out).unwrap() {
        Encoded::Len(len) => Some(out[..len].to_vec()),
        Encoded::Pass => None,
    }
}

#[test]
fn the_level_reaches_the_compressor() {
    let input = lines();
    let len = |level| encode(&stage(level), &input).unwrap().len();
    assert!(len("19") < len("1"));
    assert!(len("1") < len("-7"));
}

#[test]
fn a_frame_is_a_plain_zstd_frame_without_a_checksum() {
    let input = lines();
    let frame = encode(&stage("3"), &input).unwrap();
    assert_eq!(zstd::bulk::decompress(&frame, input.len()).unwrap(), input);
    // Frame header descriptor (RFC 8878, 3.1.1.1.1): bit 2 is the checksum flag.
    assert_eq!(frame[4] & 4, 0);
}

#[test]
fn every_level_decodes_what_another_encoded() {
    let input = lines();
    let frame = encode(&stage("19"), &input).unwrap();
    let other = stage("-7");
    let mut out = vec![0; input.len()];
    let len = other.decode(&mut other.worker().unwrap(), &CHUNK, &frame, &mut out);
    assert_eq!(len.unwrap(), input.len());
    assert_eq!(out, input);
}

#[test]
fn what_does_not_become_smaller_is_passed_over() {
    assert_eq!(encode(&stage("1"), &[]), None);
    assert_eq!(encode(&stage("1"), b"short"), None);
}

#[test]
fn a_frame_that_is_longer_than_its_chunk_is_corrupt() {
    let stage = stage("1");
    let frame = encode(&stage, &vec![0; 1 << 20]).unwrap();
    let mut worker = stage.worker().unwrap();
    let error = stage.decode(&mut worker, &CHUNK, &frame, &mut [0; 4096]);
    let error = error.unwrap_err();
    assert_eq!(error.code, code::CORRUPT);
    assert!(
        error
            .message
            .starts_with("chunk 7 is no zstd frame of at most 4096 bytes: "),
        "{}",
        error.message
    );
}

#[test]
fn an_image_of_absurd_chunks_does_not_cost_memory() {
    let stage = stage("1");
    let image = Image {
        page_size: 4096,
        id: [0; 16],
        max_chunk_len: u64::MAX,
        expected_len: 0,
    };
    stage.begin_decode(&image, &[]).unwrap();
    let len = stage.warm_up_len.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(len, MAX_WARM_UP_LEN);
}

mod lowest_level {
    use crate::stage_table;

    memcr_plugin_api::conformance!(|suite| suite.param("level", "-7"));
}

mod highest_level {
    use crate::stage_table;

    memcr_plugin_api::conformance!(|suite| suite.param("level", "19"));
}
