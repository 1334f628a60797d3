//! What a killed memcr left behind: images under a temporary name.
//!
//! Every new image is locked (`flock`) as long as it is open. So a file of a temporary
//! name that can be locked belongs to nobody any more, and the next memcr that has to
//! use such a name in that directory, or that looks there for an image that was never
//! finished, takes it away.

use std::fs::File;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};

use crate::Directory;
use crate::image_file::identity;

/// Locks a new image for as long as it is open. A file system without locks keeps its
/// leftovers: nothing can be locked there by a sweep either.
pub(crate) fn lock(file: &File) {
    let _ = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
}

/// Removes the temporary names in `dir` that no living memcr uses. What fails is left:
/// this is a service to the disk, nothing depends on it.
pub(crate) fn leftovers(dir: &Directory) {
    let Ok(entries) = Dir::read_from(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if let Some(name) = entry
            .file_name()
            .to_str()
            .ok()
            .filter(|name| is_temporary(name))
        {
            remove_if_dead(dir, name);
        }
    }
}

/// `.pages-PID.img.ID` with an ID of 32 digits, as `make::hidden_name` writes it.
fn is_temporary(name: &str) -> bool {
    let parts = name
        .strip_prefix(".pages-")
        .and_then(|rest| rest.split_once(".img."));
    parts.is_some_and(|(pid, id)| {
        !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
            && id.len() == 32
            && id.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn remove_if_dead(dir: &Directory, name: &str) -> Option<()> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if !ours || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Locked, so its owner is dead, or committed it and this name is another file's.
    let still = dir.stat(name).ok()??;
    if identity(&still) == identity(&stat) {
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_temporary() {
        let id = "0123456789abcdef0123456789abcdef";
        assert!(is_temporary(&format!(".pages-42.img.{id}")));
        for other in [
            "pages-42.img".to_owned(),
            format!(".pages-.img.{id}"),
            format!(".pages-x.img.{id}"),
            format!(".pages-42.img.{id}0"),
            format!(".pages-42.img.{}", id.replace('a', "g")),
            format!("pages-42.img.{id}"),
        ] {
            assert!(!is_temporary(&other), "{other}");
        }
    }
}
