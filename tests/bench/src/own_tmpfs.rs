//! A tmpfs as memcr mounts one for its images, for these and for the limits.

use std::ffi::CString;
use std::path::Path;

use memcr_harness::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A mount, until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnTmpfs(TempDir);

impl OwnTmpfs {
    /// Mounts one. `None`: we may not, or the kernel has no huge pages for it.
    ///
    /// # Errors
    /// When there is no directory to mount it at, or it fails for another reason.
    pub(crate) fn mount() -> Result<Option<Self>> {
        let dir = tempfile::Builder::new()
            .prefix("memcr-bench-")
            .tempdir()
            .context("a directory to mount a tmpfs at")?;
        let options = CString::new("mode=0700,huge=within_size").context("the options")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount(
            "memcr-bench",
            dir.path(),
            "tmpfs",
            flags,
            options.as_c_str(),
        ) {
            Ok(()) => Ok(Some(Self(dir))),
            Err(Errno::PERM | Errno::ACCESS | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno).context("mount a tmpfs"),
        }
    }

    /// Where.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for OwnTmpfs {
    fn drop(&mut self) {
        // Nobody is left to tell; the directory stays, and shows it.
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}
