//! What the machine can do: each step of a pipeline alone, in a tight loop.
//!
//! ```text
//!   target     read through process_vm_readv, /proc/PID/mem; pagemap; zeros; memcpy
//!   populate   absent pages: UFFDIO_COPY, process_vm_writev, /proc/PID/mem; giving back
//!   codec      lz4, zstd, crc32, md5, aes-256-gcm
//!   storage    tmpfs and disk, out and in
//! ```
//!
//! Every step is measured on one thread and on all. Where memory has to be new, as much
//! is touched and freed just before ([`crate::warm`]).

pub(crate) mod codec;
pub(crate) mod populate;
pub(crate) mod storage;
pub(crate) mod target;

use std::collections::BTreeMap;

use memcr_harness::{Result, Trouble};
use serde::Serialize;

use crate::lab::Lab;
use crate::stat::{Stat, gib};

/// Length of a page, bytes, for what only compares bytes: no page is smaller.
pub(crate) const PAGE: usize = 4096;
/// Length of one call that moves pages, bytes: longer ones are no faster.
pub(crate) const PIECE: usize = 1 << 20;
/// Length of one call of a codec, bytes: memcr's usual chunk.
pub(crate) const BLOCK: usize = 256 << 10;

/// A step whose limit is measured. In the order of the flow, as tables show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // `what` says it
pub(crate) enum Step {
    Pagemap,
    Readv,
    ProcMemRead,
    Memcpy,
    ZeroCheck,
    Lz4,
    Zstd,
    Crc32,
    Md5,
    Aes,
    TmpfsWrite,
    TmpfsWriteOne,
    FileWrite,
    FileOut,
    FileSync,
    GiveBack,
    TmpfsRead,
    FileRead,
    FileReadCold,
    Lz4Decode,
    ZstdDecode,
    UffdCopy,
    Writev,
    ProcMemWrite,
}

type Measure = fn(&Lab, usize) -> Result<Time>;

/// How long so many bytes took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub(crate) len_bytes: u64,
    pub(crate) millis: f64,
}

impl Step {
    /// All of them: what they are, how they are measured.
    pub(crate) const ALL: [(Self, &'static str, Measure); 24] = [
        (Self::Pagemap, "read /proc/PID/pagemap", target::pagemap),
        (Self::Readv, "process_vm_readv", target::readv),
        (Self::ProcMemRead, "read /proc/PID/mem", target::proc_mem),
        (Self::Memcpy, "memcpy", target::memcpy),
        (Self::ZeroCheck, "find pages of zeros", target::zero_check),
        (Self::Lz4, "lz4 compress", codec::lz4),
        (Self::Zstd, "zstd -1 compress", codec::zstd),
        (Self::Crc32, "crc32", codec::crc32),
        (Self::Md5, "md5", codec::md5),
        (Self::Aes, "aes-256-gcm", codec::aes),
        (Self::TmpfsWrite, "tmpfs, write new", storage::tmpfs_write),
        (
            Self::TmpfsWriteOne,
            "tmpfs, write one file",
            storage::tmpfs_write_one,
        ),
        (Self::FileWrite, "disk, write to cache", storage::file_write),
        (Self::FileOut, "disk, out of the cache", storage::file_out),
        (Self::FileSync, "disk, write and wait", storage::file_sync),
        (Self::GiveBack, "MADV_DONTNEED", populate::give_back),
        (Self::TmpfsRead, "tmpfs, read", storage::tmpfs_read),
        (Self::FileRead, "disk, read from cache", storage::file_read),
        (
            Self::FileReadCold,
            "disk, read cold",
            storage::file_read_cold,
        ),
        (Self::Lz4Decode, "lz4 decompress", codec::lz4_decode),
        (Self::ZstdDecode, "zstd decompress", codec::zstd_decode),
        (Self::UffdCopy, "UFFDIO_COPY", populate::uffd_copy),
        (Self::Writev, "process_vm_writev, absent", populate::writev),
        (
            Self::ProcMemWrite,
            "write /proc/PID/mem, absent",
            populate::proc_mem,
        ),
    ];
}

/// The limits of a machine, measured several times.
#[derive(Debug)]
pub(crate) struct Limits {
    n_threads: usize,
    /// ms/GiB on one thread and on all.
    values: BTreeMap<Step, [Vec<f64>; 2]>,
    /// What could not be measured, and why.
    pub(crate) lacking: BTreeMap<Step, String>,
}

impl Limits {
    /// Nothing measured yet.
    pub(crate) fn new(n_threads: usize) -> Self {
        Self {
            n_threads,
            values: BTreeMap::new(),
            lacking: BTreeMap::new(),
        }
    }

    /// Limits that were never measured, for tests of what is made of them.
    #[cfg(test)]
    pub(crate) fn of_values(values: impl IntoIterator<Item = (Step, f64)>) -> Self {
        let values = values.into_iter();
        Self {
            values: values.map(|(step, v)| (step, [vec![v], vec![v]])).collect(),
            ..Self::new(1)
        }
    }

    /// Measures every step once more.
    ///
    /// # Errors
    /// When a step fails for another reason than that the machine lacks it.
    pub(crate) fn measure(&mut self, lab: &Lab) -> Result {
        for (step, what, measure) in Step::ALL {
            match self.once(lab, measure) {
                Ok(now) => {
                    let values = self.values.entry(step).or_default();
                    for (values, value) in values.iter_mut().zip(now) {
                        values.push(value);
                    }
                }
                Err(Trouble::Skipped(why)) => drop(self.lacking.insert(step, why)),
                Err(Trouble::Failed(why)) => {
                    return Err(Trouble::Failed(format!("limit `{what}`: {why}")));
                }
            }
        }
        Ok(())
    }

    fn once(&self, lab: &Lab, measure: Measure) -> Result<[f64; 2]> {
        let speed = |time: Time| time.millis / gib(time.len_bytes);
        Ok([
            speed(measure(lab, 1)?),
            speed(measure(lab, self.n_threads)?),
        ])
    }

    /// ms/GiB of `step` on one thread.
    pub(crate) fn one(&self, step: Step) -> Option<Stat> {
        Stat::of(self.values.get(&step)?[0].iter().copied())
    }

    /// ms/GiB of `step` on all threads.
    pub(crate) fn all(&self, step: Step) -> Option<Stat> {
        Stat::of(self.values.get(&step)?[1].iter().copied())
    }
}

/// `len` cut into `n` shares of whole pieces, as (offset, length); the last may be shorter
/// or longer than the others.
pub(crate) fn shares(len: usize, n: usize, piece: usize) -> Vec<(usize, usize)> {
    let share = len.div_ceil(piece).div_ceil(n).max(1) * piece;
    let begins = (0..n).map(|i| (i * share).min(len));
    begins
        .map(|begin| (begin, share.min(len - begin)))
        .filter(|(_, len)| *len > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Step, shares};

    #[test]
    fn shares_cover_everything_once() {
        for (len, n) in [(10, 1), (7, 1), (9, 2), (10, 3), (7, 2), (1, 4), (64, 5)] {
            let shares = shares(len, n, 2);
            let mut end = 0;
            for (offset, len) in &shares {
                assert_eq!(*offset, end);
                end += len;
            }
            assert_eq!(end, len, "{n} shares of {len}");
            assert!(shares.len() <= n);
        }
    }

    #[test]
    fn every_step_stands_at_its_place() {
        assert!(Step::ALL.is_sorted_by_key(|(step, ..)| *step));
    }
}
