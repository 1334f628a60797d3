//! What a cycle takes beside time: RAM and CPU.
//!
//! ```text
//!   memcr starts ─────────────▶ held ──────▶ Enter ─────▶ memcr has exited
//!     ├── available, every 2 ms ──┤                              RAM rise: at the least
//!     └ available                 └ available, image in cache    RAM won
//!     └──── CPU of both: out ─────┴─────── CPU of both: back ──┘
//! ```
//!
//! *Both* are memcr and the target: what a thread of the target does for memcr, as giving
//! its pages back, is counted for the target. Threads of the kernel (a disk's writers) are
//! counted for nobody.

mod cpu;
pub(crate) mod ram;

use std::fs::File;
use std::path::Path;
use std::process::Child;

use memcr_harness::Result;
use serde::Serialize;

use self::cpu::PerByte;
pub(crate) use self::cpu::mhz;
use self::ram::{Ram, Watch};
use crate::bound::Volumes;
use crate::case::Sink;
use crate::cycle::Cycle;
use crate::figures::Figures;
use crate::raw;
use crate::report::print_table;
use crate::stat::{Stat, mib};

/// What one cycle took.
#[derive(Debug, Clone)]
pub(crate) struct Cost {
    /// How much less was available, at most, than before the checkpoint, KiB.
    rise_kib: i64,
    /// How much more is while the target is held, KiB.
    won_kib: i64,
    /// Of the image, what is in the page cache while the target is held, bytes. Absent where
    /// the kernel does not tell, or the image is elsewhere.
    cached_bytes: Option<u64>,
    /// CPU time of memcr and of the target, ns.
    out_nanos: u64,
    back_nanos: u64,
}

impl Cost {
    /// Whether both ways took any.
    pub(crate) fn has_cpu_time(&self) -> bool {
        self.out_nanos > 0 && self.back_nanos > 0
    }
}

/// A checkpoint that is watched.
pub(crate) struct Meter {
    watch: Watch,
    target: u32,
    target_nanos: u64,
}

impl Meter {
    /// Begins, before memcr starts.
    ///
    /// # Errors
    /// When the machine does not tell.
    pub(crate) fn start(target: u32) -> Result<Self> {
        Ok(Self {
            watch: Watch::start()?,
            target,
            target_nanos: cpu::nanos(target)?,
        })
    }

    /// While the target is held by `memcr`, with an image at `image`.
    ///
    /// # Errors
    /// As [`Meter::start`].
    pub(crate) fn held(self, memcr: u32, image: &Path) -> Result<Held> {
        let begin_kib = self.watch.begin.available_kib;
        let least_kib = self.watch.least_kib()?;
        let (memcr_nanos, target_nanos) = (cpu::nanos(memcr)?, cpu::nanos(self.target)?);
        Ok(Held {
            target: self.target,
            memcr_nanos,
            target_nanos,
            cost: Cost {
                rise_kib: begin_kib - least_kib,
                won_kib: Ram::now()?.available_kib - begin_kib,
                cached_bytes: cached_bytes(image).ok(),
                out_nanos: memcr_nanos + target_nanos - self.target_nanos,
                back_nanos: 0,
            },
        })
    }
}

/// What of a file is in the page cache.
fn cached_bytes(file: &Path) -> std::io::Result<u64> {
    let n_pages = raw::cached_pages(&File::open(file)?)?;
    Ok(n_pages * rustix::param::page_size() as u64)
}

/// A target that is held.
pub(crate) struct Held {
    cost: Cost,
    target: u32,
    memcr_nanos: u64,
    target_nanos: u64,
}

impl Held {
    /// Waits for the end of memcr, which stays to be waited for, before the target does
    /// anything else.
    ///
    /// # Errors
    /// When one of them is gone.
    pub(crate) fn over(self, memcr: &Child) -> Result<Cost> {
        let memcr_nanos = cpu::nanos_at_end(memcr)? - self.memcr_nanos;
        let target_nanos = cpu::nanos(self.target)? - self.target_nanos;
        Ok(Cost {
            back_nanos: memcr_nanos + target_nanos,
            ..self.cost
        })
    }
}

/// What the cycles of one case took.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// How much less was available, at most, during the checkpoint.
    rise_mib: Stat,
    /// Of that, what is not the image in RAM.
    beside_image_mib: Stat,
    /// How much more is available while the target is held.
    won_mib: Stat,
    /// What was taken from the target, less the image in RAM.
    promised_mib: f64,
    /// The part of the image that is in the page cache of a disk's file system; absent for
    /// images in RAM.
    cached_mib: Option<Stat>,
    /// CPU time of memcr and of the target for each byte taken.
    out: PerByte,
    back: PerByte,
}

impl Row {
    /// Of cycles that moved `volumes`. `None` of none.
    pub(crate) fn of(cycles: &[Cycle], sink: Sink, volumes: Volumes) -> Option<Self> {
        let all_bytes = volumes.raw_bytes + volumes.zero_bytes;
        let image_bytes = match sink {
            Sink::Tmpfs => volumes.image_bytes,
            Sink::File => 0,
        };
        let costs = || cycles.iter().map(|cycle| &cycle.cost);
        let stat = |kib: fn(&Cost) -> i64| Stat::of(costs().map(|it| kib(it) as f64 / 1024.0));
        let rise_mib = stat(|cost| cost.rise_kib)?;
        let image_mib = mib(image_bytes);
        let cached = costs().filter_map(|cost| cost.cached_bytes.map(mib));
        Some(Self {
            rise_mib,
            beside_image_mib: Stat {
                median: rise_mib.median - image_mib,
                min: rise_mib.min - image_mib,
                max: rise_mib.max - image_mib,
                n: rise_mib.n,
            },
            won_mib: stat(|cost| cost.won_kib)?,
            promised_mib: mib(all_bytes) - image_mib,
            cached_mib: match sink {
                Sink::Tmpfs => None,
                Sink::File => Stat::of(cached),
            },
            out: PerByte::of(costs().map(|cost| cost.out_nanos), all_bytes)?,
            back: PerByte::of(costs().map(|cost| cost.back_nanos), all_bytes)?,
        })
    }
}

/// Prints what the cases at one size take.
pub(crate) fn print(figures: &Figures) {
    let cycles = mhz().map_or("CPU, ns per byte".into(), |mhz| {
        format!("CPU at {mhz:.0} MHz, cycles per byte")
    });
    let mut table = vec![
        [
            &format!("what it takes, {} MiB", figures.size_mib),
            "RAM rise MiB",
            "beside the image",
            "RAM won MiB",
            "promised",
            "image in page cache MiB",
            &format!("{cycles}: out"),
            "back",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for row in &figures.rows {
        let cost = &row.cost;
        table.push(vec![
            format!("{} → {}", row.pipeline, row.sink),
            whole(&cost.rise_mib),
            whole(&cost.beside_image_mib),
            whole(&cost.won_mib),
            format!("{:.0}", cost.promised_mib),
            cost.cached_mib.as_ref().map_or("–".into(), whole),
            cost.out.cycles.unwrap_or(cost.out.nanos).text(),
            cost.back.cycles.unwrap_or(cost.back.nanos).text(),
        ]);
    }
    print_table(&table);
}

/// The kernel counts for each CPU, and adds up now and then: parts of a MiB mean nothing.
fn whole(stat: &Stat) -> String {
    let Stat {
        median, min, max, ..
    } = stat;
    format!("{median:.0} ({min:.0} … {max:.0})")
}
