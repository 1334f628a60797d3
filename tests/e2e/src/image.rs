//! A stored image under a hail of flipped bits and truncations: each is noticed.

use crate::common::{Rig, hold};
use crate::test;
use libtest_mimic::Trial;
use memcr_harness::{Memcr, Result, Victim, ensure};
use std::path::{Path, PathBuf};

const PIPELINES: [&str; 5] = [
    "file",
    "lz4,file",
    "crc32,file",
    "lz4,md5,file",
    "zstd,encrypt,file",
];
/// Flips and truncations that go through the program itself, one process each. The
/// library's own tests do thousands.
const N_FLIPS: u64 = 60;
const N_CUTS: u64 = 15;

pub(crate) fn tests() -> Vec<Trial> {
    let trials = PIPELINES.iter().map(|pipeline| {
        let name = format!("image::damage_is_noticed_{}", pipeline.replace(',', "_"));
        test(name, move || damage_is_noticed(pipeline))
    });
    trials.collect()
}

/// A key file for pipelines that encrypt: an ephemeral key leaves with its image.
fn key_file(dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("key");
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::io::Write::write_all(&mut &file, &[7; 32])?;
    Ok(path)
}

/// The bytes of an image of a small target.
fn image(pipeline: &str, keys: &[String]) -> Result<Vec<u8>> {
    let rig = Rig::with(pipeline)?;
    let mut victim = Victim::start("memory", &["size=512K"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()).args(keys))?;
    let bytes = std::fs::read(rig.image(victim.pid()))?;
    held.release()?;
    victim.verify()?;
    victim.quit()?;
    Ok(bytes)
}

fn damage_is_noticed(pipeline: &str) -> Result {
    let dir = tempfile::tempdir()?;
    let keys = if pipeline.contains("encrypt") {
        vec![
            "--set".to_owned(),
            format!("encrypt.key_file={}", key_file(dir.path())?.display()),
        ]
    } else {
        Vec::new()
    };
    let bytes = image(pipeline, &keys)?;
    let path = dir.path().join("damaged.img");
    let verify = |bytes: &[u8]| -> Result<Option<i32>> {
        std::fs::write(&path, bytes)?;
        Ok(Memcr::new()
            .arg("verify")
            .arg(&path)
            .args(&keys)
            .run()?
            .code)
    };
    ensure(verify(&bytes)? == Some(0), || {
        "the undamaged image does not verify".into()
    })?;
    let len = bytes.len() as u64;
    let mut unnoticed = Vec::new();
    for i in 0..N_FLIPS {
        // Dense at both ends, where the structures are, and spread between.
        let at = match i % 3 {
            0 => i * 7,
            1 => len - 1 - i * 5,
            _ => len * i / N_FLIPS,
        };
        let mut damaged = bytes.clone();
        damaged[at as usize] ^= 1 << (i % 8);
        if verify(&damaged)? != Some(11) {
            unnoticed.push(format!("bit {} of byte {at} of {len}", i % 8));
        }
    }
    for i in 0..N_CUTS {
        let keep = if i % 2 == 0 {
            len * i / N_CUTS
        } else {
            len - i * 3
        };
        if verify(&bytes[..keep as usize])? != Some(11) {
            unnoticed.push(format!("cut to {keep} of {len} bytes"));
        }
    }
    ensure(unnoticed.is_empty(), || {
        format!("not answered with code 11: {unnoticed:#?}")
    })
}
