//! What is done to the bytes on the way, with the libraries that the stages use.

use std::hint::black_box;

use ::lz4::block::{compress_bound, compress_to_buffer, decompress_to_buffer};
use ::zstd::bulk::{Compressor, Decompressor};
use memcr_harness::{Context, Result};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::hash::{MessageDigest, hash};

use super::{BLOCK, Time, shares};
use crate::lab::Lab;
use crate::team;

/// The default level of the stage `zstd`.
const ZSTD_LEVEL: i32 = 1;

pub(super) fn lz4(lab: &Lab, n_threads: usize) -> Result<Time> {
    let bound = compress_bound(BLOCK).context("bound")?;
    each_block(lab, n_threads, || {
        let mut out = vec![1; bound];
        Ok(move |block: &[u8]| {
            let n = compress_to_buffer(block, None, false, &mut out).context("compress")?;
            black_box(n);
            Ok(())
        })
    })
}

pub(super) fn lz4_decode(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_packed(
        lab,
        n_threads,
        |block| ::lz4::block::compress(block, None, false).context("compress"),
        || {
            let mut out = vec![1; BLOCK];
            Ok(move |packed: &[u8], len: usize| {
                decompress_to_buffer(packed, i32::try_from(len).ok(), &mut out)
                    .map(drop)
                    .context("decompress")
            })
        },
    )
}

pub(super) fn zstd(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_block(lab, n_threads, || {
        let mut compressor = Compressor::new(ZSTD_LEVEL).context("zstd")?;
        let mut out = vec![1; ::zstd::zstd_safe::compress_bound(BLOCK)];
        Ok(move |block: &[u8]| {
            let n = compressor.compress_to_buffer(block, &mut out[..]);
            n.map(drop).context("compress")
        })
    })
}

pub(super) fn zstd_decode(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_packed(
        lab,
        n_threads,
        |block| ::zstd::bulk::compress(block, ZSTD_LEVEL).context("compress"),
        || {
            let mut decompressor = Decompressor::new().context("zstd")?;
            let mut out = vec![1; BLOCK];
            Ok(move |packed: &[u8], _len: usize| {
                let n = decompressor.decompress_to_buffer(packed, &mut out[..]);
                n.map(drop).context("decompress")
            })
        },
    )
}

pub(super) fn crc32(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_block(lab, n_threads, || {
        Ok(|block: &[u8]| {
            black_box(crc32fast::hash(block));
            Ok(())
        })
    })
}

pub(super) fn md5(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_block(lab, n_threads, || {
        Ok(|block: &[u8]| hash(MessageDigest::md5(), block).map(drop).context("md5"))
    })
}

/// Either way: decryption does the same.
pub(super) fn aes(lab: &Lab, n_threads: usize) -> Result<Time> {
    each_block(lab, n_threads, || {
        let mut context = CipherCtx::new().context("cipher")?;
        let mut out = vec![1; BLOCK + 16];
        Ok(move |block: &[u8]| {
            let (key, nonce) = ([1; 32], [2; 12]);
            let mut encrypt = || {
                context.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&key), Some(&nonce))?;
                let n = context.cipher_update(block, Some(&mut out))?;
                context.cipher_final(&mut out[n..])
            };
            encrypt().map(drop).context("encrypt")
        })
    })
}

/// `set_up` once per thread, before the clock runs; what it answers for every block.
fn each_block<Work: FnMut(&[u8]) -> Result + Send>(
    lab: &Lab,
    n_threads: usize,
    set_up: impl Fn() -> Result<Work>,
) -> Result<Time> {
    let teams = shares(lab.stored.len(), n_threads, BLOCK).into_iter();
    let teams = teams
        .map(|(begin, len)| Ok((&lab.stored[begin..begin + len], set_up()?)))
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |(bytes, mut work)| {
        bytes.chunks(BLOCK).try_for_each(&mut work)
    })?;
    Ok(Time {
        len_bytes: lab.stored.len() as u64,
        millis,
    })
}

/// As [`each_block`], with blocks that were packed before, and their length unpacked.
fn each_packed<Work: FnMut(&[u8], usize) -> Result + Send>(
    lab: &Lab,
    n_threads: usize,
    pack: impl Fn(&[u8]) -> Result<Vec<u8>>,
    set_up: impl Fn() -> Result<Work>,
) -> Result<Time> {
    let blocks = lab.stored.chunks(BLOCK);
    let packed = blocks
        .map(|block| Ok((pack(block)?, block.len())))
        .collect::<Result<Vec<_>>>()?;
    let teams = packed.chunks(packed.len().div_ceil(n_threads).max(1));
    let teams = teams
        .map(|share| Ok((share, set_up()?)))
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |(share, mut work)| {
        share
            .iter()
            .try_for_each(|(packed, len)| work(packed, *len))
    })?;
    Ok(Time {
        len_bytes: lab.stored.len() as u64,
        millis,
    })
}
