//! AES-CBC with HMAC-SHA-256 over the ciphertext (encrypt, then authenticate).
//!
//! Padding is PKCS #7, but done here: OpenSSL's Rust wrapper demands a block more room
//! than it fills, which the host's buffers need not have. So whole blocks go straight
//! between `input` and `out`, and the end passes through a few blocks on the stack.

use memcr_plugin_api::stage::{Chunk, Result};
use openssl::cipher_ctx::CipherCtxRef;
use openssl::error::ErrorStack;

use super::{Mac, broken, forged, malformed, room};
use crate::suite::{BLOCK_LEN, MAC_LEN};

/// `input` to iv, ciphertext and tag, which fill `out`.
pub(super) fn seal(
    ctx: &mut CipherCtxRef,
    mac: &mut Mac<'_>,
    chunk: &Chunk<'_>,
    input: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), ErrorStack> {
    let (sealed, tag) = out.split_at_mut(out.len() - MAC_LEN);
    let (iv, text) = sealed.split_at_mut(BLOCK_LEN);
    // CBC needs an iv that nobody can foresee: a counter would not do.
    openssl::rand::rand_bytes(iv)?;
    ctx.encrypt_init(None, None, Some(iv))?;
    ctx.set_padding(false);
    let (whole, rest) = input.split_at(input.len() / BLOCK_LEN * BLOCK_LEN);
    if !whole.is_empty() {
        ctx.cipher_update(whole, Some(text))?;
    }
    let mut end = [0; 2 * BLOCK_LEN];
    ctx.cipher_update(&padded(rest), Some(&mut end))?;
    text[whole.len()..].copy_from_slice(&end[..BLOCK_LEN]);
    tag.copy_from_slice(&mac.tag(chunk, sealed)?);
    Ok(())
}

/// iv, ciphertext and tag back to what was sealed; answers its length. The tag is
/// checked first: nothing that is not ours is decrypted, so its padding tells nothing.
pub(super) fn open(
    ctx: &mut CipherCtxRef,
    mac: &mut Mac<'_>,
    chunk: &Chunk<'_>,
    input: &[u8],
    out: &mut [u8],
) -> Result<usize> {
    let Some(Parts {
        sealed,
        iv,
        text,
        tag,
    }) = parts(input)
    else {
        return Err(malformed(chunk, input.len()));
    };
    let expected = mac.tag(chunk, sealed).map_err(|e| broken(chunk, &e))?;
    if !openssl::memcmp::eq(&expected, tag) {
        return Err(forged(chunk));
    }
    // The last two blocks go through `end`: what is before them leaves a block of room.
    let direct = text.len().saturating_sub(2 * BLOCK_LEN);
    let mut end = [0; 3 * BLOCK_LEN];
    room(chunk, text.len() - BLOCK_LEN, out)?;
    decrypt(ctx, iv, text, direct, out, &mut end).map_err(|e| broken(chunk, &e))?;
    let end = &end[..text.len() - direct];
    // Authentic, so only a sealer with a defect makes this fail.
    let end = without_padding(end).ok_or_else(|| malformed(chunk, input.len()))?;
    let len = direct + end.len();
    room(chunk, len, out)?[direct..].copy_from_slice(end);
    Ok(len)
}

/// A frame taken apart; `sealed` is `iv` and `text` together.
struct Parts<'a> {
    sealed: &'a [u8],
    iv: &'a [u8],
    text: &'a [u8],
    tag: &'a [u8],
}

/// The parts of a frame; none if its length cannot be right.
fn parts(input: &[u8]) -> Option<Parts<'_>> {
    let (sealed, tag) = input.split_last_chunk::<MAC_LEN>()?;
    let (iv, text) = sealed.split_first_chunk::<BLOCK_LEN>()?;
    let whole_blocks = !text.is_empty() && text.len() % BLOCK_LEN == 0;
    whole_blocks.then_some(Parts {
        sealed,
        iv,
        text,
        tag,
    })
}

/// Decrypts `text` up to `direct` to `out`, the rest to `end`, padding and all.
fn decrypt(
    ctx: &mut CipherCtxRef,
    iv: &[u8],
    text: &[u8],
    direct: usize,
    out: &mut [u8],
    end: &mut [u8],
) -> std::result::Result<(), ErrorStack> {
    ctx.decrypt_init(None, None, Some(iv))?;
    ctx.set_padding(false);
    if direct > 0 {
        ctx.cipher_update(&text[..direct], Some(out))?;
    }
    ctx.cipher_update(&text[direct..], Some(end)).map(drop)
}

/// The last block: what is left of the input, and as many bytes as are missing, each
/// of them their number.
fn padded(rest: &[u8]) -> [u8; BLOCK_LEN] {
    // `rest` is shorter than a block, so the number is in 1..=16.
    let mut block = [(BLOCK_LEN - rest.len()) as u8; BLOCK_LEN];
    block[..rest.len()].copy_from_slice(rest);
    block
}

fn without_padding(end: &[u8]) -> Option<&[u8]> {
    let pad = usize::from(*end.last()?);
    let len = end.len().checked_sub(pad)?;
    (1..=BLOCK_LEN).contains(&pad).then(|| &end[..len])
}
