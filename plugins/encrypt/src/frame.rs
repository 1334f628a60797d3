//! One frame: sealed and opened.
//!
//! ```text
//! AEAD   ciphertext (as long as the input) │ tag 16
//! CBC    iv 16 │ ciphertext (input + 1..16 of padding) │ HMAC-SHA-256 32
//!
//! associated data   index 8 │ address 8 │ raw_len 8 │ len of aad 8 │ last 1 │ aad
//! AEAD nonce        zero 3 │ index, big-endian 8 │ last 1
//! CBC MAC           over associated data │ iv │ ciphertext
//! ```
//!
//! The nonce follows STREAM: position and "last" are part of it, so a chunk that was
//! moved, repeated or cut off fails to open. It never repeats under one key, because an
//! index occurs once in an image and every image has keys of its own; a random nonce
//! of 96 bits would have to be stored and could, after many chunks, collide.

mod aead;
mod cbc;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Chunk, Result, StageError};
use openssl::cipher_ctx::{CipherCtx, CipherCtxRef};
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::md_ctx::MdCtx;
use openssl::pkey::{PKey, Private};

use crate::image_keys::{ImageKeys, internal};
use crate::suite::{BLOCK_LEN, MAC_LEN};

/// Longest frame, bytes: OpenSSL counts in `int`.
pub(crate) const MAX_LEN: usize = 1 << 30;

const HEAD_LEN: usize = 33;

/// Contexts of one thread. The key schedules stay in them from chunk to chunk; only the
/// nonce changes, so that a chunk costs no allocation but OpenSSL's own for HMAC.
pub(crate) struct Worker {
    seal: Keyed,
    open: Keyed,
    mac: MdCtx,
}

/// A cipher context and the keys it holds; generation 0 is none.
struct Keyed {
    ctx: CipherCtx,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Seal,
    Open,
}

impl Worker {
    /// Contexts without keys.
    pub(crate) fn new() -> Result<Self> {
        let keyed = || CipherCtx::new().map(|ctx| Keyed { ctx, generation: 0 });
        let new = || {
            Ok(Self {
                seal: keyed()?,
                open: keyed()?,
                mac: MdCtx::new()?,
            })
        };
        new().map_err(|e: ErrorStack| internal("make a cipher context", &e))
    }

    /// `input` to a frame in `out`; answers its length.
    pub(crate) fn seal(
        &mut self,
        keys: &ImageKeys,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let len = keys.suite.frame_len(input.len());
        if input.len() > MAX_LEN {
            return Err(too_long(chunk, input.len()));
        }
        let have = out.len();
        let out = out
            .get_mut(..len)
            .ok_or_else(|| no_room(chunk, len, have))?;
        let ctx = self.seal.keyed(keys, Direction::Seal);
        let mac = &mut self.mac;
        ctx.and_then(|ctx| match &keys.mac {
            None => aead::seal(ctx, chunk, input, out),
            Some(key) => cbc::seal(ctx, &mut Mac { ctx: mac, key }, chunk, input, out),
        })
        .map_err(|e| broken(chunk, &e))?;
        Ok(len)
    }

    /// A frame back to what was sealed; answers the length. `out` holds nothing of an
    /// input that does not authenticate.
    pub(crate) fn open(
        &mut self,
        keys: &ImageKeys,
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        if input.len() > MAX_LEN + BLOCK_LEN * 2 + MAC_LEN {
            return Err(too_long(chunk, input.len()));
        }
        let ctx = self
            .open
            .keyed(keys, Direction::Open)
            .map_err(|e| broken(chunk, &e))?;
        let mac = &mut self.mac;
        let opened = match &keys.mac {
            None => aead::open(ctx, chunk, input, out),
            Some(key) => cbc::open(ctx, &mut Mac { ctx: mac, key }, chunk, input, out),
        };
        if opened.is_err() {
            // An AEAD writes before it knows: nobody may see bytes that failed.
            let touched = out.len().min(input.len());
            out[..touched].fill(0);
        }
        opened
    }
}

impl Keyed {
    /// The context with the keys of this image in it.
    fn keyed(
        &mut self,
        keys: &ImageKeys,
        direction: Direction,
    ) -> std::result::Result<&mut CipherCtxRef, ErrorStack> {
        if self.generation != keys.generation {
            self.generation = 0;
            let (cipher, key) = (Some(keys.suite.cipher()), Some(keys.frame.bytes()));
            match direction {
                Direction::Seal => self.ctx.encrypt_init(cipher, key, None)?,
                Direction::Open => self.ctx.decrypt_init(cipher, key, None)?,
            }
            self.generation = keys.generation;
        }
        Ok(&mut self.ctx)
    }
}

/// HMAC-SHA-256 with the key of one image.
struct Mac<'a> {
    ctx: &'a mut MdCtx,
    key: &'a PKey<Private>,
}

impl Mac<'_> {
    /// The tag of a chunk whose initialisation vector and ciphertext are `sealed`.
    fn tag(
        &mut self,
        chunk: &Chunk<'_>,
        sealed: &[u8],
    ) -> std::result::Result<[u8; MAC_LEN], ErrorStack> {
        let mut tag = [0; MAC_LEN];
        self.ctx.digest_sign_init(Some(Md::sha256()), self.key)?;
        self.ctx.digest_sign_update(&head(chunk))?;
        self.ctx.digest_sign_update(chunk.aad)?;
        self.ctx.digest_sign_update(sealed)?;
        self.ctx.digest_sign_final(Some(&mut tag))?;
        Ok(tag)
    }
}

/// The part of the associated data that has a fixed length. It names the length of the
/// part behind it, so no byte can move from one part to another.
fn head(chunk: &Chunk<'_>) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    let words = [
        chunk.index,
        chunk.address,
        chunk.raw_len,
        chunk.aad.len() as u64,
    ];
    for (part, word) in head.chunks_exact_mut(8).zip(words) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    head[HEAD_LEN - 1] = u8::from(chunk.last);
    head
}

/// The first `len` bytes of `out`, which the host made as long as a right frame can be.
fn room<'a>(chunk: &Chunk<'_>, len: usize, out: &'a mut [u8]) -> Result<&'a mut [u8]> {
    let have = out.len();
    out.get_mut(..len).ok_or_else(|| {
        let message = format!(
            "chunk {}: the frame holds {len} bytes, at most {have} can be right",
            chunk.index
        );
        StageError::new(code::CORRUPT, message)
    })
}

fn no_room(chunk: &Chunk<'_>, len: usize, have: usize) -> StageError {
    let message = format!(
        "chunk {}: {have} bytes of room for a frame of {len}",
        chunk.index
    );
    StageError::new(code::BUFFER_TOO_SMALL, message)
}

fn malformed(chunk: &Chunk<'_>, len: usize) -> StageError {
    StageError::new(
        code::CORRUPT,
        format!(
            "chunk {}: {len} bytes cannot be an encrypted frame",
            chunk.index
        ),
    )
}

fn forged(chunk: &Chunk<'_>) -> StageError {
    let message = format!(
        "chunk {} at {:#x}+{:#x} does not authenticate: its bytes, place or order were changed",
        chunk.index, chunk.address, chunk.raw_len
    );
    StageError::new(code::CORRUPT, message)
}

fn broken(chunk: &Chunk<'_>, error: &ErrorStack) -> StageError {
    internal(&format!("encrypt or decrypt chunk {}", chunk.index), error)
}

fn too_long(chunk: &Chunk<'_>, len: usize) -> StageError {
    let message = format!(
        "chunk {}: a frame of {len} bytes is longer than the largest, {MAX_LEN}",
        chunk.index
    );
    StageError::new(code::UNSUPPORTED, message)
}
