//! Whose turn it is: checkpoints wait for each other and for restores, restores only for
//! very many others.

use std::time::Instant;

use super::{Desk, Effect, PATIENCE, Session, Stage, TOO_LATE, Work};
use crate::daemon::child::Task;
use crate::daemon::link::Order;

impl Desk {
    /// Begins what has waited long enough.
    pub(in crate::daemon) fn pump(&mut self, now: Instant) {
        self.take_turns();
        self.leave_out_late(now);
        while let Some(&pid) = self.queue.front() {
            let n_storing = self.count(|stage| matches!(stage, Stage::Storing | Stage::Stopping));
            let n_restoring = self.count(|stage| matches!(stage, Stage::Restoring));
            let Some(session) = self.sessions.get_mut(&pid) else {
                self.queue.pop_front();
                continue;
            };
            let has_waited = now.duration_since(session.since) >= PATIENCE;
            if n_storing >= self.limits.n_checkpoints || (n_restoring > 0 && !has_waited) {
                return;
            }
            self.queue.pop_front();
            let before = std::mem::replace(&mut session.stage, Stage::Storing);
            session.since = now;
            let until = session.until;
            if let Stage::Queued(mut task) = before {
                // The time begins when it is asked for.
                if let Some(until) = until {
                    task.args.job.timeout = Some(until.saturating_duration_since(now));
                }
                self.start(pid, Task::Checkpoint(task));
            }
        }
    }

    /// Checkpoints whose time is up are not begun any more.
    fn leave_out_late(&mut self, now: Instant) {
        let is_late = |pid: &i32| {
            let until = self.sessions.get(pid).and_then(|session| session.until);
            until.is_some_and(|until| until <= now)
        };
        let late: Vec<i32> = self.queue.iter().copied().filter(is_late).collect();
        for pid in late {
            self.take_from_queue(pid, TOO_LATE);
        }
    }

    /// Restores a held target.
    pub(super) fn bring_back(&mut self, pid: i32, gated: bool, now: Instant) {
        let Some(session) = self.sessions.get_mut(&pid) else {
            return;
        };
        session.since = now;
        let before = std::mem::replace(&mut session.stage, Stage::Restoring);
        let work = match (before, session.key) {
            (Stage::Held, Some(_)) => Work::Tell(Order::Restore { gated }),
            _ => Work::Start(Task::Restore { pid, gated }),
        };
        if gated {
            // A group sees to it itself that not all move bytes at once; waiting for a turn,
            // its members might wait for each other.
            self.begin(pid, work);
        } else {
            self.in_turn(pid, work);
        }
    }

    /// Does `work`, at once or when there are not too many others at it.
    pub(super) fn in_turn(&mut self, pid: i32, work: Work) {
        self.session(pid, |session| session.pending = Some(work));
        self.turns.push_back(pid);
        self.take_turns();
    }

    fn take_turns(&mut self) {
        let is_at_it = |session: &Session| {
            let stage = &session.stage;
            session.pending.is_none() && matches!(stage, Stage::Restoring | Stage::Settling)
        };
        let mut n_at_it = self.sessions.values().filter(|it| is_at_it(it)).count();
        while n_at_it < self.limits.n_restores
            && let Some(pid) = self.turns.pop_front()
        {
            let session = self.sessions.get_mut(&pid);
            if let Some(work) = session.and_then(|session| session.pending.take()) {
                n_at_it += 1;
                self.begin(pid, work);
            }
        }
    }

    pub(super) fn begin(&mut self, pid: i32, work: Work) {
        let key = self.sessions.get(&pid).and_then(|session| session.key);
        match (work, key) {
            (Work::Tell(order), Some(key)) => {
                self.effects.push_back(Effect::Tell { key, order });
            }
            // Its end is on its way to us.
            (Work::Tell(_), None) => {}
            (Work::Start(task), _) => self.start(pid, task),
        }
    }

    pub(super) fn start(&mut self, pid: i32, task: Task) {
        self.last_key += 1;
        let key = self.last_key;
        self.children.insert(key, pid);
        self.session(pid, |session| session.key = Some(key));
        self.effects.push_back(Effect::Start { key, task });
    }
}
