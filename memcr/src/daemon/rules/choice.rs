//! What clients may choose: pipelines by name, directories, the compression.
//!
//! The daemon writes images as its own user, usually root, where a client says. A directory
//! that somebody can put another in the place of, between this look and the use of
//! the name, would be any directory at all:
//!
//! ```text
//! dirs = ["/var/tmp"]       /var/tmp          as the configuration names it: allowed
//!                           /var/tmp/images   root's, nobody else can write there: allowed
//!                           /var/tmp/mine     a user's: she can replace it, refused
//!                           /var/tmp/link     a symbolic link: refused
//!                           /var/tmp/../x     refused unlooked at
//! ```

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::{Peer, Rules};
use crate::cli::config::Daemon;

/// What clients of this daemon may choose.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Choices {
    pipelines: Vec<String>,
    dirs: Option<Vec<PathBuf>>,
    compress: bool,
}

/// A choice that is not the client's to make.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(in crate::daemon) enum Forbidden {
    /// Not a pipeline for clients.
    #[error("clients may not name the pipeline `{}`; {}", .name.escape_debug(), allowed(.pipelines))]
    Pipeline {
        name: String,
        pipelines: Vec<String>,
    },
    /// Nobody has said where clients may write.
    #[error("uid {uid} may not name a directory: the daemon's configuration has no `dirs`")]
    NoDirs { uid: u32 },
    /// Not below one of the allowed ones.
    #[error("clients may not name the directory {}; {}", .dir.display(), allowed_dirs(.dirs))]
    Dir { dir: PathBuf, dirs: Vec<PathBuf> },
    /// Not a name that is the same everywhere.
    #[error("the directory {} is not an absolute path without `..`", .dir.display())]
    NotPlain { dir: PathBuf },
    /// Somebody else decides what the name means.
    #[error("the directory {} may not be named, because {} {why}", .dir.display(), .at.display())]
    Replaceable {
        dir: PathBuf,
        at: PathBuf,
        why: &'static str,
    },
    /// It is not there.
    #[error("cannot look at the directory {}", .at.display())]
    Io { at: PathBuf, source: io::Error },
    /// The operator chooses.
    #[error("clients may not choose the compression")]
    Compression,
}

impl Choices {
    /// Those that the configuration leaves to clients.
    #[must_use]
    pub(in crate::daemon) fn new(daemon: &Daemon) -> Self {
        Self {
            pipelines: daemon.pipelines.clone(),
            dirs: daemon.dirs.clone(),
            compress: daemon.compress,
        }
    }

    /// Whether a pipeline of this name may be asked for.
    ///
    /// # Errors
    /// [`Forbidden::Pipeline`].
    pub(in crate::daemon) fn pipeline(&self, name: &str) -> Result<(), Forbidden> {
        if self.pipelines.iter().any(|allowed| allowed == name) {
            return Ok(());
        }
        Err(Forbidden::Pipeline {
            name: name.to_owned(),
            pipelines: self.pipelines.clone(),
        })
    }

    /// Whether any compression may be asked for.
    ///
    /// # Errors
    /// [`Forbidden::Compression`].
    pub(in crate::daemon) fn compression(&self) -> Result<(), Forbidden> {
        match self.compress {
            true => Ok(()),
            false => Err(Forbidden::Compression),
        }
    }

    /// The directory that `peer` means by `dir`, by a name that stays the same one.
    ///
    /// # Errors
    /// When it may not be named.
    pub(in crate::daemon) fn dir(
        &self,
        rules: &Rules,
        peer: &Peer,
        dir: &Path,
    ) -> Result<PathBuf, Forbidden> {
        let dir = plain(dir)?;
        let Some(dirs) = &self.dirs else {
            return match rules.acts_on_all(peer) {
                true => Ok(dir),
                false => Err(Forbidden::NoDirs { uid: peer.uid() }),
            };
        };
        // Nothing outside of them is even looked at: a path can lead to a server that is away.
        let below = dirs.iter().filter_map(|base| below(base, &dir));
        let Some((base, rest)) = below.min_by_key(|(_, rest)| rest.components().count()) else {
            let dirs = dirs.clone();
            return Err(Forbidden::Dir { dir, dirs });
        };
        lasting(base, &rest, &dir)
    }
}

/// The path with no `.`, no doubled `/` and none at its end.
fn plain(dir: &Path) -> Result<PathBuf, Forbidden> {
    let is_plain = |part: &Component<'_>| !matches!(part, Component::ParentDir);
    if dir.is_absolute() && dir.components().all(|part| is_plain(&part)) {
        return Ok(dir.components().collect());
    }
    Err(Forbidden::NotPlain {
        dir: dir.to_owned(),
    })
}

/// The allowed directory, without symbolic links, and where below it `dir` is: by its name
/// in the configuration, or by its real one.
fn below(base: &Path, dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let real = fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
    let rest = dir.strip_prefix(base).or_else(|_| dir.strip_prefix(&real));
    let rest = rest.ok()?.to_owned();
    Some((real, rest))
}

/// Goes down from `base`, which is as the operator wants it, along `rest`.
fn lasting(base: PathBuf, rest: &Path, dir: &Path) -> Result<PathBuf, Forbidden> {
    if rest.as_os_str().is_empty() {
        return Ok(base);
    }
    let check = |at: &Path| {
        let meta = fs::symlink_metadata(at).map_err(|source| Forbidden::Io {
            at: at.to_owned(),
            source,
        })?;
        replaceable(&meta).map_or(Ok(()), |why| {
            Err(Forbidden::Replaceable {
                dir: dir.to_owned(),
                at: at.to_owned(),
                why,
            })
        })
    };
    let mut path = base;
    check(&path)?;
    for part in rest {
        path.push(part);
        check(&path)?;
    }
    Ok(path)
}

/// Why others than root and our own user could change what is in it; `None`: they could not.
/// In a sticky directory (`/tmp`) they can add to it, but take away only what is theirs.
fn replaceable(meta: &Metadata) -> Option<&'static str> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    let user = rustix::process::geteuid().as_raw();
    let mode = meta.mode();
    if meta.is_symlink() {
        Some("is a symbolic link")
    } else if !meta.is_dir() {
        Some("is no directory")
    } else if meta.uid() != 0 && meta.uid() != user {
        Some("belongs to another user than root and the daemon's")
    } else if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        Some("can be written by others and is not sticky")
    } else {
        None
    }
}

fn allowed(names: &[String]) -> String {
    match names {
        [] => "they may name none".into(),
        names => format!("allowed are {}", names.join(", ")),
    }
}

fn allowed_dirs(dirs: &[PathBuf]) -> String {
    let names: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    allowed(&names)
}

#[cfg(test)]
mod tests;
