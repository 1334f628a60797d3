//! Where images go: a file in RAM, a file on a disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use memcr_filestore::wait_for_disk;
use memcr_harness::{Context, Result};
use nix::time::ClockId;
use rustix::fs::{Advice, fadvise};

use super::{PIECE, Time, shares};
use crate::lab::Lab;
use crate::team;
use crate::warm::{touched, warm};

/// A file of its own for each thread: the kernel lets one thread at a time write to a
/// file.
pub(super) fn tmpfs_write(lab: &Lab, n_threads: usize) -> Result<Time> {
    write(lab, &new_files(lab, Where::Ram, n_threads)?, n_threads)
}

/// What an image in one file gets of that.
pub(super) fn tmpfs_write_one(lab: &Lab, n_threads: usize) -> Result<Time> {
    write(lab, &new_files(lab, Where::Ram, 1)?, n_threads)
}

pub(super) fn tmpfs_read(lab: &Lab, n_threads: usize) -> Result<Time> {
    let files = new_files(lab, Where::Ram, 1)?;
    write(lab, &files, 1)?;
    read(lab, &files[0], n_threads)
}

/// What the CPUs do for a file on a disk.
pub(super) fn file_write(lab: &Lab, n_threads: usize) -> Result<Time> {
    write(lab, &new_files(lab, Where::Disk, n_threads)?, n_threads)
}

/// What the disk does for it, too: it takes everything, but need not empty its own cache.
pub(super) fn file_sync(lab: &Lab, n_threads: usize) -> Result<Time> {
    let files = new_files(lab, Where::Disk, n_threads)?;
    let written = write(lab, &files, n_threads)?;
    let sync = team::timed(files, |file| {
        wait_for_disk(&file).context("wait for the disk")
    })?;
    Ok(Time {
        millis: written.millis + sync,
        ..written
    })
}

/// What the CPUs do so that nothing of it stays in the cache: the way to the disk, and out.
pub(super) fn file_out(lab: &Lab, n_threads: usize) -> Result<Time> {
    let files = new_files(lab, Where::Disk, n_threads)?;
    let written = write(lab, &files, n_threads)?;
    let longest = Mutex::new(0.0_f64);
    team::timed(files, |file| {
        let begin = cpu_millis()?;
        fadvise(&file, 0, None, Advice::DontNeed).context("begin to write out")?;
        wait_for_disk(&file).context("wait for the disk")?;
        fadvise(&file, 0, None, Advice::DontNeed).context("drop from the cache")?;
        let millis = cpu_millis()? - begin;
        let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = longest.max(millis);
        Ok(())
    })?;
    let millis = longest.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Time { millis, ..written })
}

pub(super) fn file_read(lab: &Lab, n_threads: usize) -> Result<Time> {
    let files = new_files(lab, Where::Disk, 1)?;
    write(lab, &files, 1)?;
    read(lab, &files[0], n_threads)
}

pub(super) fn file_read_cold(lab: &Lab, n_threads: usize) -> Result<Time> {
    let files = new_files(lab, Where::Disk, 1)?;
    write(lab, &files, 1)?;
    files[0].sync_data().context("sync")?;
    fadvise(&files[0], 0, None, Advice::DontNeed).context("fadvise")?;
    warm(lab.stored.len())?;
    read(lab, &files[0], n_threads)
}

/// CPU time that the calling thread has had, ms.
fn cpu_millis() -> Result<f64> {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    let now = now.context("the CPU clock of a thread")?;
    Ok(now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6)
}

#[derive(Debug, Clone, Copy)]
enum Where {
    Ram,
    Disk,
}

/// Files without a name: nothing is left behind, however this ends.
fn new_files(lab: &Lab, place: Where, n: usize) -> Result<Vec<File>> {
    let dir = match place {
        Where::Ram => &lab.tmpfs_dir,
        Where::Disk => &lab.file_dir,
    };
    let file = |_| tempfile::tempfile_in(dir).context(format!("make a file in {}", dir.display()));
    (0..n).map(file).collect()
}

/// Writes the stored bytes of the target, each thread its share: into a file of its own,
/// or all into one.
fn write(lab: &Lab, files: &[File], n_threads: usize) -> Result<Time> {
    let bytes = &lab.stored;
    warm(bytes.len())?;
    let teams = shares(bytes.len(), n_threads, PIECE).into_iter();
    let teams = teams.zip(files.iter().cycle()).collect();
    let millis = team::timed(teams, |((begin, len), file)| {
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
