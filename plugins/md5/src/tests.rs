#![allow(clippy::unwrap_used, clippy::expect_used)]

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Checksum, Chunk, Image, Params, Result};

use super::Md5;

const IMAGE: Image = Image {
    page_size: 4096,
    id: [0; 16],
    max_chunk_len: 1 << 20,
    expected_len: 0,
};

fn stage() -> Md5 {
    Md5::create(&Params::default(), Host::none()).unwrap()
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

fn tag(stage: &Md5, index: u64, input: &[u8]) -> Vec<u8> {
    let mut tag = vec![0; stage.tag_len()];
    stage
        .tag(&mut stage.worker().unwrap(), &chunk(index), input, &mut tag)
        .unwrap();
    tag
}

fn check(stage: &Md5, index: u64, input: &[u8], tag: &[u8]) -> Result<()> {
    stage.check(&mut stage.worker().unwrap(), &chunk(index), input, tag)
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
fn the_tag_is_the_usual_md5() {
    // RFC 1321, appendix A.5.
    let hex = |tag: Vec<u8>| -> String { tag.iter().map(|byte| format!("{byte:02x}")).collect() };
    let stage = stage();
    assert_eq!(hex(tag(&stage, 0, b"")), "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(
        hex(tag(&stage, 1, b"abc")),
        "900150983cd24fb0d6963f7d28e17f72"
    );
}

#[test]
fn the_trailer_is_the_md5_of_the_digests() {
    let (stage, md5) = (stage(), openssl::hash::MessageDigest::md5());
    stage.begin_encode(&IMAGE).unwrap();
    let digests = [tag(&stage, 0, b"one"), tag(&stage, 1, b"two")].concat();
    let trailer = stage.finish_encode(2).unwrap();
    assert_eq!(trailer, &*openssl::hash::hash(md5, &digests).unwrap());
}

#[test]
fn damage_is_reported_with_both_values() {
    let stage = stage();
    let good = tag(&stage, 3, b"");
    let error = check(&stage, 3, b"abc", &good).unwrap_err();
    assert_eq!(error.code, code::CORRUPT);
    assert_eq!(
        error.message,
        "chunk 3 of 3 bytes has MD5 900150983cd24fb0d6963f7d28e17f72, \
         stored is d41d8cd98f00b204e9800998ecf8427e"
    );
}
