//! What becomes of all sessions when the daemon is to end.

use std::time::Instant;

use super::{Desk, Effect, STOPPED, Session, Stage, Work};
use crate::daemon::child::Task;
use crate::daemon::link::Order;

impl Desk {
    /// The daemon is to end: what is not complete is stopped.
    pub(in crate::daemon) fn stop_all(&mut self) {
        self.is_stopping = true;
        for name in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.stop_group(&name);
        }
        let pids: Vec<i32> = self.sessions.keys().copied().collect();
        for pid in pids {
            match self.sessions.get(&pid).map(|session| &session.stage) {
                Some(Stage::Queued(_)) => self.take_from_queue(pid, STOPPED),
                Some(Stage::Storing) => self.stop(pid),
                _ => {}
            }
        }
    }

    /// Leaves every held target so that another daemon finds it. Those that come to be held
    /// later, because a restore fails, are left when this is called again.
    pub(in crate::daemon) fn park_all(&mut self) {
        for session in self.sessions.values_mut() {
            if let (Stage::Held, Some(key), false) = (&session.stage, session.key, session.parks) {
                session.parks = true;
                let order = Order::Park;
                self.effects.push_back(Effect::Tell { key, order });
            }
        }
    }

    /// Restores held targets, at most `n` of them at a time; answers how many are left. Each
    /// is tried once: a disk that is away must not keep the daemon for ever.
    pub(in crate::daemon) fn restore_some(&mut self, n: usize, now: Instant) -> usize {
        let n_restoring = self.count(|stage| matches!(stage, Stage::Restoring));
        let mut pids = self.held();
        pids.retain(|pid| !self.tried.contains(pid));
        for &pid in pids.iter().take(n.saturating_sub(n_restoring)) {
            self.tried.insert(pid);
            self.bring_back(pid, false, now);
        }
        pids.len()
    }

    /// Ends every held target.
    pub(in crate::daemon) fn kill_all(&mut self, now: Instant) {
        for pid in self.held() {
            let key = self.sessions.get(&pid).and_then(|session| session.key);
            self.set_stage(pid, Stage::Settling, now);
            match key {
                Some(key) => self.effects.push_back(Effect::Tell {
                    key,
                    order: Order::Kill,
                }),
                None => self.in_turn(pid, Work::Start(Task::Kill { pid })),
            }
        }
    }

    fn held(&self) -> Vec<i32> {
        let is_held = |session: &Session| matches!(session.stage, Stage::Held | Stage::Parked);
        let held = self.sessions.iter().filter(|(_, session)| is_held(session));
        held.map(|(&pid, _)| pid).collect()
    }

    /// Whether something is under way that is to come to its end.
    pub(in crate::daemon) fn is_working(&self) -> bool {
        let is_done = |stage: &Stage| matches!(stage, Stage::Held | Stage::Parked);
        self.count(|stage| !is_done(stage)) > 0 || !self.groups.is_empty()
    }
}
