//! Who waits for which answer, in which protocol, and until when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use memcr_wire::{Code, Command, Id, answer};
use serde_json::Value;

use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::daemon::desk::Waiter;

/// How an answer is put.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// As a number, of a restore or a checkpoint.
    Legacy(Command),
    /// As a line, with the id of its request.
    Own(Option<Id>),
}

/// One who waits.
#[derive(Debug)]
struct One {
    connection: u64,
    form: Form,
    /// When an answer is due, and what it is if nothing has come of it.
    due: Option<(Instant, Value)>,
}

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    all: BTreeMap<Waiter, One>,
    last: Waiter,
    /// What somebody who has no connection is answered.
    inside: BTreeMap<Waiter, Option<Value>>,
}

impl Waiting {
    /// A client waits from now on.
    pub(super) fn add(&mut self, connection: u64, form: Form) -> Waiter {
        self.last += 1;
        let one = One {
            connection,
            form,
            due: None,
        };
        self.all.insert(self.last, one);
        self.last
    }

    /// How many answers a connection, which may be over, waits for.
    pub(super) fn n_of(&self, connection: u64) -> usize {
        let all = self.all.values();
        all.filter(|one| one.connection == connection).count()
    }

    /// Somebody within waits from now on, and asks for the answer by [`Waiting::take`].
    pub(super) fn add_inside(&mut self) -> Waiter {
        self.last += 1;
        self.inside.insert(self.last, None);
        self.last
    }

    /// What somebody within was answered.
    pub(super) fn take(&mut self, waiter: Waiter) -> Option<Value> {
        let answer = self.inside.get_mut(&waiter)?.take()?;
        self.inside.remove(&waiter);
        Some(answer)
    }

    /// Whoever waits for a restore is told after `limit` that it is not done.
    pub(super) fn limit(&mut self, waiter: Waiter, limit: Option<Duration>, now: Instant) {
        let (Some(limit), Some(one)) = (limit, self.all.get_mut(&waiter)) else {
            return;
        };
        let Some(due) = now.checked_add(limit) else {
            return;
        };
        let what = format!(
            "the restore was not done within {} s; it goes on",
            limit.as_secs_f64()
        );
        let failure = Failure::new(Exit::RestoreFailed, what);
        one.due = Some((due, failure.to_json()));
    }

    /// Who has waited too long, and what they are told.
    pub(super) fn late(&mut self, now: Instant) -> Vec<(Waiter, Value)> {
        let late = |(&waiter, one): (&Waiter, &mut One)| {
            let (_, answer) = one.due.take_if(|(due, _)| *due <= now)?;
            Some((waiter, answer))
        };
        self.all.iter_mut().filter_map(late).collect()
    }

    /// The bytes of an answer, and the connection that they are for.
    pub(super) fn answer(&mut self, waiter: Waiter, answer: Value) -> Option<(u64, Vec<u8>)> {
        if let Some(place) = self.inside.get_mut(&waiter) {
            *place = Some(answer);
            return None;
        }
        let One {
            connection, form, ..
        } = self.all.remove(&waiter)?;
        let bytes = match form {
            Form::Legacy(command) => code_of(&answer, command).to_bytes().to_vec(),
            Form::Own(id) => answer::to_line(&answer::addressed(id.as_ref(), answer)),
        };
        Some((connection, bytes))
    }
}

/// An answer as the old protocol has it. Clients take -2 to a restore for "it runs": so it
/// must not be said of a target that somebody else holds.
fn code_of(answer: &Value, command: Command) -> Code {
    let code = answer["exit_code"].as_u64();
    let is = |exit: Exit| code == Some(exit.code().into());
    let is_held = is(Exit::Held) && command == Command::Checkpoint;
    if is(Exit::Ok) {
        Code::Ok
    } else if is_held || is(Exit::NotHeld) || is(Exit::NoProcess) {
        Code::InvalidPid
    } else {
        Code::General
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_take_the_form_of_their_request() {
        let mut waiting = Waiting::default();
        let old = waiting.add(1, Form::Legacy(Command::Restore));
        let own = waiting.add(2, Form::Own(Some(Id::Text("a".into()))));
        let answer = json!({ "ok": false, "exit_code": 14 });
        let (connection, bytes) = waiting.answer(old, answer.clone()).unwrap();
        assert_eq!(
            (connection, bytes),
            (1, Code::InvalidPid.to_bytes().to_vec())
        );
        let (_, bytes) = waiting.answer(own, answer.clone()).unwrap();
        let line = String::from_utf8(bytes).unwrap();
        assert!(
            line.contains("\"id\":\"a\"") && line.ends_with("}\n"),
            "{line}"
        );
        assert!(waiting.answer(own, answer).is_none(), "answered once");
    }

    #[test]
    fn what_is_held_by_somebody_else_does_not_run() {
        let held = json!({ "ok": false, "exit_code": 13 });
        assert_eq!(code_of(&held, Command::Checkpoint), Code::InvalidPid);
        assert_eq!(code_of(&held, Command::Restore), Code::General);
    }

    #[test]
    fn who_waits_too_long_is_told_once() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        let waiter = waiting.add(1, Form::Legacy(Command::Restore));
        waiting.limit(waiter, Some(Duration::from_secs(2)), now);
        assert!(waiting.late(now).is_empty());
        let late = waiting.late(now + Duration::from_secs(2));
        assert_eq!(late.len(), 1);
        assert!(
            late[0].1["error"]["message"]
                .as_str()
                .unwrap()
                .contains("within 2 s")
        );
        assert!(waiting.late(now + Duration::from_secs(9)).is_empty());
    }
}
