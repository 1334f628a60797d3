//! What was encoded comes back, whatever cipher, length and thread.

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Chunk, Transform};

use super::{chunk, ciphers, image, open, seal, stage, text, try_stage};

#[test]
fn every_cipher_and_length() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        let mut worker = stage.worker().unwrap();
        for (index, len) in [0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 4095, 4096, 70_001]
            .into_iter()
            .enumerate()
        {
            let (chunk, text) = (chunk(index as u64), text(len));
            let frame = seal(&stage, &mut worker, &chunk, &text);
            assert_eq!(frame.len(), stage.bound(len), "{cipher} {len}");
            assert_eq!(
                open(&stage, &chunk, &frame, len).unwrap(),
                text,
                "{cipher} {len}"
            );
        }
        let trailer = stage.finish_encode(14).unwrap();
        stage.finish_decode(14, &trailer).unwrap();
    }
}

#[test]
fn last_empty_and_unlabelled_chunks() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        let bare = Chunk {
            index: u64::MAX,
            last: true,
            address: 0,
            raw_len: 0,
            aad: &[],
        };
        let frame = seal(&stage, &mut stage.worker().unwrap(), &bare, &[]);
        assert_eq!(open(&stage, &bare, &frame, 0).unwrap(), b"");
    }
}

#[test]
fn more_room_than_needed_is_left_alone() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        let mut worker = stage.worker().unwrap();
        let mut out = vec![0xee; stage.bound(100) + 50];
        stage
            .encode(&mut worker, &chunk(0), &text(100), &mut out)
            .unwrap();
        let len = stage.bound(100);
        assert!(out[len..].iter().all(|b| *b == 0xee), "{cipher}");
        let mut back = vec![0xee; 200];
        assert_eq!(
            stage
                .decode(&mut worker, &chunk(0), &out[..len], &mut back)
                .unwrap(),
            100
        );
        assert_eq!(&back[..100], &text(100));
    }
}

#[test]
fn too_little_room_is_said() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        let mut worker = stage.worker().unwrap();
        let mut out = vec![0; stage.bound(100) - 1];
        let error = stage
            .encode(&mut worker, &chunk(0), &text(100), &mut out)
            .unwrap_err();
        assert_eq!(error.code, code::BUFFER_TOO_SMALL, "{cipher}");
        let frame = seal(&stage, &mut worker, &chunk(0), &text(100));
        assert_eq!(
            open(&stage, &chunk(0), &frame, 99).unwrap_err().code,
            code::CORRUPT,
            "{cipher}"
        );
    }
}

#[test]
fn one_worker_serves_many_images_in_turn() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let mut worker = stage.worker().unwrap();
        for id in 0..4 {
            let state = stage.begin_encode(&image(id)).unwrap();
            let frame = seal(&stage, &mut worker, &chunk(0), &text(5000));
            // Read back while the image is still being written.
            stage.begin_decode(&image(id), &state).unwrap();
            let mut out = vec![0; 5000];
            stage
                .decode(&mut worker, &chunk(0), &frame, &mut out)
                .unwrap();
            assert_eq!(out, text(5000));
            seal(&stage, &mut worker, &chunk(1), &text(5000));
        }
    }
}

#[test]
fn threads_share_a_handle() {
    for cipher in ciphers() {
        let stage = stage(&[("cipher", cipher)]);
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let stage = &stage;
                scope.spawn(move || {
                    let mut worker = stage.worker().unwrap();
                    for index in (thread..200).step_by(4) {
                        let frame = seal(stage, &mut worker, &chunk(index), &text(3000));
                        let mut out = vec![0; 3000];
                        stage
                            .decode(&mut worker, &chunk(index), &frame, &mut out)
                            .unwrap();
                        assert_eq!(out, text(3000));
                    }
                });
            }
        });
    }
}

#[test]
fn calls_out_of_order_and_oversized_chunks_are_errors() {
    let stage = stage(&[]);
    let mut worker = stage.worker().unwrap();
    let mut out = [0; 64];
    assert_eq!(
        stage
            .encode(&mut worker, &chunk(0), b"x", &mut out)
            .unwrap_err()
            .code,
        code::INTERNAL
    );
    assert_eq!(
        stage
            .decode(&mut worker, &chunk(0), &[0; 32], &mut out)
            .unwrap_err()
            .code,
        code::INTERNAL
    );
    assert_eq!(stage.finish_encode(0).unwrap_err().code, code::INTERNAL);
    let mut huge = image(1);
    huge.max_chunk_len = 1 << 31;
    assert_eq!(
        stage.begin_encode(&huge).unwrap_err().code,
        code::UNSUPPORTED
    );
    assert_eq!(
        try_stage(&[("cipher", "rot13")]).unwrap_err().code,
        code::INVALID_CONFIG
    );
}
