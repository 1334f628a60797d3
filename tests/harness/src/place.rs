//! Where the programs under test are.
//!
//! | given                | memcr                       | victim              | stages                      |
//! |----------------------|-----------------------------|---------------------|-----------------------------|
//! | `MEMCR_TEST_PREFIX`  | `PREFIX/bin/memcr`          | `PREFIX/bin/victim` | found by memcr itself       |
//! | `MEMCR_BIN`          | that file                   | beside the tests    | the directory of that file  |
//! | neither              | beside the tests            | beside the tests    | beside the tests            |
//!
//! `memcr-faults`, memcr with its fault points, is beside memcr in a prefix, else beside
//! the tests; `cargo xtask test` puts it there. `memcr-client` is beside memcr in a prefix,
//! else beside the tests, and so is the client library.

use crate::{Context, Result, Trouble};
use std::path::{Path, PathBuf};

/// The memcr under test.
///
/// # Errors
/// When it has not been built.
pub fn memcr() -> Result<PathBuf> {
    if let Some(prefix) = prefix() {
        return existing(prefix.join("bin/memcr"));
    }
    match std::env::var_os("MEMCR_BIN") {
        Some(path) => existing(PathBuf::from(path)),
        None => existing(build_dir()?.join("memcr")),
    }
}

/// memcr with its fault points.
///
/// # Errors
/// When it has not been built.
pub fn memcr_faults() -> Result<PathBuf> {
    match prefix() {
        Some(prefix) => existing(prefix.join("bin/memcr-faults")),
        None => existing(build_dir()?.join("memcr-faults")),
    }
}

/// The client of the daemon.
///
/// # Errors
/// When it has not been built.
pub fn memcr_client() -> Result<PathBuf> {
    match prefix() {
        Some(prefix) => existing(prefix.join("bin/memcr-client")),
        None => existing(build_dir()?.join("memcr-client")),
    }
}

/// What a C program that links the client library is compiled with: the directory of the
/// library and that of its header.
///
/// # Errors
/// When it has not been built.
pub fn client_library() -> Result<(PathBuf, PathBuf)> {
    let (lib, include) = match prefix() {
        Some(prefix) => (prefix.join("lib"), prefix.join("include")),
        None => {
            let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../memcr/client/c");
            (build_dir()?, sources.join("include"))
        }
    };
    existing(lib.join("libmemcrclient.so"))?;
    existing(include.join("libmemcrclient.h"))?;
    Ok((lib, include))
}

/// The victim program.
///
/// # Errors
/// When it has not been built.
pub fn victim() -> Result<PathBuf> {
    match prefix() {
        Some(prefix) => existing(prefix.join("bin/victim")),
        None => existing(build_dir()?.join("victim")),
    }
}

/// What memcr must be told about where its stages are; `None`: it finds them itself.
///
/// # Errors
/// When the test program does not know where it is.
pub fn stages() -> Result<Option<PathBuf>> {
    if prefix().is_some() {
        return Ok(None);
    }
    let parent = |path: PathBuf| path.parent().map(Path::to_owned);
    match std::env::var_os("MEMCR_BIN").and_then(|path| parent(PathBuf::from(path))) {
        Some(dir) => Ok(Some(dir)),
        None => build_dir().map(Some),
    }
}

/// The stage that fails on demand; not part of an installation.
///
/// # Errors
/// When it has not been built.
pub fn faulty_stage() -> Result<PathBuf> {
    existing(build_dir()?.join("libmemcr_stage_faulty.so"))
}

/// A directory for files of tests, on a disk where the machine has one.
#[must_use]
pub fn scratch() -> PathBuf {
    std::env::temp_dir()
}

/// The state directory of tests that do not care. Their targets have pids of their own.
///
/// # Errors
/// When it cannot be made.
pub fn state_dir() -> Result<PathBuf> {
    let dir = scratch().join("memcr-e2e-state");
    std::fs::create_dir_all(&dir).context(dir.display())?;
    Ok(dir)
}

fn prefix() -> Option<PathBuf> {
    std::env::var_os("MEMCR_TEST_PREFIX").map(PathBuf::from)
}

/// The directory that cargo builds into: ours, or the one above `deps`.
fn build_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find the test program itself")?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    let above = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(above.to_owned())
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(Trouble::Failed(format!(
        "{} does not exist: `cargo xtask test` builds everything",
        path.display()
    )))
}
