//! Calls that have not come back: who is waited for, and for how long nothing has moved.
//!
//! ```text
//!   enter ──▶ under way ──▶ dropped: back          quiet = since a call came back last,
//!                 │                                        or since the oldest began
//!                 │ quiet for the limit: stalled
//!                 ▼
//!               left ─────▶ dropped: back           only now somebody may try again
//! ```
//!
//! A plugin may wait for a server that is gone, or run in circles; a file may lie on such
//! a server. Nobody can end a thread from outside, so it is left behind, and the work it
//! was part of fails. Whoever waits for work looks here every few milliseconds, so there
//! is no thread that watches.
//!
//! What counts is that *anything* comes back: one write may take long on a slow disk
//! while others queue behind it. Time in which nobody looked (memcr was stopped, the
//! machine slept) does not count: the calls had none of it either.
//!
//! While a call that was left has not come back nothing new is begun. It may hold what
//! the next one would wait for; and a chunk that is on its way into the target must not
//! arrive after the target has been let go.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::pipeline::PipelineError;
use crate::pipeline::crew::guard;

/// How long nothing has to move before the work is given up, unless the user says
/// otherwise: longer than a disk that sleeps takes to wake, or a server to be started anew.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(60);

/// Longest time between two looks that counts. They are milliseconds apart as a rule.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// A commit may have to bring the whole image to the disk in one call, so it gets time by
/// the length: that of a slow memory card, bytes per second.
const SLOWEST_DISK: u64 = 4 << 20;

/// The calls of one pipeline.
pub(super) struct Calls {
    limit: Option<Duration>,
    log: Mutex<Log>,
    /// A call that was left came back.
    back: Condvar,
}

struct Log {
    calls: Vec<Call>,
    next_number: u64,
    /// Sum of the time that somebody watched.
    watched: Duration,
    last_look: Instant,
    /// When a call came back last, on the clock above.
    last_back: Duration,
}

struct Call {
    number: u64,
    who: Who,
    what: What,
    since: Duration,
    left: bool,
}

/// Who was called.
#[derive(Clone)]
pub(super) struct Who {
    text: Arc<str>,
    is_sink: bool,
}

impl Who {
    pub(super) fn stage(alias: &str) -> Self {
        Self::named(format!("stage `{alias}`"), false)
    }

    pub(super) fn sink(alias: &str) -> Self {
        Self::named(format!("sink `{alias}`"), true)
    }

    /// What is no stage: the target, a file.
    pub(super) fn other(text: &str) -> Self {
        Self::named(text.to_owned(), false)
    }

    fn named(text: String, is_sink: bool) -> Self {
        Self {
            text: text.into(),
            is_sink,
        }
    }
}

/// What it was called for.
#[derive(Clone, Copy)]
pub(crate) struct What {
    pub(crate) name: &'static str,
    chunk: Option<u64>,
    /// Time it may take beside the limit.
    extra: Duration,
    /// Only waits until another call into the same plugin or handle is back.
    waits: bool,
}

impl What {
    /// A call for one chunk.
    pub(crate) fn chunk(name: &'static str, index: u64) -> Self {
        Self {
            chunk: Some(index),
            ..name.into()
        }
    }

    /// A call that must not be made beside another one.
    pub(crate) fn turn() -> Self {
        Self {
            waits: true,
            ..Self::from("waiting for another call into it")
        }
    }

    /// A call that may have to write out `len` bytes.
    pub(crate) fn write_out(name: &'static str, len: u64) -> Self {
        Self {
            extra: Duration::from_secs(len / SLOWEST_DISK),
            ..name.into()
        }
    }
}

impl From<&'static str> for What {
    fn from(name: &'static str) -> Self {
        Self {
            name,
            chunk: None,
            extra: Duration::ZERO,
            waits: false,
        }
    }
}

/// Calls of one stage.
#[derive(Clone)]
pub(crate) struct Watch {
    calls: Arc<Calls>,
    who: Who,
}

impl Watch {
    pub(super) fn new(calls: &Arc<Calls>, who: Who) -> Self {
        Self {
            calls: Arc::clone(calls),
            who,
        }
    }

    /// A call begins; it is back when the answer is dropped.
    pub(crate) fn enter(&self, what: impl Into<What>) -> UnderWay<'_> {
        self.calls.enter(&self.who, what)
    }
}

/// A call that is under way.
pub(crate) struct UnderWay<'a> {
    calls: &'a Calls,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut log = guard(&self.calls.log);
        let mut was_left = false;
        log.calls.retain(|call| {
            was_left |= call.number == self.number && call.left;
            call.number != self.number
        });
        log.last_back = log.watched;
        if was_left {
            self.calls.back.notify_all();
        }
    }
}

impl Calls {
    /// No call yet. `limit`: how long nothing may come back; `None`: for ever.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        let log = Log {
            calls: Vec::new(),
            next_number: 0,
            watched: Duration::ZERO,
            last_look: Instant::now(),
            last_back: Duration::ZERO,
        };
        Self {
            limit,
            log: Mutex::new(log),
            back: Condvar::new(),
        }
    }

    /// A call begins; it is back when the answer is dropped.
    pub(super) fn enter(&self, who: &Who, what: impl Into<What>) -> UnderWay<'_> {
        let mut log = guard(&self.log);
        let number = log.next_number;
        log.next_number += 1;
        let since = log.watched;
        log.calls.push(Call {
            number,
            who: who.clone(),
            what: what.into(),
            since,
            left: false,
        });
        UnderWay {
            calls: self,
            number,
        }
    }

    /// The oldest call, if nothing came back for the limit. Who waits for another call is
    /// named only if that one is not of this pipeline.
    pub(super) fn stalled(&self) -> Option<PipelineError> {
        let limit = self.limit?;
        let mut log = guard(&self.log);
        log.look();
        let waiting = || log.calls.iter().filter(|call| !call.left);
        let oldest = waiting().min_by_key(|call| (call.what.waits, call.since))?;
        let extra = waiting().map(|call| call.what.extra).max()?;
        let quiet = log.watched - oldest.since.max(log.last_back);
        (quiet >= limit + extra).then(|| oldest.stalled(log.watched))
    }

    /// Nobody waits any more for the calls that are under way.
    pub(super) fn leave(&self) {
        guard(&self.log)
            .calls
            .iter_mut()
            .for_each(|call| call.left = true);
    }

    /// A call that was left and has not come back.
    pub(super) fn left(&self) -> Option<PipelineError> {
        let mut log = guard(&self.log);
        log.look();
        let left = log.calls.iter().find(|call| call.left);
        left.map(|call| call.stalled(log.watched))
    }

    /// A call into the sink that was left and has not come back.
    pub(super) fn left_in_sink(&self) -> Option<PipelineError> {
        let log = guard(&self.log);
        let left = log.calls.iter().find(|call| call.in_sink_and_left());
        left.map(|call| call.stalled(log.watched))
    }

    /// Waits, for ever if need be, until every call into the sink that was left is back.
    pub(super) fn wait_for_sink(&self) {
        let in_sink = |log: &mut Log| log.calls.iter().any(Call::in_sink_and_left);
        let log = guard(&self.log);
        drop(
            self.back
                .wait_while(log, in_sink)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Log {
    fn look(&mut self) {
        let now = Instant::now();
        self.watched += (now - self.last_look).min(LONGEST_LOOK);
        self.last_look = now;
    }
}

impl Call {
    fn in_sink_and_left(&self) -> bool {
        self.left && self.who.is_sink
    }

    fn stalled(&self, watched: Duration) -> PipelineError {
        let what = match self.what.chunk {
            Some(index) => format!("{} of chunk {index}", self.what.name),
            None => self.what.name.to_owned(),
        };
        PipelineError::Stalled {
            who: self.who.text.to_string(),
            what,
            waited: watched.saturating_sub(self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_millis(900);

    /// Lets so much time pass for the calls, without waiting for it.
    fn pass(calls: &Calls, millis: u64) {
        let mut log = guard(&calls.log);
        log.last_look -= Duration::from_millis(millis);
        log.look();
    }

    fn text(error: Option<PipelineError>) -> String {
        error.unwrap().to_string()
    }

    #[test]
    fn the_oldest_call_is_named_once_nothing_came_back() {
        let calls = Calls::new(Some(LIMIT));
        let (lz4, disk) = (Who::stage("lz4"), Who::sink("disk"));
        pass(&calls, 950);
        assert!(calls.stalled().is_none(), "nobody is waited for");
        let hung = calls.enter(&lz4, What::chunk("decode", 7));
        pass(&calls, 800);
        drop(calls.enter(&disk, "sink_read_at"));
        pass(&calls, 800);
        assert!(calls.stalled().is_none(), "something came back");
        pass(&calls, 150);
        assert_eq!(
            text(calls.stalled()),
            "stage `lz4`: decode of chunk 7 has not come back for 1 s"
        );
        assert!(calls.left().is_none());
        calls.leave();
        assert!(calls.stalled().is_none() && calls.left().is_some());
        drop(hung);
        assert!(calls.left().is_none());
    }

    #[test]
    fn time_in_which_nobody_looked_counts_a_little_only() {
        let calls = Calls::new(Some(Duration::from_secs(3)));
        let _hung = calls.enter(&Who::other("the target"), "fetch");
        pass(&calls, 3_600_000);
        assert!(calls.stalled().is_none());
        pass(&calls, 1000);
        pass(&calls, 1000);
        assert!(calls.stalled().is_some());
    }

    #[test]
    fn a_commit_has_time_by_its_length_and_without_a_limit_all_have() {
        let calls = Calls::new(Some(LIMIT));
        let _commit = calls.enter(&Who::sink("file"), What::write_out("sink_commit", 8 << 20));
        pass(&calls, 1000);
        pass(&calls, 1000);
        assert!(calls.stalled().is_none());
        pass(&calls, 950);
        assert!(calls.stalled().is_some());
        let calls = Calls::new(None);
        let _call = calls.enter(&Who::sink("file"), "sink_open");
        pass(&calls, 1000);
        assert!(calls.stalled().is_none());
    }

    #[test]
    fn who_holds_the_plugin_is_named_before_who_waits_for_it() {
        let calls = Calls::new(Some(LIMIT));
        let stage = Who::stage("solo");
        let _waits = calls.enter(&stage, What::turn());
        pass(&calls, 100);
        let hung = calls.enter(&stage, What::chunk("encode", 2));
        pass(&calls, 950);
        assert!(text(calls.stalled()).starts_with("stage `solo`: encode of chunk 2"));
        drop(hung);
        pass(&calls, 950);
        assert!(text(calls.stalled()).starts_with("stage `solo`: waiting for another call"));
    }

    #[test]
    fn the_sink_is_waited_for() {
        let calls = Calls::new(Some(LIMIT));
        let (stage, sink) = (Who::stage("a"), Who::sink("b"));
        let _stage = calls.enter(&stage, "encode");
        let write = calls.enter(&sink, "sink_write_at");
        calls.leave();
        assert!(text(calls.left_in_sink()).starts_with("sink `b`: sink_write_at"));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| calls.wait_for_sink());
            drop(write);
            waiter.join().unwrap();
        });
        assert!(calls.left_in_sink().is_none());
        assert!(calls.left().is_some(), "the stage is still there");
    }
}
