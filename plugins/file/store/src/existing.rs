//! Opening a committed image: which files are believed.

use std::fs::File;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::image_file::stat;
use crate::{Directory, sweep};

/// A file that may be an image.
pub(crate) struct Existing {
    pub(crate) dir: Directory,
    pub(crate) name: String,
    pub(crate) file: File,
    pub(crate) stat: Stat,
}

/// Opens the file at an absolute path. What it says becomes memory: only root or the
/// caller may own it, and nobody else may be able to write it.
pub(crate) fn open(locator: &str) -> Result<Existing> {
    let unusable = |why| StageError::new(code::INVALID_CONFIG, format!("{locator} {why}"));
    let (parent, name) =
        split(locator).ok_or_else(|| unusable("is no absolute path of an image"))?;
    let dir = Directory::open(parent)?;
    // NONBLOCK: a FIFO of that name must fail below, not hang here.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => {
            // Who asks for an image that was never finished asks for what is left of it.
            sweep::leftovers(&dir);
            StageError::io(format!("open the image {locator}"), &e.into())
        }
        Errno::LOOP => unusable("is a symbolic link, not an image"),
        e => StageError::io(format!("open the image {locator}"), &e.into()),
    })?;
    let file = File::from(file);
    let stat = stat(&file, locator)?;
    check_trusted(locator, &stat)?;
    Ok(Existing {
        dir,
        name: name.to_owned(),
        file,
        stat,
    })
}

/// Directory and name of an absolute path that can be a file's.
fn split(locator: &str) -> Option<(&str, &str)> {
    let (parent, name) = locator.rsplit_once('/')?;
    let usable = locator.starts_with('/') && !matches!(name, "" | "." | "..");
    usable.then_some((if parent.is_empty() { "/" } else { parent }, name))
}

fn check_trusted(locator: &str, stat: &Stat) -> Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(StageError::new(
            code::INVALID_CONFIG,
            format!("{locator} is not a regular file"),
        ));
    }
    let euid = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != euid {
        let message = format!(
            "the image {locator} belongs to uid {}, neither root nor the caller ({euid})",
            stat.st_uid
        );
        return Err(StageError::new(code::PERMISSION, message));
    }
    if stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        let message =
            format!("the image {locator} has mode {mode:04o}: others than its owner may write it");
        return Err(
            StageError::new(code::PERMISSION, message).hint("images are made with mode 0600")
        );
    }
    Ok(())
}
