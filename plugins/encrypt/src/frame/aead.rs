//! AES-GCM and ChaCha20-Poly1305: the cipher authenticates by itself.

use memcr_plugin_api::stage::{Chunk, Result};
use openssl::cipher_ctx::CipherCtxRef;
use openssl::error::ErrorStack;

use super::{broken, forged, head, malformed, room};
use crate::suite::AEAD_TAG_LEN;

/// `input` to ciphertext and tag, which fill `out`.
pub(super) fn seal(
    ctx: &mut CipherCtxRef,
    chunk: &Chunk<'_>,
    input: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), ErrorStack> {
    ctx.encrypt_init(None, None, Some(&nonce(chunk)))?;
    let (text, tag) = out.split_at_mut(input.len());
    update(ctx, chunk, input, text)?;
    ctx.cipher_final(&mut [])?;
    ctx.tag(tag)
}

/// Ciphertext and tag back to what was sealed; answers its length. Writes to `out`
/// before it knows whether the tag fits.
pub(super) fn open(
    ctx: &mut CipherCtxRef,
    chunk: &Chunk<'_>,
    input: &[u8],
    out: &mut [u8],
) -> Result<usize> {
    let Some((text, tag)) = input.split_last_chunk::<AEAD_TAG_LEN>() else {
        return Err(malformed(chunk, input.len()));
    };
    let out = room(chunk, text.len(), out)?;
    ctx.decrypt_init(None, None, Some(&nonce(chunk)))
        .and_then(|()| update(ctx, chunk, text, out))
        .and_then(|()| ctx.set_tag(tag))
        .map_err(|e| broken(chunk, &e))?;
    ctx.cipher_final(&mut []).map_err(|_| forged(chunk))?;
    Ok(text.len())
}

/// Everything between nonce and tag; the same for both directions.
fn update(
    ctx: &mut CipherCtxRef,
    chunk: &Chunk<'_>,
    input: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), ErrorStack> {
    ctx.cipher_update(&head(chunk), None)?;
    // OpenSSL takes an empty slice's pointer for a sign of something else.
    if !chunk.aad.is_empty() {
        ctx.cipher_update(chunk.aad, None)?;
    }
    if !input.is_empty() {
        ctx.cipher_update(input, Some(out))?;
    }
    Ok(())
}

fn nonce(chunk: &Chunk<'_>) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&chunk.index.to_be_bytes());
    nonce[11] = u8::from(chunk.last);
    nonce
}
