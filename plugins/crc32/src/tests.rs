#![allow(clippy::unwrap_used, clippy::expect_used)]

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Checksum, Chunk, Image, Params, Result};

use super::Crc32;

const IMAGE: Image = Image {
    page_size: 4096,
    id: [0; 16],
    max_chunk_len: 1 << 20,
    expected_len: 0,
};

fn stage() -> Crc32 {
    Crc32::create(&Params::default(), Host::none()).unwrap()
}

fn chunk(index: u64) -> Chunk<'static> {
    Chunk {
        index,
        last: false,
        address: 0x7000,
        raw_len: 0,
        aad: &[],
    }
}

fn tag(stage: &Crc32, index: u64, input: &[u8]) -> Vec<u8> {
    let mut tag = vec![0; stage.tag_len()];
    stage.tag(&mut (), &chunk(index), input, &mut tag).unwrap();
    tag
}

fn check(stage: &Crc32, index: u64, input: &[u8], tag: &[u8]) -> Result<()> {
    stage.check(&mut (), &chunk(index), input, tag)
}

/// The trailer of an image whose chunks came in this order.
fn trailer(order: &[u64]) -> Vec<u8> {
    let stage = stage();
    stage.begin_encode(&IMAGE).unwrap();
    for &index in order {
        tag(&stage, index, format!("chunk {index}").as_bytes());
    }
    stage.finish_encode(order.len() as u64).unwrap()
}

#[test]
fn the_order_in_which_chunks_end_changes_nothing() {
    assert_eq!(trailer(&[0, 1, 2, 3]), trailer(&[2, 3, 0, 1]));
    assert_ne!(trailer(&[0, 1, 2]), trailer(&[0, 1, 2, 3]));
}

#[test]
fn frames_that_changed_places_are_noticed_at_the_end() {
    let stage = stage();
    stage.begin_encode(&IMAGE).unwrap();
    let tags = [tag(&stage, 0, b"one"), tag(&stage, 1, b"two")];
    let trailer = stage.finish_encode(2).unwrap();

    stage.begin_decode(&IMAGE, &[]).unwrap();
    check(&stage, 0, b"one", &tags[0]).unwrap();
    check(&stage, 1, b"two", &tags[1]).unwrap();
    stage.finish_decode(2, &trailer).unwrap();

    stage.begin_decode(&IMAGE, &[]).unwrap();
    check(&stage, 0, b"two", &tags[1]).unwrap();
    check(&stage, 1, b"one", &tags[0]).unwrap();
    let error = stage.finish_decode(2, &trailer).unwrap_err();
    assert_eq!(error.code, code::CORRUPT);
    assert!(
        error.message.starts_with("the image has "),
        "{}",
        error.message
    );
}

#[test]
fn a_chunk_that_never_came_is_named() {
    let stage = stage();
    stage.begin_decode(&IMAGE, &[]).unwrap();
    let first = tag(&stage, 0, b"one");
    stage.begin_decode(&IMAGE, &[]).unwrap();
    check(&stage, 0, b"one", &first).unwrap();
    let error = stage.finish_decode(2, &first).unwrap_err();
    assert_eq!(error.code, code::CORRUPT);
    assert_eq!(
        error.message,
        "the image has 2 chunks, but chunk 1 never came"
    );
}

#[test]
fn the_tag_is_the_usual_crc_32() {
    // The check value of CRC-32/ISO-HDLC.
    let tag = tag(&stage(), 0, b"123456789");
    assert_eq!(tag, 0xcbf4_3926_u32.to_le_bytes());
}

#[test]
fn damage_is_reported_with_both_values() {
    let error = check(&stage(), 3, b"123456780", &0xcbf4_3926_u32.to_le_bytes());
    assert_eq!(
        error.unwrap_err().message,
        "chunk 3 of 9 bytes has CRC-32 b2288182, stored is cbf43926"
    );
}
