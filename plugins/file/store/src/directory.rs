//! The directory that an image lives in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// An open directory. All names are looked up in it, not along its path: replacing the
/// path meanwhile moves nothing.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: String,
}

impl Directory {
    /// Opens a directory by its path, which may lead through symbolic links: whoever
    /// names it answers for it. What is created or opened in it follows none.
    ///
    /// # Errors
    /// `NOT_FOUND`, `PERMISSION`, `IO`; `INVALID_CONFIG` if the path cannot be a locator.
    pub fn open(path: &str) -> Result<Self> {
        let failed = |e: std::io::Error| {
            let hint = match e.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    "set `dir` to a directory that you may write"
                }
                _ => "create it, or set `dir` to one that exists",
            };
            StageError::io(format!("open the directory {path}"), &e).hint(hint)
        };
        let real = std::fs::canonicalize(path).map_err(failed)?;
        let real = real.into_os_string().into_string().map_err(|real| {
            let message = format!(
                "the directory {path} is {} in full: not UTF-8",
                real.display()
            );
            StageError::new(code::INVALID_CONFIG, message)
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&real, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self { fd, path: real })
    }

    /// Absolute path without symbolic links, as it was when the directory was opened.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Absolute path of `name` in this directory.
    #[must_use]
    pub fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.path.trim_end_matches('/'))
    }

    /// Bytes that this process can still store here; `None` where the file system does
    /// not know (a tmpfs without a limit counts no blocks at all).
    ///
    /// # Errors
    /// `IO`.
    pub fn free_len(&self) -> Result<Option<u64>> {
        let stat = rustix::fs::fstatvfs(&self.fd).map_err(|e| {
            StageError::io(
                format!("ask for the free space in {}", self.path),
                &e.into(),
            )
        })?;
        // The blocks kept back for root are root's to use.
        let blocks = if rustix::process::geteuid().is_root() {
            stat.f_bfree
        } else {
            stat.f_bavail
        };
        Ok((stat.f_blocks != 0).then(|| blocks.saturating_mul(stat.f_frsize)))
    }

    /// Makes sure that `name` is free here or may be replaced by a file.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for a directory of that name, `PERMISSION` for a file of
    /// somebody else in a sticky directory, `IO`.
    pub fn check_replaceable(&self, name: &str) -> Result<()> {
        let Some(stat) = self.stat(name)? else {
            return Ok(());
        };
        let path = self.join(name);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let message = format!("{path} is a directory: the image cannot take its place");
            return Err(StageError::new(code::INVALID_CONFIG, message)
                .hint("remove it, or set another `dir`"));
        }
        let euid = rustix::process::geteuid();
        let dir = rustix::fs::fstat(&self.fd)
            .map_err(|e| StageError::io(format!("stat {}", self.path), &e.into()))?;
        let sticky = Mode::from_raw_mode(dir.st_mode).contains(Mode::SVTX);
        let owned = [stat.st_uid, dir.st_uid].contains(&euid.as_raw());
        if sticky && !owned && !euid.is_root() {
            let message = format!(
                "{path} belongs to uid {}: the image cannot take its place",
                stat.st_uid
            );
            return Err(StageError::new(code::PERMISSION, message).hint("set another `dir`"));
        }
        Ok(())
    }

    /// What is known of `name` itself, a symbolic link included; `None` if it is absent.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(StageError::io(
                format!("stat {}", self.join(name)),
                &e.into(),
            )),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
