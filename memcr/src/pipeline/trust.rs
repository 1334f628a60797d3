//! Whose code runs inside memcr: the owner and mode of a plugin's file.
//!
//! A plugin runs with every right of memcr, often root's. So nobody but root and the
//! caller may have been able to write it:
//!
//! * the file is owned by root or the caller, and not writable by group or others. Looked
//!   up on the opened file, not on its name, and the name must still lead to the same
//!   file after it was loaded;
//! * where memcr has more rights than its caller (file capabilities), root alone is
//!   trusted: the caller's own plugin would get rights that the caller has not;
//! * the same goes for every directory above it, but that a sticky one (`/tmp`) may be
//!   writable by all: what is in it can be taken away by its owner and that of the directory
//!   alone. Who owns a directory, or may write it, could swap what is in it between check and
//!   load, and code runs as soon as a file is loaded, before it can be looked at again.
//!
//! Rejected: loading through `/proc/self/fd/N`, which needs no trust in directories, but names
//! every plugin so in `maps` of debuggers, breaks `$ORIGIN`, and lets the loader take two
//! plugins for one when a descriptor number comes again.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::pipeline::LoadError;
use crate::sys;

const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Device and inode of a file.
pub(super) type FileId = (u64, u64);

/// Checks an absolute path without links in it, and answers which file it led to.
pub(super) fn check(path: &Path) -> Result<FileId, LoadError> {
    let is_secure = sys::is_secure();
    for dir in path.ancestors().skip(1) {
        check_dir(path, dir, is_secure)?;
    }
    // O_PATH: nothing is opened that could block (a FIFO) or act (a device).
    let meta = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .and_then(|file| file.metadata())
        .map_err(|e| refuse(path, e.to_string(), ""))?;
    if !meta.is_file() {
        return Err(refuse(path, "it is not a regular file", ""));
    }
    check_owner(meta.uid(), is_secure)
        .map_err(|detail| refuse(path, detail, "install a copy that root owns"))?;
    if meta.mode() & GROUP_OR_OTHERS_WRITE != 0 {
        let detail = format!(
            "its mode {:04o} lets group or others write it",
            meta.mode() & 0o7777
        );
        return Err(refuse(
            path,
            detail,
            "chmod go-w it, after making sure that it is what you installed",
        ));
    }
    Ok((meta.dev(), meta.ino()))
}

/// The reason why a file of `owner` is refused.
fn check_owner(owner: u32, is_secure: bool) -> Result<(), String> {
    let caller = rustix::process::geteuid().as_raw();
    match (owner, is_secure) {
        (0, _) => Ok(()),
        (_, true) => Err(format!(
            "it is owned by uid {owner}, not root, and memcr has rights here that its caller has not"
        )),
        (_, false) if owner == caller => Ok(()),
        (_, false) => Err(format!(
            "it is owned by uid {owner}, neither root nor the caller (uid {caller})"
        )),
    }
}

/// Which file the path leads to now.
pub(super) fn identify(path: &Path) -> Option<FileId> {
    path.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

fn check_dir(path: &Path, dir: &Path, is_secure: bool) -> Result<(), LoadError> {
    let refuse = |detail: String, hint| {
        let detail = format!("its directory {}: {detail}", dir.display());
        refuse(path, detail, hint)
    };
    // Not through a link: there was none when the path was found, and who can make one could
    // let it lead elsewhere at any time.
    let meta = dir
        .symlink_metadata()
        .map_err(|e| refuse(e.to_string(), ""))?;
    if !meta.is_dir() {
        return Err(refuse("it is no directory any more".into(), "try again"));
    }
    check_owner(meta.uid(), is_secure).map_err(|detail| {
        let hint = "install the plugin in a directory that root owns, as are all above it";
        refuse(detail, hint)
    })?;
    if meta.mode() & GROUP_OR_OTHERS_WRITE != 0 && meta.mode() & STICKY == 0 {
        let mode = meta.mode() & 0o7777;
        let detail = format!("its mode {mode:04o} lets group or others write it");
        let hint = "chmod go-w the directory, or install the plugin elsewhere";
        return Err(refuse(detail, hint));
    }
    Ok(())
}

fn refuse(path: &Path, detail: impl Into<String>, hint: &str) -> LoadError {
    LoadError {
        what: format!("cannot load {}", path.display()),
        detail: detail.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, chown};

    fn mode(path: &Path, mode: u32) {
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn modes_that_let_others_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("plugin.so");
        write(&file, b"").unwrap();
        for good in [0o644, 0o755, 0o400] {
            mode(&file, good);
            check(&file).unwrap();
        }
        for bad in [0o664, 0o646, 0o777] {
            mode(&file, bad);
            let error = check(&file).unwrap_err();
            assert!(
                error.detail.contains(&format!("its mode {bad:04o}")),
                "{error}"
            );
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn directories_that_others_write_are_refused_unless_sticky() {
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().canonicalize().unwrap().join("outer");
        let inner = outer.join("inner");
        create_dir(&outer).unwrap();
        create_dir(&inner).unwrap();
        mode(&inner, 0o755);
        let file = inner.join("plugin.so");
        write(&file, b"").unwrap();
        mode(&file, 0o644);
        let modes = [
            (0o755, false),
            (0o777, true),
            (0o775, true),
            (0o1777, false),
        ];
        for (outer_mode, refused) in modes {
            mode(&outer, outer_mode);
            assert_eq!(check(&file).is_err(), refused, "{outer_mode:o}");
        }
        let fifo = inner.join("fifo.so");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            0o644.into(),
            0,
        )
        .unwrap();
        assert!(
            check(&fifo)
                .unwrap_err()
                .detail
                .contains("not a regular file")
        );
        assert!(
            check(&inner)
                .unwrap_err()
                .detail
                .contains("not a regular file")
        );
    }

    #[test]
    fn a_directory_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        create_dir(top.join("there")).unwrap();
        mode(&top.join("there"), 0o755);
        let file = top.join("there/plugin.so");
        write(&file, b"").unwrap();
        mode(&file, 0o644);
        check(&file).unwrap();
        std::os::unix::fs::symlink("there", top.join("swapped")).unwrap();
        let error = check(&top.join("swapped/plugin.so")).unwrap_err();
        assert!(error.detail.ends_with("no directory any more"), "{error}");
    }

    #[test]
    fn root_alone_is_trusted_where_we_have_more_rights_than_the_caller() {
        let caller = rustix::process::geteuid().as_raw();
        let other = caller + 12345;
        for is_secure in [false, true] {
            assert!(check_owner(0, is_secure).is_ok());
            assert!(check_owner(other, is_secure).is_err());
            assert_eq!(
                check_owner(caller, is_secure).is_err(),
                is_secure && caller != 0
            );
        }
    }

    #[test]
    fn files_of_somebody_else_are_refused() {
        // Only root can give a file away; without root there is nothing to see.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().canonicalize().unwrap().join("plugin.so");
        write(&file, b"").unwrap();
        mode(&file, 0o644);
        chown(&file, Some(12345), None).unwrap();
        let error = check(&file).unwrap_err();
        assert_eq!(
            error.detail,
            "it is owned by uid 12345, neither root nor the caller (uid 0)"
        );
    }
    #[test]
    fn directories_of_somebody_else_are_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().canonicalize().unwrap().join("outer");
        let inner = outer.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        mode(&outer, 0o755);
        mode(&inner, 0o755);
        let file = inner.join("plugin.so");
        write(&file, b"").unwrap();
        mode(&file, 0o644);
        check(&file).unwrap();
        // Sticky or not: its owner may take away what is in it.
        for bits in [0o755, 0o1777] {
            chown(&outer, Some(12345), None).unwrap();
            mode(&outer, bits);
            let error = check(&file).unwrap_err();
            let owned = "outer: it is owned by uid 12345, neither root nor the caller (uid 0)";
            assert!(error.detail.ends_with(owned), "{error}");
            assert!(error.hint.contains("that root owns"), "{error}");
        }
    }
}
