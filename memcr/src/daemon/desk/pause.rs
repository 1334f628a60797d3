//! What has failed is tried again, but not at once and not for ever at the same pace: the
//! reason (a disk that is away, a cgroup that is frozen) may last for days.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the first pause is, and the longest one; each is twice as long as the one before.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    len: Duration,
}

/// The pauses of processes whose sessions could not be finished.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<i32, Pause>);

impl Pauses {
    /// Something has failed with process `pid`.
    pub(super) fn begin(&mut self, pid: i32, now: Instant) {
        let before = self.0.get(&pid);
        let len = before.map_or(FIRST, |pause| (pause.len * 2).min(LONGEST));
        let until = now + len;
        self.0.insert(pid, Pause { until, len });
    }

    /// Whether it may be tried again.
    pub(super) fn are_over(&self, pid: i32, now: Instant) -> bool {
        self.0.get(&pid).is_none_or(|pause| pause.until <= now)
    }

    /// It has worked.
    pub(super) fn forget(&mut self, pid: i32) {
        self.0.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_longer_up_to_the_longest() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        assert!(pauses.are_over(7, now), "nothing has failed");
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pauses.begin(7, now);
            assert!(pauses.are_over(8, now), "of another process");
            now += Duration::from_secs(seconds);
            assert!(!pauses.are_over(7, now - Duration::from_millis(1)));
            assert!(pauses.are_over(7, now), "after {seconds} s");
        }
        pauses.forget(7);
        pauses.begin(7, now);
        assert!(pauses.are_over(7, now + FIRST), "from the beginning");
    }
}
