//! What is said of requests and connections that are denied: so much of each user, and of the
//! rest the number. Whoever may connect could fill the log otherwise.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How many are told of one user within [`WINDOW`].
const N_TOLD: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Window {
    began: Instant,
    n: u32,
}

/// What was denied of late, by the user; `None`: of those who were not even let in.
#[derive(Debug, Default)]
pub(super) struct Denials(BTreeMap<Option<u32>, Window>);

impl Denials {
    /// One more; whether it is to be told.
    pub(super) fn note(&mut self, uid: Option<u32>, now: Instant) -> bool {
        let window = self.0.entry(uid).or_insert(Window { began: now, n: 0 });
        window.n = window.n.saturating_add(1);
        window.n <= N_TOLD
    }

    /// Says how many were not told of, as far as it is time.
    pub(super) fn sum_up(&mut self, now: Instant) {
        for (uid, n) in self.over(now) {
            let seconds = WINDOW.as_secs();
            match uid {
                Some(uid) => {
                    tracing::warn!(
                        uid,
                        n,
                        "user {uid} was denied {n} more requests in {seconds} s"
                    );
                }
                None => tracing::warn!(n, "{n} more connections were refused in {seconds} s"),
            }
        }
    }

    /// Who was denied something in a window that is over, and how often that was not told.
    fn over(&mut self, now: Instant) -> Vec<(Option<u32>, u32)> {
        let mut over = Vec::new();
        self.0.retain(|uid, window| {
            let is_over = now.duration_since(window.began) >= WINDOW;
            if is_over && window.n > N_TOLD {
                over.push((*uid, window.n - N_TOLD));
            }
            !is_over
        });
        over
    }

    /// Whether there is nothing to be said later.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_the_number_is_told() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        let told = (0..100).filter(|_| denials.note(Some(1000), now)).count();
        assert_eq!(told, 10);
        assert!(denials.note(Some(1001), now), "another user");
        assert_eq!(denials.over(now), []);
        assert_eq!(denials.over(now + WINDOW), [(Some(1000), 90)]);
        assert!(denials.is_empty());
        assert!(denials.note(Some(1000), now + WINDOW));
    }
}
