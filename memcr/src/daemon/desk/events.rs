//! What children say, and what becomes of their sessions.

use std::time::Instant;

use serde_json::Value;

use super::{Desk, Effect, Key, Session, Stage, Work, stopped};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::daemon::child::Task;
use crate::daemon::link::{Facts, How, News, Order};
use crate::session::gate::Step;

impl Desk {
    /// A child has said something.
    pub(in crate::daemon) fn news(&mut self, key: Key, news: News, now: Instant) {
        let Some(&pid) = self.children.get(&key) else {
            return;
        };
        if !self.belongs(pid, key) {
            return;
        }
        match news {
            News::At(step) => self.reached(pid, step),
            News::Held { facts, answer } => self.is_held(pid, facts, answer, now),
            News::Still(answer) => self.is_still_held(pid, &answer, now),
            News::End { how, answer } => {
                self.session(pid, |session| session.last_word = Some((how, answer)));
            }
        }
    }

    /// A child has ended; `fate`: in words, for one that had not said its last.
    pub(in crate::daemon) fn child_gone(&mut self, key: Key, fate: &str, now: Instant) {
        let Some(pid) = self.children.remove(&key) else {
            return;
        };
        if !self.belongs(pid, key) {
            return;
        }
        let mut last_word = None;
        self.session(pid, |session| {
            session.key = None;
            last_word = session.last_word.take();
        });
        match last_word {
            Some((How::Parked, answer)) => self.is_parked_now(pid, &answer, now),
            Some((how, answer)) => {
                self.pauses.forget(pid);
                self.finish(pid, how, &answer);
            }
            None => self.crashed(pid, fate, now),
        }
        self.pump(now);
    }

    fn belongs(&self, pid: i32, key: Key) -> bool {
        self.sessions
            .get(&pid)
            .is_some_and(|session| session.key == Some(key))
    }

    fn reached(&mut self, pid: i32, step: Step) {
        if let Some(name) = self.group_of(pid) {
            self.in_group(&name, |group| group.reached(pid, step));
        } else if let Some(key) = self.sessions.get(&pid).and_then(|session| session.key) {
            // Of a group that is over: nobody else is waited for.
            let order = Order::Go;
            self.effects.push_back(Effect::Tell { key, order });
        }
    }

    fn is_held(&mut self, pid: i32, facts: Facts, answer: Value, now: Instant) {
        self.counters.checkpointed(&facts, &answer);
        tracing::info!(
            pid,
            rss_before_bytes = facts.rss_before_bytes,
            rss_held_bytes = facts.rss_held_bytes,
            image_bytes = facts.image_bytes,
            millis = answer["checkpoint"]["frozen_millis"].as_f64(),
            "process {pid} ({}) is held",
            facts.name.escape_debug()
        );
        self.set_stage(pid, Stage::Held, now);
        let mut waiters = Vec::new();
        let mut is_wanted_back = false;
        self.session(pid, |session| {
            session.facts = facts;
            waiters = std::mem::take(&mut session.checkpoint);
            is_wanted_back = session.is_wanted_back();
        });
        for waiter in waiters {
            self.answer(waiter, answer.clone());
        }
        if let Some(name) = self.group_of(pid) {
            self.note_member(&name, pid, answer);
            self.in_group(&name, |group| group.held(pid));
        } else if is_wanted_back {
            self.bring_back(pid, false, now);
        }
        self.pump(now);
    }

    /// A restore has failed, and may be tried again.
    fn is_still_held(&mut self, pid: i32, answer: &Value, now: Instant) {
        self.counters.restores_failed += 1;
        self.warn(pid, answer);
        self.set_stage(pid, Stage::Held, now);
        self.restore_failed(pid, answer);
        self.pump(now);
    }

    /// No process is beside it any more: it was parked, or a restore of one that was parked
    /// has failed.
    fn is_parked_now(&mut self, pid: i32, answer: &Value, now: Instant) {
        let stage = self.sessions.get(&pid).map(|session| &session.stage);
        let was_to_restore = matches!(stage, Some(Stage::Restoring));
        self.set_stage(pid, Stage::Parked, now);
        let is_gone = self.sessions.get(&pid).is_some_and(|it| it.is_gone);
        if answer["ok"] == true && !is_gone {
            self.pauses.forget(pid);
            tracing::info!(pid, "process {pid} is held, with no memcr beside it");
            match self.group_of(pid) {
                // It was told to park before it was told to restore, and heard no more.
                Some(_) if was_to_restore => return self.bring_back(pid, true, now),
                Some(name) => return self.in_group(&name, |group| group.held(pid)),
                None => {}
            }
            let mut is_wanted_back = false;
            self.session(pid, |session| is_wanted_back = session.is_wanted_back());
            if is_wanted_back || was_to_restore {
                self.bring_back(pid, false, now);
            }
        } else {
            self.counters.restores_failed += 1;
            self.warn(pid, answer);
            self.stays(pid, answer, now);
        }
    }

    /// What was to be done with a parked process has failed. Of one that is there it can be
    /// tried again; of one that has ended something is left, which the journal tells.
    fn stays(&mut self, pid: i32, answer: &Value, now: Instant) {
        self.pauses.begin(pid, now);
        if self.sessions.get(&pid).is_some_and(|it| it.is_gone) {
            tracing::warn!(
                pid,
                "`memcr recover {pid}` removes what is left of process {pid}"
            );
            self.finish(pid, How::Exited, answer);
        } else {
            self.restore_failed(pid, answer);
        }
    }

    fn restore_failed(&mut self, pid: i32, answer: &Value) {
        let mut waiters = Vec::new();
        self.session(pid, |session| {
            waiters = std::mem::take(&mut session.restore);
            waiters.append(&mut session.checkpoint);
            waiters.append(&mut session.abort);
        });
        for waiter in waiters {
            self.answer(waiter, answer.clone());
        }
        if let Some(name) = self.group_of(pid) {
            self.note_member(&name, pid, answer.clone());
            self.in_group(&name, |group| group.held(pid));
        }
    }

    /// The session is over, and everybody who waits is answered.
    pub(super) fn finish(&mut self, pid: i32, how: How, answer: &Value) {
        let Some(session) = self.sessions.remove(&pid) else {
            return;
        };
        self.counters.ended(how, &session, answer);
        self.tell(pid, how, answer);
        self.recent.note(pid, session.uid, how, answer);
        let group = session.group.as_ref().map(|group| group.name.clone());
        self.answer_all(pid, how, &session, answer);
        if let Some(name) = group.filter(|name| self.groups.contains_key(name)) {
            self.note_member(&name, pid, answer.clone());
            self.in_group(&name, |group| match how {
                How::Restored => group.runs(pid),
                How::Exited => group.ended(pid, false),
                _ => group.ended(pid, true),
            });
        }
    }

    fn answer_all(&mut self, pid: i32, how: How, session: &Session, answer: &Value) {
        for &waiter in &session.checkpoint {
            // One that was restored before it was held was not checkpointed.
            let answer = match how {
                How::Restored => {
                    let what = format!("process {pid} was restored before it was held");
                    Failure::new(Exit::Aborted, what).to_json()
                }
                _ => answer.clone(),
            };
            self.answer(waiter, answer);
        }
        // Who wants it back, or its checkpoint stopped, has what was wanted when it runs.
        let runs = match how {
            How::Undone => Some(stopped(pid)),
            _ => None,
        };
        for &waiter in session.restore.iter().chain(&session.abort) {
            self.answer(waiter, runs.clone().unwrap_or_else(|| answer.clone()));
        }
    }

    fn tell(&self, pid: i32, how: How, answer: &Value) {
        match how {
            How::Restored => {
                let millis = super::recent::millis_of(&answer["restore"]);
                tracing::info!(pid, millis, "process {pid} is restored");
            }
            How::Undone if answer["exit_code"] == Exit::Aborted.code() => {
                tracing::info!(pid, "the checkpoint of process {pid} was stopped");
            }
            How::Undone => self.warn(pid, answer),
            How::Exited => tracing::info!(pid, "process {pid} has ended"),
            How::Killed => self.warn(pid, answer),
            How::Unheld => tracing::info!(pid, "process {pid} is not held any more"),
            How::Parked | How::Answered => {}
        }
    }

    /// A child that ended without a last word: most likely a stage plugin has crashed.
    /// Another one finds out what has become of the target.
    fn crashed(&mut self, pid: i32, fate: &str, now: Instant) {
        self.counters.crashes += 1;
        tracing::error!(
            pid,
            "the session's process of process {pid} {fate}, most likely in a stage plugin"
        );
        let Some(session) = self.sessions.get_mut(&pid) else {
            return;
        };
        let what = format!("the session's process {fate}, most likely in a stage plugin");
        let answer = Failure::new(Exit::Internal, what).to_json();
        let waiters = std::mem::take(&mut session.checkpoint);
        let again = !session.has_crashed;
        session.has_crashed = true;
        session.pending = None;
        for waiter in waiters {
            self.answer(waiter, answer.clone());
        }
        let group = self.group_of(pid);
        if let Some(name) = &group {
            self.note_member(name, pid, answer.clone());
        }
        if again {
            self.set_stage(pid, Stage::Settling, now);
            let settle = Work::Start(Task::Settle { pid });
            match group {
                // Others may wait for it who have had their turns.
                Some(name) => {
                    self.begin(pid, settle);
                    self.in_group(&name, |group| group.settles(pid));
                }
                None => self.in_turn(pid, settle),
            }
        } else {
            // It is not to crash for ever; the next who asks may try again.
            self.set_stage(pid, Stage::Parked, now);
            self.stays(pid, &answer, now);
        }
    }

    /// Says why something failed; the reasons name the process. Who waits for the one answer
    /// that there is hears it there.
    fn warn(&self, pid: i32, answer: &Value) {
        let why = answer["error"]["message"].as_str();
        let killed = format!("process {pid} was killed, as it was to be");
        let why = why.unwrap_or(&killed);
        if self.is_alone {
            tracing::info!(pid, "{why}");
        } else {
            tracing::warn!(pid, "{why}");
        }
    }
}
