//! The same work on several threads that start together.

use std::sync::Barrier;
use std::time::Instant;

use memcr_harness::{Result, Trouble};

use crate::stat::millis;

/// Does `work` on every share, each on a thread of its own; answers the milliseconds
/// from the start of the first to the end of the last.
///
/// # Errors
/// The first failure among the shares.
pub(crate) fn timed<S: Send>(shares: Vec<S>, work: impl Fn(S) -> Result + Sync) -> Result<f64> {
    let barrier = Barrier::new(shares.len());
    let (barrier, work) = (&barrier, &work);
    let spans = std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|share| {
                scope.spawn(move || {
                    barrier.wait();
                    let begin = Instant::now();
                    work(share).map(|()| (begin, Instant::now()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Trouble::Failed("a thread panicked".into())))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let begin = spans.iter().map(|(begin, _)| *begin).min();
    let end = spans.iter().map(|(_, end)| *end).max();
    match (begin, end) {
        (Some(begin), Some(end)) => Ok(millis(end - begin)),
        _ => Err(Trouble::Failed("no shares, no time".into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::timed;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn every_share_is_worked_on() {
        let sum = AtomicU32::new(0);
        let millis = timed(vec![1, 2, 4], |share| {
            sum.fetch_add(share, Ordering::Relaxed);
            Ok(())
        });
        assert!(millis.unwrap() >= 0.0);
        assert_eq!(sum.into_inner(), 7);
    }

    #[test]
    fn one_failure_is_the_answer() {
        let trouble = timed(vec![1, 2], |share| match share {
            2 => Err("two".into()),
            _ => Ok(()),
        });
        assert_eq!(trouble.unwrap_err().to_string(), "two");
    }
}
