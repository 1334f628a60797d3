//! CPU time that a host takes from its guest (steal time, proc_stat(5)): a CPU that has work
//! stands still. It goes to other guests, and to the program that is the guest's disk.

use std::fs;

use memcr_harness::{Context, Result};
use rustix::param::clock_ticks_per_second;

/// What every CPU has lost since boot, ms, in the mean. The kernel tells it in 10 ms of all
/// CPUs together, so that of something short only the mean over many says much.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn millis_per_cpu() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let (ticks, n_cpus) = stolen(&text)
        .ok_or("missing")
        .context("steal time in /proc/stat")?;
    Ok(ticks as f64 * 1e3 / clock_ticks_per_second() as f64 / n_cpus as f64)
}

/// The eighth number of the first line, and of how many CPUs it is the sum.
fn stolen(stat: &str) -> Option<(u64, usize)> {
    let mut words = stat.lines().next()?.split_ascii_whitespace();
    (words.next()? == "cpu").then_some(())?;
    let ticks = words.nth(7)?.parse().ok()?;
    let cpus = stat.lines().skip(1).take_while(|it| it.starts_with("cpu"));
    Some((ticks, cpus.count().max(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{millis_per_cpu, stolen};

    #[test]
    fn steal_is_the_eighth_number() {
        let stat = "cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2\ncpu1 1 2\nintr 1 2\n";
        assert_eq!(stolen(stat), Some((80, 2)));
        assert_eq!(stolen("cpu 1 2 3"), None);
        assert_eq!(stolen(""), None);
        assert!(millis_per_cpu().unwrap() >= 0.0);
    }
}
