//! Swap in compressed RAM, filled from outside.
//!
//! ```text
//!   /sys/class/zram-control/hot_add ─▶ zramN: comp_algorithm, disksize ─ mkswap ─ swapon
//!   process_madvise(target, MADV_PAGEOUT), until all is in swap       out
//!   the target reads its pages: a fault each                          back
//!   swapoff ─ reset ─ hot_remove                                      on drop, come what may
//! ```
//!
//! The device is there for one trip only, with the highest priority: nothing else of the
//! machine stays in it. A bench that is killed leaves it: `swapoff /dev/zramN`, and N into
//! `hot_remove`.
//!
//! What the machine refuses (a container without the right to have swap, or with none for
//! its processes) is something that it lacks, and no failure.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use memcr_harness::zram::refused;
use memcr_harness::{Context, Result, Trouble, Zram, ensure, proc};
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Traveller, Trip};
use crate::args::Args;
use crate::raw;
use crate::stat::millis;
use crate::team;

/// Part of the memory that must have gone, in hundredths: pages that some CPU is just about
/// to put into a list of the kernel cannot.
const ENOUGH: u64 = 95;

/// Pages a target of its own out by so many threads, and lets it fetch everything back.
pub(super) fn trip(n_threads: usize, size_mib: u64, args: &Args) -> Result<Trip> {
    // Before the target, so that it goes after it: swapoff brings back what is left.
    let device = Device::open(2 * (size_mib << 20))?;
    let mut target = Traveller::ready(size_mib, args)?;
    let begin = Instant::now();
    page_out(&target, n_threads)?;
    let out_millis = millis(begin.elapsed());

    let held_bytes = device.stored_bytes()?;
    let won_kib = target.away()?;
    let begin = Instant::now();
    target.call()?;
    let (word_millis, read_millis) = target.back(begin)?;
    target.verify(args)?;
    Ok(Trip {
        out_millis,
        word_millis,
        read_millis,
        held_bytes,
        won_kib,
    })
}

/// Until all is in swap, or nothing more goes there.
fn page_out(target: &Traveller, n_threads: usize) -> Result {
    let pid = target.victim.pid();
    let handle = pidfd_open(proc::handle(pid)?, PidfdFlags::empty()).context("pidfd_open")?;
    let all_kib = target.len_bytes as u64 / 1024;
    let mut swapped_kib = 0;
    loop {
        sweep(&handle, target, n_threads)?;
        let now_kib = proc::kib(&proc::text(pid, "status")?, "VmSwap")?;
        if now_kib >= all_kib || now_kib <= swapped_kib {
            swapped_kib = swapped_kib.max(now_kib);
            break;
        }
        swapped_kib = now_kib;
    }
    if swapped_kib * 100 >= all_kib * ENOUGH {
        return Ok(());
    }
    let why = format!("only {swapped_kib} of {all_kib} KiB went to swap");
    Err(Trouble::Skipped(why))
}

/// Once over the memory, each thread over a part of its own.
fn sweep(handle: &OwnedFd, target: &Traveller, n_threads: usize) -> Result {
    // Whole huge pages: one that two threads want would be split.
    let part = target
        .len_bytes
        .div_ceil(n_threads)
        .next_multiple_of(2 << 20);
    let shares = (0..target.len_bytes).step_by(part).map(|start| {
        let len = part.min(target.len_bytes - start);
        (target.addr + start, len)
    });
    team::timed(shares.collect(), |(addr, len)| advise(handle, addr, len)).map(drop)
}

fn advise(handle: &OwnedFd, mut addr: usize, mut len: usize) -> Result {
    while len > 0 {
        let n = refused(
            "process_madvise(MADV_PAGEOUT)",
            raw::page_out(handle, addr, len),
        )?;
        ensure(n > 0, || {
            "process_madvise(MADV_PAGEOUT) goes nowhere".into()
        })?;
        (addr, len) = (addr + n, len - n);
    }
    Ok(())
}

/// A zram device in use for swap; gone on drop.
struct Device(Zram);

impl Device {
    /// A new one that takes in `len_bytes`.
    ///
    /// # Errors
    /// `Skipped` where the machine has none, or not for this user.
    fn open(len_bytes: u64) -> Result<Self> {
        let device = Self(Zram::open(len_bytes)?);
        device.run("mkswap", &[])?;
        device.run("swapon", &["--priority", "32767"])?;
        Ok(device)
    }

    /// All memory that it takes for what is in it, bytes.
    fn stored_bytes(&self) -> Result<u64> {
        let file = self.0.attribute("mm_stat");
        let text = fs::read_to_string(&file).context(&file)?;
        // As it was, compressed, with what the allocator takes: orig_data_size,
        // compr_data_size, mem_used_total.
        let used = text.split_whitespace().nth(2);
        used.and_then(|used| used.parse().ok())
            .ok_or_else(|| Trouble::Failed(format!("no third number in {file}: `{text}`")))
    }

    /// A program of util-linux, on the device.
    fn run(&self, program: &str, words: &[&str]) -> Result {
        let mut command = Command::new(program);
        command.args(words).arg(self.0.path());
        command.stdin(Stdio::null());
        let output = refused(program, command.output())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let why = format!("{program}: {}: {}", output.status, said.trim());
        Err(Trouble::Skipped(why))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Fails when it was not in use yet.
        let _ = self.run("swapoff", &[]);
    }
}
