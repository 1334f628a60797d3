//! The lock of a session: one memcr per target, and none means an orphan.
//!
//! An open file description lock (fcntl_locking(2)): the kernel releases it when we die,
//! a plugin that opens and closes files cannot, and others can ask for it without taking
//! it for a moment, which would make somebody's honest attempt fail.
//!
//! ```text
//!   A: has it … unlinks the file … closes it
//!   B:      opens the file ─────────────────── locks it: a file that has no name any more
//!   C:                             makes the file anew, locks it
//! ```
//!
//! So B looks, once it has the lock, whether the name still means the file it has locked.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

use super::StateDir;

/// The lock of one target, until it is dropped: then its file is gone too.
#[derive(Debug)]
pub(super) struct Lock {
    dir: StateDir,
    name: String,
    /// Closed last: only then may others have it.
    file: std::fs::File,
}

/// What came of an attempt to lock.
pub(super) enum Taken {
    /// It is ours.
    Ours(Lock),
    /// Somebody else has it, this process if it says so.
    Theirs(Option<i32>),
}

impl Lock {
    /// Takes the lock of process `pid`, if it is free.
    pub(super) fn take(dir: &StateDir, pid: i32) -> io::Result<Taken> {
        Self::take_named(dir, name(pid))
    }

    /// Takes a lock by the name of its file, if it is free.
    pub(super) fn take_named(dir: &StateDir, name: String) -> io::Result<Taken> {
        loop {
            let file = open(dir, &name, OFlags::RDWR | OFlags::CREATE)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Ok(_) => {}
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                    return Ok(Taken::Theirs(read_pid(file)));
                }
                Err(error) => return Err(error.into()),
            }
            if is_named(dir, &name, &file)? {
                let lock = Self {
                    dir: dir.clone(),
                    name,
                    file: file.into(),
                };
                lock.sign();
                return Ok(Taken::Ours(lock));
            }
        }
    }

    /// Who has the lock of process `pid`: `Some(None)` if that is not known.
    pub(super) fn owner(dir: &StateDir, pid: i32) -> io::Result<Option<Option<i32>>> {
        let file = match open(dir, &name(pid), OFlags::RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut asked = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        let is_free = i32::from(asked.l_type) == libc::F_UNLCK;
        Ok((!is_free).then(|| read_pid(file)))
    }

    /// Writes our pid into the file, for messages only.
    fn sign(&self) {
        let _ = self.file.set_len(0);
        let _ = writeln!(&self.file, "{}", std::process::id());
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // One that stays behind is not locked, and is taken by whoever comes next.
        let _ = unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

/// The file of the lock of process `pid`.
pub(super) fn name(pid: i32) -> String {
    format!("{pid}.lock")
}

fn open(dir: &StateDir, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

fn is_named(dir: &StateDir, name: &str, file: impl AsFd) -> io::Result<bool> {
    let ours = fstat(file)?;
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A few bytes at the most: the file says nothing that anybody must believe.
fn read_pid(file: OwnedFd) -> Option<i32> {
    let mut text = String::new();
    let file = std::fs::File::from(file);
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// B and C of the picture above.
    #[test]
    fn a_file_that_lost_its_name_is_not_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::open(Some(root.path())).unwrap();
        let file = open(&dir, "1.lock", OFlags::RDWR | OFlags::CREATE).unwrap();
        assert!(is_named(&dir, "1.lock", &file).unwrap());
        unlinkat(&dir, "1.lock", AtFlags::empty()).unwrap();
        assert!(!is_named(&dir, "1.lock", &file).unwrap());
        let anew = open(&dir, "1.lock", OFlags::RDWR | OFlags::CREATE).unwrap();
        assert!(!is_named(&dir, "1.lock", &file).unwrap());
        assert!(is_named(&dir, "1.lock", &anew).unwrap());
    }
}
