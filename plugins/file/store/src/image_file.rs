//! The file of one image, from its creation without a name to its removal.
//!
//! ```text
//!   Unnamed ─────────── commit: link ─────▶ Named ── remove: unlink if ours
//!   Hidden(.name.id) ── commit: rename ───────┘
//!   to keep:            keep: link, rename, and written on under its name
//! ```
//!
//! Nothing is ever replaced. What lies under `pages-PID.img` may be all that is left of a
//! process: of one with that PID in another container, of one that is held with no memcr
//! beside it. An image that finds the name taken has its id in its own.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{Advice, AtFlags, CWD, RenameFlags, Stat};
use rustix::io::Errno;

use crate::ahead::Ahead;
use crate::existing::{self, Existing};
use crate::write_out::{WriteOut, advise};
use crate::{Cache, Directory, make, sweep};

/// The file of one image. Dropping one that was neither committed nor kept removes it.
#[derive(Debug)]
pub struct ImageFile {
    dir: Directory,
    /// Final name within `dir`.
    name: String,
    file: File,
    /// Device and inode: is the file of that name still ours?
    identity: (u64, u64),
    link: Link,
    is_committed: bool,
    /// Of one that is committed, bytes.
    len_bytes: u64,
    ahead: Ahead,
    write_out: WriteOut,
    /// Length at which the kernel would answer a write with SIGXFSZ, bytes.
    max_len: u64,
    /// The final name if that one is taken.
    other_name: String,
}

/// By what name the file can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    /// By none: it goes with its descriptor.
    Unnamed,
    /// By a temporary one.
    Hidden(String),
    /// By its final one.
    Named,
}

impl ImageFile {
    /// Makes the file of a new image in `dir`, which will become `pages-PID.img`, or
    /// `pages-PID-ID.img` if there is something of that name.
    ///
    /// # Errors
    /// When it cannot be made, or could not be committed later.
    pub fn create(dir: Directory, image: &NewImage, cache: Cache) -> Result<Self> {
        let unnamed = make::unnamed(&dir)?;
        Self::create_from(unnamed, dir, image, cache)
    }

    /// Opens a committed image by its absolute path. Only root or the caller may own
    /// it, and nobody else may be able to write it: what it says becomes memory.
    ///
    /// # Errors
    /// `NOT_FOUND`, `PERMISSION`, `IO`; `INVALID_CONFIG` for what is no file's path.
    pub fn open(locator: &str, cache: Cache) -> Result<Self> {
        let Existing {
            dir,
            name,
            file,
            stat,
        } = existing::open(locator)?;
        advise(&file, Advice::Sequential);
        let (identity, write_out) = (identity(&stat), WriteOut::new(cache));
        let link = Link::Named;
        Ok(Self {
            dir,
            name,
            file,
            identity,
            link,
            is_committed: true,
            len_bytes: stat.st_size as u64,
            ahead: Ahead::none(),
            write_out,
            max_len: 0,
            other_name: String::new(),
        })
    }

    /// Stores all of `data` at `offset`. Any order, any thread.
    ///
    /// # Errors
    /// `NO_SPACE`, `IO`; `INTERNAL` after `commit`.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.is_committed {
            return Err(StageError::new(
                code::INTERNAL,
                format!("{} is written after its commit", self.path()),
            ));
        }
        let what = || {
            format!(
                "write {} bytes at {offset} of the image in {}",
                data.len(),
                self.dir.path()
            )
        };
        let end = offset.saturating_add(data.len() as u64);
        if end > self.max_len {
            return Err(make::over_limit(&what(), self.max_len));
        }
        self.ahead.reach(&self.file, end);
        self.file
            .write_all_at(data, offset)
            .and_then(|()| self.write_out.wrote(&self.file, data.len()))
            .map_err(|e| StageError::io(what(), &e).hint(make::hint_of(&e)))
    }

    /// Reads into `out` from `offset`; less than `out.len()` only at the end.
    ///
    /// # Errors
    /// `IO`.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while len < out.len() {
            match self
                .file
                .read_at(&mut out[len..], offset.saturating_add(len as u64))
            {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let what = format!("read {} bytes at {offset} of {}", out.len(), self.path());
                    return Err(StageError::io(what, &e));
                }
            }
        }
        if self.is_committed {
            let end = offset.saturating_add(len as u64);
            self.write_out.read(&self.file, len, end, self.len_bytes);
        }
        Ok(len)
    }

    /// Length of the image, bytes.
    ///
    /// # Errors
    /// `IO`.
    pub fn len_bytes(&self) -> Result<u64> {
        // A regular file is never longer than i64::MAX.
        Ok(stat(&self.file, &self.path())?.st_size as u64)
    }

    /// Gives the image its name before it is complete: from now on it is found as far as it
    /// was written, and stays. Writes go on, up to [`commit`](Self::commit).
    ///
    /// # Errors
    /// `IO`, `NO_SPACE`.
    pub fn keep(&mut self) -> Result<()> {
        let path = self.path();
        self.publish().map_err(|e| {
            let e = e.into();
            StageError::io(format!("put the image in place as {path}"), &e).hint(make::hint_of(&e))
        })
    }

    /// Gives the complete image of `len` bytes its name, in one step, unless it was
    /// [kept](Self::keep) and has it: whoever looks finds no file of that name, or this
    /// one whole. Should the name have been taken
    /// since [`create`](Self::create), it is another one. With `durable`, it also is
    /// there after a loss of power.
    ///
    /// # Errors
    /// `IO`, `NO_SPACE`; `INTERNAL` if fewer than `len` bytes were written.
    pub fn commit(&mut self, len: u64, durable: bool) -> Result<()> {
        let have = self.len_bytes()?;
        let path = self.path();
        if self.is_committed {
            return Err(StageError::new(
                code::INTERNAL,
                format!("{path} is committed twice"),
            ));
        }
        if have < len {
            let message = format!("{path} is committed with {len} bytes, {have} were written");
            return Err(StageError::new(code::INTERNAL, message));
        }
        let failed = |what: &str, e: &std::io::Error| {
            StageError::io(format!("{what} {path}"), e).hint(make::hint_of(e))
        };
        if have > len || self.ahead.is_behind(len) {
            self.file.set_len(len).map_err(|e| failed("shorten", &e))?;
        }
        if durable {
            self.file.sync_all().map_err(|e| failed("write out", &e))?;
        }
        self.write_out
            .flush(&self.file)
            .map_err(|e| failed("write out", &e))?;
        self.publish()
            .map_err(|e| failed("put the image in place as", &e.into()))?;
        self.is_committed = true;
        self.len_bytes = len;
        if durable {
            rustix::fs::fsync(&self.dir).map_err(|e| failed("write out the name", &e.into()))?;
        }
        // What follows is a restore.
        advise(&self.file, Advice::Sequential);
        Ok(())
    }

    /// Absolute path that the committed image has, or is to have.
    #[must_use]
    pub fn path(&self) -> String {
        self.dir.join(&self.name)
    }

    /// The directory it is in.
    #[must_use]
    pub fn dir(&self) -> &Directory {
        &self.dir
    }

    /// Removes the image, unless somebody removed or replaced it before; its space is
    /// free as soon as nobody else holds it open.
    ///
    /// # Errors
    /// `IO`, `PERMISSION`: the file stays.
    pub fn remove(mut self) -> Result<()> {
        self.unlink()
    }

    /// A new image in the file without a name that `dir` offers, or in one with a name.
    fn create_from(
        unnamed: Option<File>,
        dir: Directory,
        image: &NewImage,
        cache: Cache,
    ) -> Result<Self> {
        let plain = make::name(image);
        let name = match dir.stat(&plain)? {
            None => plain.clone(),
            Some(_) => make::other_name(image),
        };
        let max_len = make::file_limit(image)?;
        let (file, link) = match unnamed {
            Some(file) => (file, Link::Unnamed),
            None => {
                sweep::leftovers(&dir);
                let hidden = make::hidden_name(&plain, &image.id);
                (make::hidden(&dir, &hidden)?, Link::Hidden(hidden))
            }
        };
        sweep::lock(&file);
        let identity = identity(&stat(&file, dir.path())?);
        let (ahead, write_out) = (Ahead::of(&file), WriteOut::new(cache));
        let made = Self {
            dir,
            name,
            file,
            identity,
            link,
            is_committed: false,
            len_bytes: 0,
            ahead,
            write_out,
            max_len,
            other_name: make::other_name(image),
        };
        // Another memcr may have swept between making and locking.
        made.ensure_named()?;
        // Now that dropping it would remove it.
        make::ensure_private(&made.file, made.dir.path())?;
        Ok(made)
    }

    /// Fails if the name that the file has is not there any more, or another file's.
    fn ensure_named(&self) -> Result<()> {
        let Link::Hidden(name) = &self.link else {
            return Ok(());
        };
        if self
            .dir
            .stat(name)?
            .is_some_and(|found| identity(&found) == self.identity)
        {
            return Ok(());
        }
        let message = format!("{} was taken away while it was made", self.dir.join(name));
        Err(StageError::new(code::IO, message).hint("try again"))
    }

    /// Gives the file its final name, or the other one if somebody was faster.
    fn publish(&mut self) -> rustix::io::Result<()> {
        if self.link == Link::Named {
            return Ok(());
        }
        if self.name_as(&self.name) == Err(Errno::EXIST) {
            self.name.clone_from(&self.other_name);
            self.name_as(&self.name)?;
        }
        self.link = Link::Named;
        Ok(())
    }

    /// Gives the file this name. Nothing of that name is touched, nor followed.
    fn name_as(&self, name: &str) -> rustix::io::Result<()> {
        match &self.link {
            Link::Unnamed => self.link_as(name),
            Link::Hidden(hidden) => self.rename(hidden, name),
            Link::Named => Ok(()),
        }
    }

    fn rename(&self, hidden: &str, name: &str) -> rustix::io::Result<()> {
        let dir = &self.dir;
        match rustix::fs::renameat_with(dir, hidden, dir, name, RenameFlags::NOREPLACE) {
            // NFS, and others that leave this to their server.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            done => return done,
        }
        match rustix::fs::linkat(dir, hidden, dir, name, AtFlags::empty()) {
            Ok(()) => {
                // What stays is swept as soon as the image is closed.
                let _ = rustix::fs::unlinkat(dir, hidden, AtFlags::empty());
                Ok(())
            }
            // No links here either: that leaves a look, and a moment after it.
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => rustix::fs::renameat(dir, hidden, dir, name),
                    Ok(_) => Err(Errno::EXIST),
                    Err(e) => Err(e),
                }
            }
            Err(e) => Err(e),
        }
    }

    fn link_as(&self, name: &str) -> rustix::io::Result<()> {
        use std::os::fd::AsRawFd;
        let by_number = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match rustix::fs::linkat(CWD, by_number, &self.dir, name, AtFlags::SYMLINK_FOLLOW) {
            // No /proc here: this way takes CAP_DAC_READ_SEARCH, or Linux 6.10.
            Err(Errno::NOENT) => {
                rustix::fs::linkat(&self.file, "", &self.dir, name, AtFlags::EMPTY_PATH)
            }
            done => done,
        }
    }

    /// Takes away the name the file has, if it still is the file's.
    fn unlink(&mut self) -> Result<()> {
        let name = match std::mem::replace(&mut self.link, Link::Unnamed) {
            Link::Unnamed => return Ok(()),
            Link::Hidden(name) => name,
            Link::Named => self.name.clone(),
        };
        if self
            .dir
            .stat(&name)?
            .is_none_or(|found| identity(&found) != self.identity)
        {
            return Ok(());
        }
        match rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(StageError::io(
                format!("remove the image {}", self.dir.join(&name)),
                &e.into(),
            )),
        }
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if self.link == Link::Named {
            self.write_out.drop_clean(&self.file);
        } else {
            // Nobody is left to tell; the name is hidden and carries the image's id.
            let _ = self.unlink();
        }
    }
}

pub(crate) fn stat(file: &impl AsFd, path: &str) -> Result<Stat> {
    rustix::fs::fstat(file).map_err(|e| StageError::io(format!("stat {path}"), &e.into()))
}

/// Device and inode.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
