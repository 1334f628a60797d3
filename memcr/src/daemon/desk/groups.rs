//! Groups at the desk: what a [`Group`] says is to be done becomes sessions, orders and
//! answers.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Desk, Effect, Session, Stage, Waiter};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::daemon::child::{Checkpoint, Task};
use crate::daemon::group::{Group, Move};
use crate::daemon::link::Order;
use crate::session::journal::GroupRecord;

/// A group that is worked on.
#[derive(Debug)]
pub(super) struct Working {
    group: Group,
    /// How each member is checkpointed, but for its pid and place.
    template: Option<Checkpoint>,
    /// Who asked for the work.
    waiters: Vec<Waiter>,
    /// Who wants a checkpoint stopped, or its processes back.
    stoppers: Vec<Waiter>,
    /// What was said of each member last.
    answers: BTreeMap<i32, Value>,
}

impl Desk {
    /// Somebody asks for a checkpoint of `pids` as one, parents first, under `name`.
    pub(in crate::daemon) fn checkpoint_group(
        &mut self,
        name: &str,
        pids: &[i32],
        template: Checkpoint,
        waiter: Waiter,
        now: Instant,
    ) {
        let refused = if pids.is_empty() {
            Some(Failure::new(
                Exit::NoProcess,
                format!("no process in {name}"),
            ))
        } else if self.groups.contains_key(name) {
            Some(Failure::new(
                Exit::Held,
                format!("{name} is worked on already"),
            ))
        } else {
            self.refused(pids)
        };
        if let Some(refused) = refused {
            return self.answer(waiter, refused.to_json());
        }
        let (group, moves) = Group::checkpoint(pids, self.limits.n_checkpoints);
        self.work_on(name, group, Some(template), waiter);
        self.do_moves(name, moves, now);
    }

    /// Somebody asks for a restore of all that was checkpointed under `name`.
    pub(in crate::daemon) fn restore_group(&mut self, name: &str, waiter: Waiter, now: Instant) {
        if let Some(working) = self.groups.get_mut(name) {
            if working.group.is_restore() {
                return working.waiters.push(waiter);
            }
            working.stoppers.push(waiter);
            return self.stop_group(name);
        }
        let pids = self.held_in(name);
        if pids.is_empty() {
            let failure = Failure::new(Exit::NotHeld, format!("nothing of {name} is held"));
            return self.answer(waiter, failure.to_json());
        }
        let is_ready = |pid| {
            let stage = self.sessions.get(&pid).map(|session| &session.stage);
            matches!(stage, Some(Stage::Held | Stage::Parked))
        };
        let (group, moves) = Group::restore(&pids, is_ready, self.limits.n_checkpoints);
        self.work_on(name, group, None, waiter);
        self.do_moves(name, moves, now);
    }

    /// Somebody wants a checkpoint of a group stopped.
    pub(in crate::daemon) fn abort_group(&mut self, name: &str, waiter: Waiter) {
        match self.groups.get_mut(name) {
            Some(working) if !working.group.is_restore() => {
                working.stoppers.push(waiter);
                self.stop_group(name);
            }
            _ => {
                let what = format!("there is no checkpoint of {name} under way");
                self.answer(waiter, Failure::new(Exit::NotHeld, what).to_json());
            }
        }
    }

    /// These processes are in the group now; asked for by [`Effect::Look`].
    pub(in crate::daemon) fn members(&mut self, name: &str, pids: &[i32]) {
        self.in_group(name, |group| group.members(pids));
    }

    /// The group that process `pid` is worked on with.
    pub(super) fn group_of(&self, pid: i32) -> Option<String> {
        let name = &self.sessions.get(&pid)?.group.as_ref()?.name;
        self.groups.contains_key(name).then(|| name.clone())
    }

    /// Whether process `pid` is a member of a group that is being checkpointed.
    pub(super) fn is_in_checkpoint(&self, pid: i32) -> bool {
        let name = self.group_of(pid);
        let working = name.and_then(|name| self.groups.get(&name));
        working.is_some_and(|working| !working.group.is_restore())
    }

    pub(super) fn stop_group(&mut self, name: &str) {
        self.in_group(name, Group::stop);
    }

    /// Tells a group what happened, and does what it says.
    pub(super) fn in_group(&mut self, name: &str, event: impl FnOnce(&mut Group) -> Vec<Move>) {
        if let Some(working) = self.groups.get_mut(name) {
            let moves = event(&mut working.group);
            self.do_moves(name, moves, Instant::now());
        }
    }

    /// What was said of a member. Of a checkpoint its first failure stays: that it was undone
    /// well afterwards is not the reason.
    pub(super) fn note_member(&mut self, name: &str, pid: i32, answer: Value) {
        if let Some(working) = self.groups.get_mut(name) {
            let before = working.answers.get(&pid);
            let has_failed = before.is_some_and(|before| before["ok"] == false);
            if !has_failed || working.group.is_restore() {
                working.answers.insert(pid, answer);
            }
        }
    }

    fn work_on(&mut self, name: &str, group: Group, template: Option<Checkpoint>, waiter: Waiter) {
        let working = Working {
            group,
            template,
            waiters: vec![waiter],
            stoppers: Vec::new(),
            answers: BTreeMap::new(),
        };
        self.groups.insert(name.to_owned(), working);
    }

    /// What is held under `name`, or may turn out to be, in the order in which it was frozen.
    fn held_in(&self, name: &str) -> Vec<i32> {
        let mut held: Vec<(u32, i32)> = Vec::new();
        for (&pid, session) in &self.sessions {
            let (stage, group) = (&session.stage, &session.group);
            let may_be_held = !matches!(stage, Stage::Queued(_) | Stage::Storing | Stage::Stopping);
            if let Some(group) = group.as_ref().filter(|_| may_be_held)
                && group.name == name
            {
                held.push((group.index, pid));
            }
        }
        held.sort_unstable();
        held.into_iter().map(|(_, pid)| pid).collect()
    }

    fn do_moves(&mut self, name: &str, moves: Vec<Move>, now: Instant) {
        let mut moves = VecDeque::from(moves);
        while let Some(next) = moves.pop_front() {
            match next {
                Move::Begin { pid, index } => {
                    if let Err(refused) = self.begin_member(name, pid, index, now)
                        && let Some(working) = self.groups.get_mut(name)
                    {
                        working.answers.insert(pid, refused.to_json());
                        moves.extend(working.group.ended(pid, true));
                    }
                }
                Move::Go { pid } => self.tell_member(pid, Order::Go),
                Move::Stop { pid } => self.stop_member(pid),
                Move::Restore { pid } => self.bring_back(pid, true, now),
                Move::Look => self.effects.push_back(Effect::Look {
                    group: name.to_owned(),
                }),
                Move::Over => self.group_over(name),
            }
        }
    }

    fn begin_member(
        &mut self,
        name: &str,
        pid: i32,
        index: u32,
        now: Instant,
    ) -> Result<(), Failure> {
        if let Some(refused) = self.refused(&[pid]) {
            return Err(refused);
        }
        let Some(working) = self.groups.get(name) else {
            return Ok(());
        };
        let n_members = working.group.pids().count();
        let Some(mut task) = working.template.clone() else {
            return Ok(());
        };
        let group = GroupRecord {
            name: name.to_owned(),
            index,
        };
        task.pid = pid;
        task.group = Some(group.clone());
        task.choice.spec.workers = task.choice.spec.workers.or(workers_of_one(n_members));
        let mut session = Session::new(pid, Stage::Storing, now);
        session.group = Some(group);
        self.sessions.insert(pid, session);
        self.start(pid, Task::Checkpoint(Box::new(task)));
        Ok(())
    }

    fn tell_member(&mut self, pid: i32, order: Order) {
        if let Some(key) = self.sessions.get(&pid).and_then(|session| session.key) {
            self.effects.push_back(Effect::Tell { key, order });
        }
    }

    fn stop_member(&mut self, pid: i32) {
        if let Some(session) = self.sessions.get_mut(&pid) {
            session.stage = Stage::Stopping;
            if let Some(key) = session.key {
                self.effects.push_back(Effect::Stop { key });
            }
        }
    }

    /// The work on a group is over: everybody is answered.
    fn group_over(&mut self, name: &str) {
        let Some(working) = self.groups.remove(name) else {
            return;
        };
        let has_worked = working.group.has_worked();
        let answer = working.answer(name, has_worked);
        let n_members = working.group.pids().count();
        let word = if working.group.is_restore() {
            "restore"
        } else {
            "checkpoint"
        };
        tracing::info!(n_members, has_worked, "{word} of {name} is over");
        for &waiter in &working.waiters {
            self.answer(waiter, answer.clone());
        }
        // Who stopped it has what was wanted when it runs.
        for &waiter in &working.stoppers {
            let mut answer = working.object(name);
            answer["ok"] = json!(true);
            answer["exit_code"] = json!(Exit::Ok.code());
            answer["outcome"] = json!("undone");
            self.answer(waiter, answer);
        }
        if has_worked && !working.stoppers.is_empty() && !working.group.is_restore() {
            // It was complete before it could be stopped.
            self.restore_group(name, 0, Instant::now());
        }
    }
}

/// Workers of one member of so many. All have theirs before the first one is frozen, and each
/// worker takes memory; small groups let a large member have all CPUs.
fn workers_of_one(n_members: usize) -> Option<NonZeroUsize> {
    let n_cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((4 * n_cpus / n_members).clamp(1, n_cpus))
}

impl Working {
    fn object(&self, name: &str) -> Value {
        let member = |pid: i32| {
            let mut object = self.answers.get(&pid).cloned().unwrap_or_else(|| json!({}));
            object["pid"] = json!(pid);
            object
        };
        let members: Vec<Value> = self.group.pids().map(member).collect();
        json!({ "group": name, "members": members })
    }

    fn answer(&self, name: &str, has_worked: bool) -> Value {
        let mut object = self.object(name);
        if has_worked {
            object["ok"] = json!(true);
            object["exit_code"] = json!(Exit::Ok.code());
            return object;
        }
        let mut answer = self.failure(name).to_json();
        answer["group"] = object["group"].take();
        answer["members"] = object["members"].take();
        answer
    }

    /// The first member that failed for a reason of its own speaks for all.
    fn failure(&self, name: &str) -> Failure {
        let failed = || self.answers.iter().filter(|(_, it)| it["ok"] == false);
        let is_own = |answer: &Value| answer["exit_code"] != Exit::Aborted.code();
        let first = failed()
            .find(|(_, answer)| is_own(answer))
            .or_else(|| failed().next());
        let what = if self.group.is_restore() {
            format!("not all of {name} could be restored")
        } else {
            format!("no checkpoint of {name} was made")
        };
        let reason = first.and_then(|(pid, answer)| Some((pid, Failure::of_answer(answer)?)));
        match reason {
            None if self.answers.is_empty() => {
                Failure::new(Exit::NoProcess, format!("no process of {name} is left"))
            }
            // Each member was held, and then somebody wanted one of them back.
            None => Failure::new(Exit::Aborted, format!("{what}: it was stopped")),
            // Most reasons name the process themselves.
            Some((pid, reason)) if reason.causes().concat().contains(&format!("process {pid}")) => {
                reason.in_context(&what)
            }
            Some((pid, reason)) => reason.in_context(&format!("{what}: process {pid}")),
        }
    }
}
