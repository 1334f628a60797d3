//! What the suite sends through a stage.

use crate::export::ChunkArg;
use crate::stage::Image;

/// Longest chunk of the suite, bytes: the longest that memcr makes unless told otherwise.
pub(super) const MAX_CHUNK_LEN: usize = 1 << 20;
const PAGE: usize = 4096;

/// A chunk with its bytes.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) chunk: ChunkArg,
    pub(super) bytes: Vec<u8>,
}

/// An image id that no other call of a test has given.
pub(super) fn image(pieces: &[Piece], n: u8) -> Image {
    let expected_len = pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
    let mut id = [0x1d; 16];
    id[0] = n;
    Image {
        page_size: PAGE as u32,
        id,
        max_chunk_len: MAX_CHUNK_LEN as u64,
        expected_len,
    }
}

/// Nothing, one byte, a page, an odd length and the longest chunk, each of every content.
pub(super) fn all() -> Vec<Piece> {
    pieces(&[1, 100, PAGE, 12_345, MAX_CHUNK_LEN])
}

/// A few short ones, for what is tried many times.
pub(super) fn short() -> Vec<Piece> {
    pieces(&[1, PAGE, 4999])
}

fn pieces(lengths: &[usize]) -> Vec<Piece> {
    let mut made = vec![("nothing".to_owned(), Vec::new())];
    for &len in lengths {
        made.push((format!("{len} zeros"), vec![0; len]));
        made.push((format!("{len} random bytes"), random(len, len as u64)));
        made.push((format!("{len} bytes of text"), text(len)));
        made.push((format!("{len} bytes of pointers"), pointers(len)));
    }
    let n = made.len();
    let with_index = made.into_iter().enumerate();
    with_index
        .map(|(i, (name, bytes))| piece(i, i + 1 == n, name, bytes))
        .collect()
}

fn piece(index: usize, last: bool, name: String, bytes: Vec<u8>) -> Piece {
    let raw_len = bytes.len() as u64;
    let aad = random(48, index as u64 ^ 0xaad);
    Piece {
        name,
        chunk: ChunkArg {
            index: index as u64,
            last,
            raw_len,
            aad,
        },
        bytes,
    }
}

/// The same bytes for the same seed, on every machine (xorshift64*).
pub(super) fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&words.next().unwrap_or_default().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn text(len: usize) -> Vec<u8> {
    let words = b"memory of a target that waits for its return, page after page; ";
    words.iter().copied().cycle().take(len).collect()
}

/// Heap-like words: addresses near each other, small numbers between.
fn pointers(len: usize) -> Vec<u8> {
    let noise = random(len / 8 + 8, 3);
    let word = |i: usize| match i % 3 {
        0 => 0x5555_5560_0000 + u64::from(noise[i % noise.len()]) * 16,
        1 => 0x7fff_f7a0_0000 + i as u64 * 64,
        _ => u64::from(noise[i % noise.len()]),
    };
    (0..len.div_ceil(8))
        .flat_map(|i| word(i).to_le_bytes())
        .take(len)
        .collect()
}
