//! The bound: how long a pipeline must take at least, by the limits of the same run.
//!
//! ```text
//!   checkpoint   pagemap + read all + find zeros + stages + write image + give all back
//!   restore                     read image + stages, backwards + fill what was stored
//! ```
//!
//! All of that is work of CPUs, so it adds up, each step at its speed on all threads: no
//! order of work is faster than one that keeps every CPU busy all the time. What a host took of
//! that time it took ([`crate::stolen`]). Only a disk works besides; where writing the image to
//! it (or reading it cold) alone takes longer than all work of the CPUs, that is the bound.

use memcr_harness::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::case::{Case, Sink};
use crate::limits::{Limits, Step};
use crate::stat::gib;

/// The bytes that one cycle moved, as memcr reported them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Volumes {
    /// Pages that were stored.
    pub(crate) raw_bytes: u64,
    /// Pages of zeros, which are read and given back, but not stored.
    pub(crate) zero_bytes: u64,
    /// Length of the image.
    pub(crate) image_bytes: u64,
}

impl Volumes {
    /// From the report of memcr.
    ///
    /// # Errors
    /// When a number is missing.
    pub(crate) fn of(report: &Value) -> Result<Self> {
        let number = |key: &str| {
            let value = report["checkpoint"][key].as_u64();
            value
                .ok_or("missing")
                .context(format!("checkpoint.{key} in the report"))
        };
        Ok(Self {
            raw_bytes: number("raw_bytes")?,
            zero_bytes: number("zero_bytes")?,
            image_bytes: number("image_bytes")?,
        })
    }
}

/// The least time that a pipeline takes, and what it is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Bound {
    pub(crate) millis: f64,
    /// Work of the CPUs; they share it, so these add up.
    pub(crate) parts: Vec<Part>,
    /// What the disk takes meanwhile.
    pub(crate) disk_millis: f64,
}

/// One step's part of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Part {
    pub(crate) step: Step,
    pub(crate) millis: f64,
}

impl Bound {
    /// Of a checkpoint. `None` when a limit is not known.
    pub(crate) fn of_checkpoint(case: &Case, volumes: Volumes, limits: &Limits) -> Option<Self> {
        let all = volumes.raw_bytes + volumes.zero_bytes;
        let mut work = vec![
            (Step::Pagemap, all),
            (Step::Readv, all),
            (Step::ZeroCheck, all),
        ];
        work.extend(steps(case, volumes, Direction::Encode)?);
        let (write, disk) = match case.sink {
            Sink::Tmpfs => (&[Step::TmpfsWrite][..], None),
            // Nothing of it is to stay in the cache.
            Sink::File => (&[Step::FileWrite, Step::FileOut][..], Some(Step::FileSync)),
        };
        work.extend(write.iter().map(|&step| (step, volumes.image_bytes)));
        work.push((Step::GiveBack, all));
        let disk = disk.map(|step| (step, volumes.image_bytes));
        Self::sum(&work, disk, limits)
    }

    /// Of a restore. `None` when a limit is not known.
    pub(crate) fn of_restore(case: &Case, volumes: Volumes, limits: &Limits) -> Option<Self> {
        let (read, disk) = match case.sink {
            Sink::Tmpfs => (Step::TmpfsRead, None),
            Sink::File => (Step::FileRead, Some(Step::FileReadCold)),
        };
        let mut work = vec![(read, volumes.image_bytes)];
        work.extend(steps(case, volumes, Direction::Decode)?);
        work.push((fastest_populate(limits)?, volumes.raw_bytes));
        let disk = disk.map(|step| (step, volumes.image_bytes));
        Self::sum(&work, disk, limits)
    }

    /// The same for a run during which so much was stolen of every CPU.
    pub(crate) fn with_stolen(&self, stolen_millis: f64) -> f64 {
        let cpu_millis: f64 = self.parts.iter().map(|part| part.millis).sum();
        (cpu_millis + stolen_millis).max(self.disk_millis)
    }

    fn sum(work: &[(Step, u64)], disk: Option<(Step, u64)>, limits: &Limits) -> Option<Self> {
        let millis =
            |(step, len_bytes): (Step, u64)| Some(limits.all(step)?.median * gib(len_bytes));
        let parts = work.iter().map(|&(step, len_bytes)| {
            let millis = millis((step, len_bytes))?;
            Some(Part { step, millis })
        });
        let parts: Vec<Part> = parts.collect::<Option<_>>()?;
        let disk_millis = disk.map_or(Some(0.0), millis)?;
        let mut bound = Self {
            millis: 0.0,
            parts,
            disk_millis,
        };
        bound.millis = bound.with_stolen(0.0);
        Some(bound)
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Encode,
    Decode,
}

/// The steps of the stages, and how many bytes go through each. `None`: a stage whose
/// limit nobody measures.
fn steps(case: &Case, volumes: Volumes, direction: Direction) -> Option<Vec<(Step, u64)>> {
    let mut len_bytes = volumes.raw_bytes;
    let mut steps = Vec::new();
    for stage in &case.stages {
        let (encode, decode) = match stage.as_str() {
            "lz4" => (Step::Lz4, Step::Lz4Decode),
            "zstd" => (Step::Zstd, Step::ZstdDecode),
            "crc32" => (Step::Crc32, Step::Crc32),
            "md5" => (Step::Md5, Step::Md5),
            "encrypt" => (Step::Aes, Step::Aes),
            "passthrough" => (Step::Memcpy, Step::Memcpy),
            _ => return None,
        };
        let step = match direction {
            Direction::Encode => encode,
            Direction::Decode => decode,
        };
        // By the bytes on the raw side of a compressor, as its limit is measured.
        steps.push((step, len_bytes));
        if matches!(encode, Step::Lz4 | Step::Zstd) {
            len_bytes = volumes.image_bytes;
        }
    }
    Some(steps)
}

/// Of the ways to fill absent pages, the fastest that this machine has.
fn fastest_populate(limits: &Limits) -> Option<Step> {
    let ways = [Step::UffdCopy, Step::Writev, Step::ProcMemWrite];
    let known = ways
        .into_iter()
        .filter_map(|way| Some((limits.all(way)?.median, way)));
    known
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, way)| way)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GIB: u64 = 1 << 30;
    const VOLUMES: Volumes = Volumes {
        raw_bytes: GIB,
        zero_bytes: GIB,
        image_bytes: GIB / 2,
    };

    /// Every limit 100 ms/GiB on all threads, but those given.
    fn limits(special: &[(Step, f64)]) -> Limits {
        let special: std::collections::BTreeMap<_, _> = special.iter().copied().collect();
        let values = Step::ALL.map(|(step, ..)| (step, *special.get(&step).unwrap_or(&100.0)));
        Limits::of_values(values)
    }

    #[test]
    fn work_of_the_cpus_adds_up() {
        let limits = limits(&[(Step::Lz4, 300.0)]);
        let bound = |stages| {
            Bound::of_checkpoint(&Case::new(stages, Sink::Tmpfs), VOLUMES, &limits).unwrap()
        };
        // pagemap, read, zeros and giving back: 2 GiB each; the image: half a GiB.
        assert_eq!(bound("plain").millis, 850.0);
        assert_eq!(bound("lz4").millis, 1150.0);
        // What stands behind the compressor works on less.
        assert_eq!(bound("lz4,crc32").millis, 1200.0);
        assert_eq!(bound("crc32,lz4").millis, 1250.0);
    }

    #[test]
    fn a_restore_fills_what_was_stored_the_fastest_way() {
        let limits = limits(&[(Step::Writev, 40.0)]);
        let case = Case::new("lz4", Sink::Tmpfs);
        let bound = Bound::of_restore(&case, VOLUMES, &limits).unwrap();
        assert_eq!(bound.millis, 50.0 + 100.0 + 40.0);
    }

    #[test]
    fn a_disk_works_besides() {
        let slow = limits(&[(Step::FileSync, 4000.0)]);
        let case = Case::new("plain", Sink::File);
        let bound = |limits| Bound::of_checkpoint(&case, VOLUMES, limits).unwrap();
        assert_eq!(bound(&slow).millis, 2000.0);
        assert_eq!(bound(&slow).with_stolen(10.0), 2000.0);
        // Half a GiB is written to the cache, and leaves it.
        let fast = bound(&limits(&[]));
        assert_eq!(fast.millis, 900.0);
        assert_eq!(fast.with_stolen(10.0), 910.0);
    }

    #[test]
    fn an_unknown_stage_has_no_bound() {
        let case = Case::new("mystery", Sink::Tmpfs);
        assert_eq!(Bound::of_checkpoint(&case, VOLUMES, &limits(&[])), None);
    }
}
