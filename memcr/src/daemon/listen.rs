//! Where clients connect: UNIX sockets and TCP ports.
//!
//! A UNIX socket is nobody's until its owner and mode are right: it is bound without any
//! permission, given to the group, and opened then. One that a daemon which died has left in
//! its place is removed; one at which somebody answers is not.
//!
//! What is in a directory belongs to who may rename it: at the path of our socket may be a link
//! to any file a moment later. So a directory in which others than we and root may do that is
//! refused, and what is given to the group is the very file that was found to be our socket.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use memcr_wire::Location;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat};
use rustix::fs::{chmod, chownat, fstat, open, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::geteuid;

use super::peer::{Peer, PeerError};
use crate::cli::config::TcpTrust;
use crate::cli::exit::Exit;

/// Why nobody can connect there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Another daemon answers there.
    #[error("somebody listens at {} already", .0.display())]
    Taken(PathBuf),
    /// What is there is no socket.
    #[error("{} is there already, and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// Somebody else could put something in the place of the socket.
    #[error("cannot listen at {}: its directory {why}", at.display())]
    Unfit {
        /// Where.
        at: PathBuf,
        /// What is wrong with the directory.
        why: String,
    },
    /// The system refuses.
    #[error("cannot listen at {at}")]
    Io {
        /// Where.
        at: String,
        /// Why not.
        source: io::Error,
    },
}

impl ListenError {
    /// How memcr ends because of it.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            Self::Unfit { .. } => Exit::Permission,
            _ => Exit::Internal,
        }
    }
}

/// Who may connect to a UNIX socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Door {
    /// The group that owns it.
    pub(super) group: Option<u32>,
    /// Whether everybody may.
    pub(super) others: bool,
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// At the end it is removed if it still is ours.
    Unix(Place, Identity),
    Tcp(TcpTrust),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    /// Listens at `location`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub(super) fn open(
        location: &Location,
        door: Door,
        address: IpAddr,
        trust: TcpTrust,
    ) -> Result<Self, ListenError> {
        match location {
            Location::Path(path) => unix(path, door),
            Location::Port(port) => tcp(SocketAddr::new(address, *port), trust),
        }
    }

    /// The next client; `None`: there is none now.
    ///
    /// # Errors
    /// No descriptors are left, and the like.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(stream) => Ok(Some(stream)),
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED,
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Who has connected.
    ///
    /// # Errors
    /// It cannot be told: then nothing is done for them.
    pub(super) fn peer(&self, stream: &OwnedFd) -> Result<Peer, PeerError> {
        match &self.kind {
            Kind::Unix(..) => Peer::of_unix(stream.as_fd()),
            Kind::Tcp(trust) => Peer::of_tcp(stream.as_fd(), *trust),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix(place, ours) = &self.kind
            && place.stat().is_ok_and(|now| identity(&now) == *ours)
        {
            let _ = place.remove();
        }
    }
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// Where a socket is to be: a directory, whatever becomes of its path, and a name there.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    name: OsString,
}

impl Place {
    /// The place that `path` means.
    fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(dir.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        let name = name.to_owned();
        Ok(Self { dir, name })
    }

    /// What is there itself, not what it leads to.
    fn stat(&self) -> rustix::io::Result<Stat> {
        statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn remove(&self) -> rustix::io::Result<()> {
        unlinkat(&self.dir, &self.name, AtFlags::empty())
    }

    /// Gives the socket that was bound here to its group, and opens it.
    fn open_door(&self, door: Door) -> io::Result<Identity> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, &self.name, flags, Mode::empty())?;
        let found = fstat(&file)?;
        if !is_ours(&found) {
            return Err(io::Error::other("somebody has put something else there"));
        }
        let mode = match door {
            Door { others: true, .. } => 0o666,
            Door { group: Some(_), .. } => 0o660,
            _ => 0o600,
        };
        let group = door.group.map(Gid::from_raw);
        chownat(&file, "", None, group, AtFlags::EMPTY_PATH)?;
        // A file that is open as a path only has no other way to it (open(2)).
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        chmod(path, Mode::from_raw_mode(mode))?;
        Ok(identity(&found))
    }
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

/// Whether this may be the socket that we have just bound.
fn is_ours(stat: &Stat) -> bool {
    is_socket(stat) && stat.st_uid == geteuid().as_raw() && stat.st_nlink == 1
}

/// Why others than we and root could put something in the place of a file in this directory. Its
/// group is its owner's choice: many have one of their own, and a mask of modes that opens
/// everything to it.
fn unfit(dir: &Stat) -> Option<String> {
    let (uid, euid, mode) = (dir.st_uid, geteuid().as_raw(), dir.st_mode & 0o7777);
    if uid != 0 && uid != euid {
        let why = "who could put something else in its place";
        return Some(format!("belongs to user {uid}, {why}"));
    }
    (mode & 0o1002 == 0o002).then(|| {
        let why = "everybody could put something else in its place";
        format!("may be written by everybody and is not sticky (mode {mode:04o}): {why}")
    })
}

fn unix(path: &Path, door: Door) -> Result<Listener, ListenError> {
    let failed = |source| ListenError::Io {
        at: path.display().to_string(),
        source,
    };
    let place = Place::of(path).map_err(failed)?;
    let dir = fstat(&place.dir).map_err(|error| failed(error.into()))?;
    if let Some(why) = unfit(&dir) {
        let at = path.to_owned();
        return Err(ListenError::Unfit { at, why });
    }
    clear(path, &place)?;
    // There is one thread, whose mask of modes this is.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o777));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let socket = bound.map_err(failed)?;
    let opened = socket.set_nonblocking(true);
    let opened = opened.and_then(|()| place.open_door(door));
    let ours = opened.map_err(|error| {
        if place.stat().is_ok_and(|there| is_ours(&there)) {
            let _ = place.remove();
        }
        failed(error)
    })?;
    Ok(Listener {
        socket: socket.into(),
        kind: Kind::Unix(place, ours),
    })
}

/// Removes a socket at which nobody listens any more.
fn clear(path: &Path, place: &Place) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io {
        at: path.display().to_string(),
        source,
    };
    match place.stat() {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
        Ok(stat) if !is_socket(&stat) => return Err(ListenError::NoSocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            place.remove().map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(ListenError::Taken(path.to_owned())),
    }
}

fn tcp(address: SocketAddr, trust: TcpTrust) -> Result<Listener, ListenError> {
    let opened = TcpListener::bind(address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let socket = opened.map_err(|source| ListenError::Io {
        at: address.to_string(),
        source,
    })?;
    Ok(Listener {
        socket: socket.into(),
        kind: Kind::Tcp(trust),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    const DOOR: Door = Door {
        group: None,
        others: false,
    };

    /// A directory for sockets, and for this test a mask of modes of its own: that of the process
    /// is one for all threads, and other tests run in theirs.
    fn sockets() -> tempfile::TempDir {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_socket_is_as_open_as_it_was_asked_for() {
        let dir = sockets();
        let own = rustix::process::getegid().as_raw();
        for (group, others, want) in [
            (None, false, 0o600),
            (Some(own), false, 0o660),
            (None, true, 0o666),
        ] {
            let path = dir.path().join(format!("{want:o}"));
            let listener = unix(&path, Door { group, others }).unwrap();
            assert_eq!(mode(&path), want);
            drop(listener);
            assert!(!path.exists(), "removed at the end");
        }
    }

    #[test]
    fn what_a_dead_daemon_left_is_replaced_and_nothing_else() {
        let dir = sockets();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = unix(&path, DOOR).unwrap();
        assert!(matches!(unix(&path, DOOR), Err(ListenError::Taken(_))));
        drop(listener);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(&path, DOOR), Err(ListenError::NoSocket(_))));
        assert!(path.exists());
    }
    #[test]
    fn a_directory_of_somebody_else_is_no_place_for_a_socket() {
        let dir = sockets();
        let path = dir.path().join("s");
        let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
        mode(0o777).unwrap();
        let refused = unix(&path, DOOR).unwrap_err();
        assert!(matches!(refused, ListenError::Unfit { .. }), "{refused:?}");
        assert!(!path.exists());
        for sound in [0o1777, 0o775, 0o755] {
            mode(sound).unwrap();
            drop(unix(&path, DOOR).unwrap());
        }
        // Where we may give something away.
        if chown(dir.path(), Some(4711), None).is_ok() {
            assert!(matches!(unix(&path, DOOR), Err(ListenError::Unfit { .. })));
        }
    }

    #[test]
    fn no_link_opens_another_file() {
        let dir = sockets();
        let (path, other) = (dir.path().join("s"), dir.path().join("other"));
        fs::write(&other, "secret").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        let everybody = Door {
            group: None,
            others: true,
        };
        let place = Place::of(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(place.open_door(everybody).is_err());
        fs::remove_file(&path).unwrap();
        fs::hard_link(&other, &path).unwrap();
        assert!(place.open_door(everybody).is_err());
        assert_eq!(mode(&other), 0o600);
    }
}
