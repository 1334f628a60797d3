//! The state directory: where journals are, and who may have put them there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::fs::{fstat, mkdir, open, openat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::lock::{self, Lock, Taken};
use super::record::{Reached, Unread};
use super::{Journal, JournalError, Record, Standing, State};
use crate::fault;
use crate::sys::{self, last_words};

/// Longest journal, bytes. One of 60,000 mappings, each a range of the guard and one of
/// huge pages, has 4 MB.
pub(super) const MAX_LEN_BYTES: u64 = 32 << 20;

type Result<T> = std::result::Result<T, JournalError>;

/// A state directory that only we and root may write.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    /// All files are opened below it: whatever becomes of the path, they stay together.
    fd: Arc<OwnedFd>,
}

/// A journal as a look into the directory finds it.
#[derive(Debug)]
pub struct Entry {
    /// The target, after the name of the file.
    pub pid: i32,
    /// What the journal says, or what is wrong with it.
    pub record: Result<Record>,
    /// Somebody has locked it: the memcr with this pid, if known.
    pub owner: Option<Option<i32>>,
    /// Whether there still is the process that the record is of.
    pub standing: Standing,
}

/// What keeps other daemons from a state directory.
#[derive(Debug)]
pub struct DaemonLock(#[expect(dead_code, reason = "held, not read")] Lock);

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl StateDir {
    /// Where journals are unless the user says otherwise. Where we have more rights than
    /// our caller, her environment decides nothing.
    #[must_use]
    pub fn default_path() -> PathBuf {
        let uid = geteuid().as_raw();
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !sys::is_secure());
        // That of somebody else, as `su` leaves it in the environment, is not for us.
        let is_ours = |dir: &PathBuf| dir.metadata().is_ok_and(|meta| meta.uid() == uid);
        path_for(uid, runtime_dir.map(PathBuf::from).filter(is_ours))
    }

    /// Opens `explicit`, else the directory of this user; makes it where there is none.
    ///
    /// # Errors
    /// [`JournalError::Unfit`]: somebody else could write there; [`JournalError::Io`].
    pub fn open(explicit: Option<&Path>) -> Result<Self> {
        let path = explicit.map_or_else(Self::default_path, Path::to_owned);
        match mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Self::open_path(path),
            Err(error) => Err(io_error("make the state directory", &path, error.into())),
        }
    }

    /// As [`StateDir::open`], but `None` where there is no such directory yet: then
    /// there are no journals either.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub fn find(explicit: Option<&Path>) -> Result<Option<Self>> {
        let path = explicit.map_or_else(Self::default_path, Path::to_owned);
        match Self::open_path(path) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins the journal of a session.
    ///
    /// # Errors
    /// [`JournalError::Held`], `Busy`: another session has the process; `Gone`: a journal
    /// of a process that had its pid is in the way, and is handed over; `Unknown`,
    /// `Damaged`, `TooLong`, `Io`.
    pub fn begin(&self, record: Record) -> Result<Journal> {
        let pid = record.pid;
        let mut lock = self.lock(pid)?;
        if let Some(record) = self.read(pid)? {
            let journal = self.found(record, lock)?;
            // One that died before it had touched anything leaves nothing to be finished.
            if journal.record.state != State::Storing {
                let record = Box::new(journal.record.clone());
                return Err(JournalError::Held { record });
            }
            lock = journal.lock;
        }
        self.remove_file(layout_name(pid))?;
        self.write(&record)?;
        last_words::say(record.last_words());
        Ok(Journal {
            dir: self.clone(),
            record,
            lock,
        })
    }

    /// Takes over the session of process `pid` that nobody works on any more.
    ///
    /// # Errors
    /// [`JournalError::NotHeld`], `NoProcess`, `Busy`; `Gone`, with the journal; `Unknown`, `Damaged`,
    /// `Io`.
    pub fn adopt(&self, pid: i32) -> Result<Journal> {
        let not_held = || JournalError::not_held(pid, &self.path);
        // Somebody who is about to begin must not find it locked for nothing. What was left
        // behind without a journal goes with our lock.
        let is_there = |name| statat(self, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let names = [name(pid), new_name(pid), layout_name(pid), lock::name(pid)];
        if !names.into_iter().any(is_there) {
            return Err(not_held());
        }
        let lock = self.lock(pid)?;
        match self.read(pid)? {
            Some(record) => self.found(record, lock),
            None => {
                self.unlink(pid)?;
                Err(not_held())
            }
        }
    }

    /// Removes what memcr left that died while it began or ended a session: locks, and
    /// records that never came to be one.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn sweep(&self) -> Result<()> {
        for pid in self.pids(leftover_pid)? {
            // Adopting it takes away what is no session; anything else stays as it is.
            if let Err(error @ JournalError::Io { .. }) = self.adopt(pid) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Looks at every journal, locking none. Sorted by pid.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let pids = self.pids(|file| pid_of(file, ".json"))?;
        Ok(pids.into_iter().filter_map(|pid| self.look(pid)).collect())
    }

    /// The journal of process `pid`, looked at as by [`StateDir::list`]; `None`: there is none.
    #[must_use]
    pub fn entry(&self, pid: i32) -> Option<Entry> {
        self.look(pid)
    }

    /// Whether there is a journal of process `pid`.
    #[must_use]
    pub fn has(&self, pid: i32) -> bool {
        statat(self, name(pid), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The processes of which there is a journal.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the directory cannot be read.
    pub fn held_pids(&self) -> Result<BTreeSet<i32>> {
        self.pids(|file| pid_of(file, ".json"))
    }

    /// Keeps every other daemon from working with this directory, until it is dropped.
    ///
    /// # Errors
    /// [`JournalError::Daemon`]: there is one; `Io`.
    pub fn lock_for_daemon(&self) -> Result<DaemonLock> {
        match Lock::take_named(self, "daemon.lock".into()) {
            Ok(Taken::Ours(lock)) => Ok(DaemonLock(lock)),
            Ok(Taken::Theirs(by)) => Err(JournalError::Daemon {
                dir: self.path.clone(),
                by,
            }),
            Err(error) => Err(io_error("lock", &self.path, error)),
        }
    }

    /// The pids that `pid_of` finds in the names of files, in their order.
    fn pids(&self, pid_of: impl Fn(&str) -> Option<i32>) -> Result<BTreeSet<i32>> {
        let unreadable = |error: Errno| io_error("read", &self.path, error.into());
        let mut pids = BTreeSet::new();
        for file in Dir::read_from(self).map_err(unreadable)? {
            let file = file.map_err(unreadable)?;
            pids.extend(file.file_name().to_str().ok().and_then(&pid_of));
        }
        Ok(pids)
    }

    /// `None`: it has just been removed.
    fn look(&self, pid: i32) -> Option<Entry> {
        let record = self.read(pid).transpose()?;
        let owner = Lock::owner(self, pid).unwrap_or_else(|error| {
            tracing::warn!("cannot tell whether a memcr works on process {pid}: {error}");
            Some(None)
        });
        let standing = record.as_ref().map_or_else(
            |_| Standing::Unknown("its journal is not readable".into()),
            Record::standing,
        );
        Some(Entry {
            pid,
            record,
            owner,
            standing,
        })
    }

    /// A journal that was there, if its process still is.
    fn found(&self, record: Record, lock: Lock) -> Result<Journal> {
        let pid = record.pid;
        let standing = record.standing();
        let journal = Journal {
            dir: self.clone(),
            record,
            lock,
        };
        match standing {
            Standing::Same => Ok(journal),
            Standing::Gone => Err(JournalError::Gone {
                journal: Box::new(journal),
            }),
            Standing::Unknown(why) => Err(JournalError::Unknown { pid, why }),
        }
    }

    fn lock(&self, pid: i32) -> Result<Lock> {
        match Lock::take(self, pid) {
            Ok(Taken::Ours(lock)) => Ok(lock),
            Ok(Taken::Theirs(by)) => Err(JournalError::Busy { pid, by }),
            Err(error) => Err(io_error("lock a journal in", &self.path, error)),
        }
    }

    fn open_path(path: PathBuf) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = open(&path, flags, Mode::empty());
        let fd = opened.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => unfit(
                &path,
                "is no directory (symbolic links are not followed)".into(),
            ),
            error => io_error("open the state directory", &path, error.into()),
        })?;
        let meta = fstat(&fd)
            .map_err(|error| io_error("open the state directory", &path, error.into()))?;
        if let Some(why) = untrusted(&meta) {
            return Err(unfit(&path, why));
        }
        Ok(Self {
            path,
            fd: Arc::new(fd),
        })
    }

    /// The record of process `pid`; `None`: there is none.
    fn read(&self, pid: i32) -> Result<Option<Record>> {
        let path = self.path.join(name(pid));
        let damaged = |why| JournalError::Damaged {
            path: path.clone(),
            why,
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = match openat(self, name(pid), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(damaged("is a symbolic link".into())),
            Err(error) => return Err(io_error("open", &path, error.into())),
        };
        let unreadable = |error| io_error("read", &path, error);
        let file = File::from(fd);
        check_file(&file, &path)?;
        let mut bytes = Vec::new();
        let mut file = file.take(MAX_LEN_BYTES + 1);
        file.read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_LEN_BYTES {
            return Err(damaged(format!("is longer than {MAX_LEN_BYTES} bytes")));
        }
        match Record::parse(&bytes, pid) {
            Ok(record) => Ok(Some(record)),
            Err(Unread::Damaged(why)) => Err(damaged(why)),
            Err(Unread::Newer(version)) => Err(JournalError::Newer { path, version }),
        }
    }

    /// Puts a record in place of the old one, as a whole. Only who has the lock may.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let pid = record.pid;
        let path = self.path.join(name(pid));
        let failed = |error| io_error("write", &path, error);
        let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        check_len(pid, bytes.len() as u64)?;
        self.replace(pid, &bytes).map_err(|error| {
            let _ = unlinkat(self, new_name(pid), AtFlags::empty());
            failed(error)
        })
    }

    /// Appends a line to the file of a record. Only who has the lock may.
    pub(super) fn append(&self, pid: i32, reached: &Reached) -> Result<()> {
        let failed = |error| io_error("write", &self.path.join(name(pid)), error);
        let line = reached.line().map_err(|error| failed(error.into()))?;
        fault::point("journal.append").map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(self, name(pid), flags, Mode::empty());
        let mut file = File::from(fd.map_err(|error| failed(error.into()))?);
        let len_bytes = file.metadata().map_err(failed)?.len();
        check_len(pid, len_bytes + line.len() as u64)?;
        file.write_all(&line).map_err(|error| {
            // A part of a line is as good as none, but not before another one.
            let _ = file.set_len(len_bytes);
            failed(error)
        })
    }

    fn replace(&self, pid: i32, bytes: &[u8]) -> io::Result<()> {
        fault::point("journal.write")?;
        // Left behind by one who died in here, if anything.
        let _ = unlinkat(self, new_name(pid), AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = openat(self, new_name(pid), flags, Mode::RUSR | Mode::WUSR)?;
        File::from(fd).write_all(bytes)?;
        fault::point("journal.replace")?;
        let (new, old) = (new_name(pid), name(pid));
        // What is put over another file ext4 writes out at once (`auto_da_alloc`, ext4(5)); what
        // changes places with it is not.
        match renameat_with(self, &new, self, &old, RenameFlags::EXCHANGE) {
            // The old record, if it stays: nobody reads it.
            Ok(()) => drop(unlinkat(self, &new, AtFlags::empty())),
            // None is there, or the file system cannot do that.
            Err(_) => renameat(self, &new, self, &old)?,
        }
        Ok(())
    }

    pub(super) fn unlink(&self, pid: i32) -> Result<()> {
        let failed = |error| io_error("remove", &self.path.join(name(pid)), error);
        fault::point("journal.remove").map_err(failed)?;
        let _ = unlinkat(self, new_name(pid), AtFlags::empty());
        self.remove_file(name(pid))?;
        // Last: a journal without it would tell of memory that nobody has changed.
        self.remove_file(layout_name(pid))
    }

    fn remove_file(&self, name: String) -> Result<()> {
        match unlinkat(self, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", &self.path.join(name), error.into())),
        }
    }
}

/// The XDG specification says that a path which is not absolute is to be ignored.
pub(super) fn path_for(uid: u32, runtime_dir: Option<PathBuf>) -> PathBuf {
    match runtime_dir.filter(|dir| dir.is_absolute()) {
        _ if uid == 0 => "/run/memcr".into(),
        Some(dir) => dir.join("memcr"),
        None => format!("/tmp/memcr-{uid}").into(),
    }
}

/// Why others than we and root could have written it, or could: a journal decides what
/// is written into the memory of a process.
pub(super) fn untrusted(meta: &Stat) -> Option<String> {
    let (uid, euid) = (meta.st_uid, geteuid().as_raw());
    let mode = meta.st_mode & 0o7777;
    if uid != 0 && uid != euid {
        return Some(format!(
            "is refused: it belongs to uid {uid}, neither root nor you ({euid})"
        ));
    }
    (mode & 0o022 != 0)
        .then(|| format!("is refused: others than its owner may write it (mode {mode:04o})"))
}

/// The same of a file that was opened, and whether it is one.
pub(super) fn check_file(file: &File, path: &Path) -> Result<()> {
    let meta = fstat(file).map_err(|error| io_error("read", path, error.into()))?;
    let path = path.to_owned();
    if FileType::from_raw_mode(meta.st_mode) != FileType::RegularFile {
        let why = "is no regular file".into();
        return Err(JournalError::Damaged { path, why });
    }
    match untrusted(&meta) {
        Some(why) => Err(JournalError::Untrusted { path, why }),
        None => Ok(()),
    }
}

/// Nobody reads a longer one.
fn check_len(pid: i32, len_bytes: u64) -> Result<()> {
    if len_bytes <= MAX_LEN_BYTES {
        return Ok(());
    }
    Err(JournalError::TooLong {
        pid,
        len_bytes,
        max_bytes: MAX_LEN_BYTES,
    })
}

fn name(pid: i32) -> String {
    format!("{pid}.json")
}

fn new_name(pid: i32) -> String {
    format!("{pid}.json.new")
}

/// The name of the file that tells what a target has done to its memory.
pub(super) fn layout_name(pid: i32) -> String {
    format!("{pid}.layout")
}

/// The pid that a name says which we would have written.
fn pid_of(file: &str, suffix: &str) -> Option<i32> {
    let pid: i32 = file.strip_suffix(suffix)?.parse().ok()?;
    (pid > 0 && format!("{pid}{suffix}") == file).then_some(pid)
}

/// The pid of a file that may have been left without a journal.
fn leftover_pid(file: &str) -> Option<i32> {
    let names = [".lock", ".json.new", ".layout"];
    names.into_iter().find_map(|suffix| pid_of(file, suffix))
}

fn unfit(path: &Path, why: String) -> JournalError {
    JournalError::Unfit {
        path: path.to_owned(),
        why,
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}
