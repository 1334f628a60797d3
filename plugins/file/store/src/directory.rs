//! The directory that an image lives in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

/// `f_type` of a tmpfs (linux/magic.h).
const TMPFS_MAGIC: u32 = 0x0102_1994;
/// `f_type` of a ramfs (linux/magic.h).
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// A kind of file system, by where it keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// In RAM and swap.
    Tmpfs,
    /// In RAM, without any limit.
    Ramfs,
    /// Elsewhere, as far as this number (`f_type` of statfs(2)) tells.
    Other(u32),
}

impl Medium {
    /// Whether what is written there takes RAM for as long as it is there.
    #[must_use]
    pub fn is_ram(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Ramfs)
    }
}

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

    /// What is written here is kept in.
    ///
    /// # Errors
    /// `IO`.
    pub fn medium(&self) -> Result<Medium> {
        let stat = rustix::fs::fstatfs(&self.fd).map_err(|e| {
            StageError::io(
                format!("ask for the file system of {}", self.path),
                &e.into(),
            )
        })?;
        // The type of `f_type` differs between architectures; magic numbers are 32 bits.
        Ok(match stat.f_type as u32 {
            TMPFS_MAGIC => Medium::Tmpfs,
            RAMFS_MAGIC => Medium::Ramfs,
            other => Medium::Other(other),
        })
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
