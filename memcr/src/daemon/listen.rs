//! Where clients connect: UNIX sockets and TCP ports.
//!
//! A UNIX socket is nobody's until its owner and mode are right: it is bound without any
//! permission for others, given to the group, and only then listens. One that a daemon
//! which died has left in its place is removed; one at which somebody answers is not.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use memcr_wire::Location;
use rustix::fs::Mode;
use rustix::net::{SocketFlags, accept_with};

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
    /// Path, device and inode: at the end it is removed if it still is ours.
    Unix(PathBuf, (u64, u64)),
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
        if let Kind::Unix(path, id) = &self.kind
            && identity(path).is_ok_and(|now| now == *id)
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn unix(path: &Path, door: Door) -> Result<Listener, ListenError> {
    let failed = |source| ListenError::Io {
        at: path.display().to_string(),
        source,
    };
    clear(path)?;
    // There is one thread, whose mask of modes this is.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o777));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let socket = bound.map_err(failed)?;
    let mode = match door {
        Door { others: true, .. } => 0o666,
        Door { group: Some(_), .. } => 0o660,
        _ => 0o600,
    };
    let opened = chown(path, None, door.group)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .and_then(|()| socket.set_nonblocking(true))
        .and_then(|()| identity(path));
    let id = opened.map_err(|error| {
        let _ = fs::remove_file(path);
        failed(error)
    })?;
    Ok(Listener {
        socket: socket.into(),
        kind: Kind::Unix(path.to_owned(), id),
    })
}

/// Removes a socket at which nobody listens any more.
fn clear(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io {
        at: path.display().to_string(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
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

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
}
