//! The bytes in images, pinned: a change here makes every existing image unreadable.

use std::io::Write;
use std::os::fd::AsRawFd;

use memcr_plugin_api::stage::Transform;

use super::vectors::VECTORS;
use super::{chunk, ciphers, image, open, stage};

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn images_made_by_other_code_decode() {
    assert_eq!(VECTORS.len(), ciphers().count());
    for [cipher, state, frame, trailer] in VECTORS {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer
            .write_all(b"0123456789abcdef0123456789abcdeX")
            .unwrap();
        drop(writer);
        let stage = stage(&[("key_fd", &reader.as_raw_fd().to_string())]);
        stage.begin_decode(&image(1), &bytes(state)).unwrap();
        let text = open(&stage, &chunk(3), &bytes(frame), 33).unwrap();
        assert_eq!(text, b"the bytes of a page of the target", "{cipher}");
        stage.finish_decode(4, &bytes(trailer)).unwrap();
    }
}
