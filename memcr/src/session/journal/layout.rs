//! What a held target that somebody has continued has done to its memory: a file beside its
//! journal, for the memcr that restores it after one that has not come to the end.
//!
//! ```text
//!   0000000002                            so many changes there are, once the next was read
//!   {"removed":[140000000000,4096]}
//!   {"moved":{"from":[…,…],"to":…}}       fewer than that: one was read that nobody knows
//! ```
//!
//! It is made with the first change: most targets never have one.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::dir::{check_file, layout_name};
use super::{JournalError, StateDir};
use crate::pages::guarded::{Change, Notebook};
use crate::pages::{PageRun, RemoteAddr};

/// Digits of the number at the beginning, and the end of its line.
const HEAD_LEN: u64 = 11;
/// Longest file, bytes: half a million changes.
const MAX_LEN_BYTES: u64 = 32 << 20;

/// A line; start and length of ranges.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Moved { from: (u64, u64), to: u64 },
    Removed((u64, u64)),
    Unmapped((u64, u64)),
}

impl From<Change> for Line {
    fn from(change: Change) -> Self {
        let range = |run: PageRun| (run.addr.0, run.len_bytes);
        match change {
            Change::Moved { from, to } => Self::Moved {
                from: range(from),
                to: to.0,
            },
            Change::Removed(run) => Self::Removed(range(run)),
            Change::Unmapped(run) => Self::Unmapped(range(run)),
        }
    }
}

impl From<Line> for Change {
    fn from(line: Line) -> Self {
        let run = |(start, len_bytes)| PageRun {
            addr: RemoteAddr(start),
            len_bytes,
        };
        match line {
            Line::Moved { from, to } => Self::Moved {
                from: run(from),
                to: RemoteAddr(to),
            },
            Line::Removed(range) => Self::Removed(run(range)),
            Line::Unmapped(range) => Self::Unmapped(run(range)),
        }
    }
}

/// The file of one target, written by the memcr that has its lock.
#[derive(Debug)]
pub(super) struct Layout {
    dir: StateDir,
    pid: i32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Once there is one.
    file: Option<File>,
    n_changes: u64,
    /// Those that could not be written down.
    n_lost: u64,
    len_bytes: u64,
}

impl Layout {
    /// What is known of process `pid`, and where more is to be written.
    ///
    /// # Errors
    /// [`JournalError::Layout`]: not all is known; `Damaged`, `Io`.
    pub(super) fn open(dir: &StateDir, pid: i32) -> Result<(Vec<Change>, Self), JournalError> {
        let path = dir.path().join(layout_name(pid));
        let damaged = |why: String| JournalError::Damaged {
            path: path.clone(),
            why,
        };
        let unreadable = |source| JournalError::Io {
            doing: "read",
            path: path.clone(),
            source,
        };
        let layout = |inner| Self {
            dir: dir.clone(),
            pid,
            inner: Mutex::new(inner),
        };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(dir, layout_name(pid), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok((Vec::new(), layout(Inner::default()))),
            Err(error) => return Err(unreadable(error.into())),
        };
        check_file(&file, &path)?;
        let mut text = String::new();
        let read = (&file).take(MAX_LEN_BYTES).read_to_string(&mut text);
        read.map_err(unreadable)?;
        let Some(changes) = parse(&text).map_err(damaged)? else {
            return Err(JournalError::Layout { pid });
        };
        let inner = Inner {
            file: Some(file),
            n_changes: changes.len() as u64,
            n_lost: 0,
            len_bytes: text.len().max(HEAD_LEN as usize) as u64,
        };
        Ok((changes, layout(inner)))
    }

    fn with<T>(&self, what: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        what(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn expect_in_all(&self, n_more: u64) -> io::Result<()> {
        self.with(|inner| {
            let head = head(inner.n_changes + inner.n_lost + n_more);
            if let Some(file) = &inner.file {
                return file.write_all_at(head.as_bytes(), 0);
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(
                &self.dir,
                layout_name(self.pid),
                flags,
                Mode::RUSR | Mode::WUSR,
            )?;
            let file = File::from(file);
            file.write_all_at(head.as_bytes(), 0)?;
            (inner.file, inner.len_bytes) = (Some(file), HEAD_LEN);
            Ok(())
        })
    }
}

impl Notebook for Layout {
    fn expect(&self) -> io::Result<()> {
        self.expect_in_all(1)
    }

    fn expect_none(&self) -> io::Result<()> {
        self.expect_in_all(0)
    }

    fn note(&self, change: Change) -> io::Result<()> {
        self.with(|inner| {
            let written = inner.append(change);
            match written {
                Ok(()) => inner.n_changes += 1,
                Err(_) => inner.n_lost += 1,
            }
            written
        })
    }
}

impl Inner {
    fn append(&mut self, change: Change) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line::from(change))?;
        line.push(b'\n');
        let len_bytes = self.len_bytes + line.len() as u64;
        if len_bytes > MAX_LEN_BYTES {
            let what = format!("more than {MAX_LEN_BYTES} bytes are not read again");
            return Err(io::Error::new(ErrorKind::FileTooLarge, what));
        }
        let file = self.file.as_ref().ok_or(ErrorKind::NotFound)?;
        file.write_all_at(&line, self.len_bytes)?;
        self.len_bytes = len_bytes;
        Ok(())
    }
}

fn head(n_changes: u64) -> String {
    format!("{n_changes:010}\n")
}

/// The changes; `None`: one is missing. Otherwise what is wrong with the text.
fn parse(text: &str) -> Result<Option<Vec<Change>>, String> {
    let Some((head, lines)) = text.split_at_checked(HEAD_LEN as usize) else {
        // It was being made: nothing was read yet.
        return Ok(Some(Vec::new()));
    };
    let n_expected = head.trim_end().parse::<u64>();
    let n_expected = n_expected.map_err(|error| format!("does not say how long it is: {error}"))?;
    // The last line, if it has no end, was not written to it.
    let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let changes = whole.lines().map(serde_json::from_str::<Line>);
    let changes: Result<Vec<_>, _> = changes.map(|line| line.map(Change::from)).collect();
    let changes = changes.map_err(|error| format!("is none of ours: {error}"))?;
    Ok((changes.len() as u64 >= n_expected).then_some(changes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn all_that_was_to_be_read_must_be_there() {
        let line = r#"{"removed":[4096,8192]}"#;
        let removed = Change::Removed(PageRun {
            addr: RemoteAddr(4096),
            len_bytes: 8192,
        });
        let whole = format!("0000000001\n{line}\n");
        assert_eq!(parse(&whole), Ok(Some(vec![removed])));
        assert_eq!(
            parse(&format!("0000000000\n{line}\n")),
            Ok(Some(vec![removed]))
        );
        assert_eq!(parse("0000000000\n"), Ok(Some(Vec::new())));
        assert_eq!(parse("00000"), Ok(Some(Vec::new())), "it was being made");
        assert_eq!(
            parse("0000000001\n"),
            Ok(None),
            "read, and not written down"
        );
        assert_eq!(parse(&format!("0000000001\n{line}")), Ok(None), "cut short");
        assert_eq!(parse(&format!("0000000002\n{line}\n")), Ok(None));
        assert!(parse("a lot of text").is_err());
        assert!(parse("0000000000\n{\"eaten\":1}\n").is_err());
    }
}
