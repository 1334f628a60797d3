//! Where images go: a file in RAM, a file on a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use memcr_harness::{Context, Result};
use rustix::fs::{Advice, fadvise};

use super::{PIECE, Time, shares};
use crate::lab::Lab;
use crate::team;
use crate::warm::{touched, warm};

pub(super) fn tmpfs_write(lab: &Lab, n_threads: usize) -> Result<Time> {
    write(lab, &new_file(lab, false)?, n_threads)
}

pub(super) fn tmpfs_read(lab: &Lab, n_threads: usize) -> Result<Time> {
    let file = new_file(lab, false)?;
    write(lab, &file, n_threads)?;
    read(lab, &file, n_threads)
}

/// What the CPUs do for a file on a disk.
pub(super) fn file_write(lab: &Lab, n_threads: usize) -> Result<Time> {
    write(lab, &new_file(lab, true)?, n_threads)
}

/// What the disk does for it, too.
pub(super) fn file_sync(lab: &Lab, n_threads: usize) -> Result<Time> {
    let file = new_file(lab, true)?;
    let written = write(lab, &file, n_threads)?;
    let sync = team::timed(vec![()], |()| file.sync_data().context("sync"))?;
    Ok(Time {
        millis: written.millis + sync,
        ..written
    })
}

pub(super) fn file_read(lab: &Lab, n_threads: usize) -> Result<Time> {
    let file = new_file(lab, true)?;
    write(lab, &file, n_threads)?;
    read(lab, &file, n_threads)
}

pub(super) fn file_read_cold(lab: &Lab, n_threads: usize) -> Result<Time> {
    let file = new_file(lab, true)?;
    write(lab, &file, n_threads)?;
    file.sync_data().context("sync")?;
    fadvise(&file, 0, None, Advice::DontNeed).context("fadvise")?;
    warm(lab.stored.len())?;
    read(lab, &file, n_threads)
}

/// A file without a name: nothing is left behind, however this ends.
fn new_file(lab: &Lab, on_disk: bool) -> Result<File> {
    let dir = lab.dir(on_disk);
    tempfile::tempfile_in(dir).context(format!("make a file in {}", dir.display()))
}

/// Writes the stored bytes of the target into the empty `file`.
fn write(lab: &Lab, file: &File, n_threads: usize) -> Result<Time> {
    let bytes = &lab.stored;
    warm(bytes.len())?;
    let teams = shares(bytes.len(), n_threads, PIECE);
    let millis = team::timed(teams, |(begin, len)| {
        for offset in (begin..begin + len).step_by(PIECE) {
            let end = (offset + PIECE).min(begin + len);
            file.write_all_at(&bytes[offset..end], offset as u64)
                .context("write")?;
        }
        Ok(())
    })?;
    Ok(Time {
        len_bytes: bytes.len() as u64,
        millis,
    })
}

/// Reads what `write` has written.
fn read(lab: &Lab, file: &File, n_threads: usize) -> Result<Time> {
    let len_bytes = lab.stored.len();
    let teams = shares(len_bytes, n_threads, PIECE).into_iter();
    let teams = teams
        .map(|share| Ok((share, touched(PIECE)?)))
        .collect::<Result<Vec<_>>>()?;
    let millis = team::timed(teams, |((begin, len), mut buffer)| {
        for offset in (begin..begin + len).step_by(PIECE) {
            let n = PIECE.min(begin + len - offset);
            file.read_exact_at(&mut buffer[..n], offset as u64)
                .context("read")?;
        }
        Ok(())
    })?;
    Ok(Time {
        len_bytes: len_bytes as u64,
        millis,
    })
}
