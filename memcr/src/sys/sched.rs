//! `/proc/PID/task/TID/sched`: since when does a thread sleep?

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};

use super::procfs::{self, Stat};

/// A sleep that lasts.
#[derive(Debug, Clone, Copy)]
pub struct Asleep {
    /// How long already.
    pub since: Duration,
    /// The thread's count of voluntary switches when it was looked at.
    pub n_voluntary_switches: u64,
}

/// How long thread `tid` of `pid` has slept. `None`: not known, or it runs.
///
/// `se.exec_start` of a sleeping thread is when it last ran, on the clock of its run
/// queue; these clocks drift apart (they leave out interrupt and stolen time). So the
/// time now is read on the same CPU: our own `exec_start`, just brought up to date by
/// sched_yield(2).
#[must_use]
pub fn asleep(pid: i32, tid: i32) -> Option<Asleep> {
    let cpu = Stat::read(format!("{pid}/task/{tid}")).ok()?.cpu;
    let ours = sched_getaffinity(None).ok()?;
    let mut theirs = CpuSet::new();
    theirs.set(cpu);
    sched_setaffinity(None, &theirs).ok()?;
    let noted = read(&format!("/proc/{pid}/task/{tid}/sched"));
    sched_yield();
    let now = read("/proc/thread-self/sched");
    // The set was ours a moment ago; where a CPU of it went away the kernel picks others.
    let _ = sched_setaffinity(None, &ours);
    let ((started, n_voluntary_switches), (now, _)) = (noted?, now?);
    Some(Asleep {
        since: now.checked_sub(started)?,
        n_voluntary_switches,
    })
}

fn read(path: &str) -> Option<(Duration, u64)> {
    parse(&procfs::read_lossy(path).ok()?)
}

/// `se.exec_start : 551824.745472` (milliseconds) and `nr_voluntary_switches : 12`.
fn parse(text: &str) -> Option<(Duration, u64)> {
    let field = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split(':').nth(1).map(str::trim)
    };
    let (millis, nanos) = field("se.exec_start")?.split_once('.')?;
    let started =
        Duration::from_millis(millis.parse().ok()?) + Duration::from_nanos(nanos.parse().ok()?);
    Some((started, field("nr_voluntary_switches")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_two_fields_are_found() {
        let text = "cat (7, #threads: 1)\n----\nse.exec_start                                :        551824.745472\n\
                    nr_switches                                  :                   14\n\
                    nr_voluntary_switches                        :                   12\n";
        let (started, switches) = parse(text).unwrap();
        assert_eq!(started, Duration::from_nanos(551_824_745_472));
        assert_eq!(switches, 12);
    }
}
