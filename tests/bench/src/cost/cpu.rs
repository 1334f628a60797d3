//! CPU time, by the clock that the kernel has for each process.
//!
//! `/proc/PID/stat` counts in 10 ms, and `/proc/PID/schedstat` of the threads that are left
//! only; this clock counts ns, of the threads that have ended too.

use std::process::Child;

use memcr_harness::{Context, Result, proc};
use nix::time::ClockId;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::Serialize;

use crate::stat::Stat;

/// CPU time that a process has had, in user and in kernel mode, ns.
///
/// # Errors
/// When it is gone.
pub(super) fn nanos(pid: u32) -> Result<u64> {
    let now = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid.cast_signed()))
        .and_then(ClockId::now)
        .context(format!("the CPU clock of process {pid}"))?;
    let nanos = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    Ok(nanos.cast_unsigned())
}

/// Waits for the end of a child; answers all that it has had, ns. The child stays to be
/// waited for, without which its clock would be gone.
///
/// # Errors
/// When somebody has waited for it already.
pub(super) fn nanos_at_end(child: &Child) -> Result<u64> {
    let ends = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(proc::handle(child.id())?), ends).context("the end of a child")?;
    nanos(child.id())
}

/// What a CPU does for each byte of the target.
#[derive(Debug, Serialize)]
pub(crate) struct PerByte {
    pub(crate) nanos: Stat,
    /// By the frequency that the kernel names; absent where it names none.
    pub(crate) cycles: Option<Stat>,
}

impl PerByte {
    /// Of so many ns, each for `len_bytes`. `None` of none.
    pub(super) fn of(nanos: impl Iterator<Item = u64>, len_bytes: u64) -> Option<Self> {
        let nanos = Stat::of(nanos.map(|nanos| nanos as f64 / len_bytes as f64))?;
        let cycles = mhz().map(|mhz| Stat {
            median: nanos.median * mhz / 1e3,
            min: nanos.min * mhz / 1e3,
            max: nanos.max * mhz / 1e3,
            n: nanos.n,
        });
        Some(Self { nanos, cycles })
    }
}

/// Cycles per µs of the first CPU. A guest has no counters, and the frequency may change:
/// this is what the kernel says now, in `/proc/cpuinfo`, which some CPUs do not.
pub(crate) fn mhz() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == "cpu MHz");
    values.next()?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{nanos, nanos_at_end};
    use std::process::Command;

    #[test]
    fn a_child_that_has_ended_still_tells() {
        let mut child = Command::new("true").spawn().unwrap();
        let in_all = nanos_at_end(&child).unwrap();
        assert!(in_all > 0);
        assert_eq!(nanos(child.id()).unwrap(), in_all);
        child.wait().unwrap();
        assert!(nanos(child.id()).is_err());
    }
}
