//! Somebody who does not have the key changes the image: every change is refused.

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Chunk, Transform};

use super::{chunk, ciphers, image, open, seal, stage, text};
use crate::Encrypt;

/// A stage that encoded one image and is ready to decode it, and the image's state.
fn ready(cipher: &str) -> (Encrypt, Vec<u8>) {
    let stage = stage(&[("cipher", cipher)]);
    let state = stage.begin_encode(&image(1)).unwrap();
    stage.begin_decode(&image(1), &state).unwrap();
    (stage, state)
}

#[test]
fn every_flipped_bit_of_a_frame() {
    for cipher in ciphers() {
        let (stage, _) = ready(cipher);
        let frame = seal(&stage, &mut stage.worker().unwrap(), &chunk(0), &text(70));
        let mut worker = stage.worker().unwrap();
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let mut out = [0xee; 70];
            let error = stage
                .decode(&mut worker, &chunk(0), &bad, &mut out)
                .unwrap_err();
            assert_eq!(error.code, code::CORRUPT, "{cipher} bit {bit}");
            assert_eq!(
                out, [0; 70],
                "{cipher}: unauthenticated bytes were handed out"
            );
        }
    }
}

#[test]
fn every_shorter_or_longer_frame() {
    for cipher in ciphers() {
        let (stage, _) = ready(cipher);
        let mut frame = seal(&stage, &mut stage.worker().unwrap(), &chunk(0), &text(70));
        for len in 0..frame.len() {
            assert_eq!(
                open(&stage, &chunk(0), &frame[..len], 70).unwrap_err().code,
                code::CORRUPT,
                "{cipher} {len}"
            );
        }
        for _ in 0..40 {
            frame.push(0);
            assert_eq!(
                open(&stage, &chunk(0), &frame, 200).unwrap_err().code,
                code::CORRUPT,
                "{cipher}"
            );
        }
    }
}

#[test]
fn every_change_of_place_and_label() {
    for cipher in ciphers() {
        let (stage, _) = ready(cipher);
        let chunk = chunk(3);
        let frame = seal(&stage, &mut stage.worker().unwrap(), &chunk, &text(70));
        let mut changed: Vec<Chunk<'_>> = vec![Chunk {
            last: true,
            ..chunk
        }];
        for bit in 0..64 {
            changed.push(Chunk {
                index: chunk.index ^ 1 << bit,
                ..chunk
            });
            changed.push(Chunk {
                address: chunk.address ^ 1 << bit,
                ..chunk
            });
            changed.push(Chunk {
                raw_len: chunk.raw_len ^ 1 << bit,
                ..chunk
            });
        }
        for aad in [&b""[..], b"heade", b"header\0", b"Header", b"headeR"] {
            changed.push(Chunk { aad, ..chunk });
        }
        for bad in changed {
            assert_eq!(
                open(&stage, &bad, &frame, 70).unwrap_err().code,
                code::CORRUPT,
                "{cipher} {bad:?}"
            );
        }
        assert_eq!(open(&stage, &chunk, &frame, 70).unwrap(), text(70));
    }
}

#[test]
fn chunks_swapped_within_an_image_and_replayed_from_another() {
    for cipher in ciphers() {
        let (stage, _) = ready(cipher);
        let mut worker = stage.worker().unwrap();
        let first = seal(&stage, &mut worker, &chunk(0), &text(70));
        let second = seal(&stage, &mut worker, &chunk(1), &text(70));
        assert_ne!(first, second);
        assert_eq!(
            open(&stage, &chunk(0), &second, 70).unwrap_err().code,
            code::CORRUPT,
            "{cipher}"
        );
        assert_eq!(
            open(&stage, &chunk(1), &first, 70).unwrap_err().code,
            code::CORRUPT,
            "{cipher}"
        );
        // The same master key, the same place, another image.
        let state = stage.begin_encode(&image(1)).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        assert_eq!(
            open(&stage, &chunk(0), &first, 70).unwrap_err().code,
            code::CORRUPT,
            "{cipher}"
        );
    }
}

#[test]
fn every_flipped_bit_of_the_state() {
    for cipher in ciphers() {
        let (stage, state) = ready(cipher);
        let frame = seal(&stage, &mut stage.worker().unwrap(), &chunk(0), &text(70));
        for bit in 0..state.len() * 8 {
            let mut bad = state.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                stage.begin_decode(&image(1), &bad).unwrap_err().code,
                code::CORRUPT,
                "{cipher} bit {bit}"
            );
            // The keys of the image before must be out of reach now.
            assert_eq!(
                open(&stage, &chunk(0), &frame, 70).unwrap_err().code,
                code::INTERNAL
            );
        }
        for len in 0..state.len() {
            assert_eq!(
                stage
                    .begin_decode(&image(1), &state[..len])
                    .unwrap_err()
                    .code,
                code::CORRUPT
            );
        }
        assert_eq!(
            stage.begin_decode(&image(2), &state).unwrap_err().code,
            code::CORRUPT,
            "state of another image"
        );
        stage.begin_decode(&image(1), &state).unwrap();
        assert_eq!(open(&stage, &chunk(0), &frame, 70).unwrap(), text(70));
    }
}

#[test]
fn every_change_of_the_trailer() {
    for cipher in ciphers() {
        let (stage, _) = ready(cipher);
        let trailer = stage.finish_encode(7).unwrap();
        stage.finish_decode(7, &trailer).unwrap();
        for n_chunks in [0, 6, 8, u64::MAX] {
            assert_eq!(
                stage.finish_decode(n_chunks, &trailer).unwrap_err().code,
                code::CORRUPT,
                "{cipher}"
            );
        }
        for bit in 0..trailer.len() * 8 {
            let mut bad = trailer.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                stage.finish_decode(7, &bad).unwrap_err().code,
                code::CORRUPT,
                "{cipher} bit {bit}"
            );
        }
        for len in 0..trailer.len() {
            assert_eq!(
                stage.finish_decode(7, &trailer[..len]).unwrap_err().code,
                code::CORRUPT,
                "{cipher} {len}"
            );
        }
    }
}

#[test]
fn images_with_the_same_master_key_share_no_key_stream() {
    for cipher in ciphers() {
        let (stage, state) = ready(cipher);
        let mut worker = stage.worker().unwrap();
        let zeros = vec![0; 4096];
        let first = seal(&stage, &mut worker, &chunk(0), &zeros);
        let next_chunk = seal(&stage, &mut worker, &chunk(1), &zeros);
        let other_state = stage.begin_encode(&image(1)).unwrap();
        assert_ne!(state[8..40], other_state[8..40], "salts");
        let other_image = seal(&stage, &mut worker, &chunk(0), &zeros);
        // Of zeros, CTR modes show the key stream itself. Independent streams agree in
        // one byte of 256: 16 of 4096, and hardly ever in 64.
        for other in [&next_chunk, &other_image] {
            let same = first.iter().zip(other).filter(|(a, b)| a == b).count();
            assert!(same < 64, "{cipher}: {same} of {} bytes agree", first.len());
        }
    }
}

#[test]
fn equal_chunks_look_different_under_cbc_even_at_one_place() {
    for cipher in ciphers().filter(|name| name.ends_with("cbc")) {
        let (stage, _) = ready(cipher);
        let mut worker = stage.worker().unwrap();
        let first = seal(&stage, &mut worker, &chunk(0), &text(64));
        let again = seal(&stage, &mut worker, &chunk(0), &text(64));
        assert_ne!(first[..16], again[..16], "{cipher}: the iv must be fresh");
    }
}
