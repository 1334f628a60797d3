//! The desk: every session there is, who waits for what, and what is done next. It
//! touches nothing: requests and news come in, effects go out, and the server carries
//! them out.
//!
//! ```text
//!              checkpoint            Held                 restore
//!   (none) ──▶ Queued ─▶ Storing ──────────▶ Held ────────────────▶ Restoring ─▶ (none)
//!                 │         │ stop            │ Park      ▲ ▲ failed    │
//!                 ▼         ▼                 ▼           │ └───────────┘
//!              (none)  Stopping ─▶ (none)   Parked ───────┘
//!                                             ▲
//!   a journal that a daemon or a crash left ──┴── Settling
//! ```
//!
//! * A restore never waits behind somebody else's checkpoint: it is started at once, and
//!   while one moves bytes no new checkpoint is begun, for [`PATIENCE`] at the most. Only
//!   where very many are to be restored do they wait for each other: each takes memory.
//! * A restore during the checkpoint of the same process stops that; both are answered,
//!   and the process runs. If the stop comes too late, it is restored.
//! * Whoever waits does not matter to the work: a client that has gone is one that nobody
//!   answers.

mod ending;
mod events;
mod groups;
mod pause;
mod recent;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(super) use recent::Counters;

use super::child::{Checkpoint, Task};
use super::link::{Facts, How, Order};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::list;
use crate::session::journal::GroupRecord;
use groups::Working;
use pause::Pauses;
use recent::Recent;

/// How long the first checkpoint in the queue lets restores go before it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a checkpoint is not begun any more.
const STOPPED: &str = "it was stopped";
const TOO_LATE: &str = "time limit reached";

/// Somebody who waits for an answer; known to the server.
pub(super) type Waiter = u64;

/// A child of the daemon.
pub(super) type Key = u64;

/// What the server is to do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Start a child.
    Start { key: Key, task: Task },
    /// Tell a child something.
    Tell { key: Key, order: Order },
    /// Stop the checkpoint of a child.
    Stop { key: Key },
    /// Answer somebody; an object as `--json` prints it.
    Answer { waiter: Waiter, answer: Value },
    /// Tell [`Desk::members`] which processes are members of the group of this name.
    Look { group: String },
}

/// What the operator allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Checkpoints that move bytes at once.
    pub(crate) n_checkpoints: usize,
    /// Restores that do, and sessions that are being settled.
    pub(crate) n_restores: usize,
    /// Sessions.
    pub(crate) n_sessions: usize,
}

/// What a journal that somebody else has left is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A process that is held, so that nothing is to be done.
    Parked,
    /// One whose session is to be settled.
    Interrupted,
    /// None any more.
    Gone,
}

/// How far a session is.
#[derive(Debug)]
enum Stage {
    Queued(Box<Checkpoint>),
    Storing,
    /// Its checkpoint was told to stop.
    Stopping,
    /// Its process holds the target.
    Held,
    /// No process of ours is beside the target.
    Parked,
    Restoring,
    /// A child finds out what has become of it.
    Settling,
}

/// A process that is worked on, or held.
#[derive(Debug)]
struct Session {
    stage: Stage,
    /// The child that works on it.
    key: Option<Key>,
    facts: Facts,
    group: Option<GroupRecord>,
    /// Whose process it is, for who asks about it when it has ended.
    uid: Option<u32>,
    /// When this stage began.
    since: Instant,
    /// When its checkpoint is to be held, or not to be made.
    until: Option<Instant>,
    /// What is to be done when it is its turn.
    pending: Option<Work>,
    /// Who waits for its checkpoint, its restore, and for its checkpoint to be stopped.
    checkpoint: Vec<Waiter>,
    restore: Vec<Waiter>,
    abort: Vec<Waiter>,
    /// A child of it has crashed, and its work was begun anew.
    has_crashed: bool,
    /// Its child was told to park it.
    parks: bool,
    /// There is no such process any more: what is left is to remove what its session has left.
    is_gone: bool,
    /// What its child has said last.
    last_word: Option<(How, Value)>,
}

/// What is begun in turn.
#[derive(Debug)]
enum Work {
    /// Of the child that holds the target.
    Tell(Order),
    /// Of a new one.
    Start(Task),
}

/// Every session there is.
#[derive(Debug)]
pub(super) struct Desk {
    limits: Limits,
    sessions: BTreeMap<i32, Session>,
    groups: BTreeMap<String, Working>,
    /// Checkpoints that are to be begun, and everything else that is.
    queue: VecDeque<i32>,
    turns: VecDeque<i32>,
    children: BTreeMap<Key, i32>,
    last_key: Key,
    effects: VecDeque<Effect>,
    counters: Counters,
    recent: Recent,
    /// What has failed, and is not tried again without being asked for before that.
    pauses: Pauses,
    /// Nothing new is begun.
    is_stopping: bool,
    /// What was to be restored since, whether it could be or not.
    tried: BTreeSet<i32>,
    /// There is one request only.
    is_alone: bool,
}

impl Desk {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            groups: BTreeMap::new(),
            queue: VecDeque::new(),
            turns: VecDeque::new(),
            children: BTreeMap::new(),
            last_key: 0,
            effects: VecDeque::new(),
            counters: Counters::default(),
            recent: Recent::default(),
            pauses: Pauses::default(),
            is_stopping: false,
            tried: BTreeSet::new(),
            is_alone: false,
        }
    }

    /// For one request only, of somebody who hears its answer.
    pub(super) fn be_alone(&mut self) {
        self.is_alone = true;
    }

    /// What is to be done next.
    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Somebody asks for a checkpoint.
    pub(super) fn checkpoint(&mut self, task: Checkpoint, waiter: Waiter, now: Instant) {
        let pid = task.pid;
        if let Some(refused) = self.refused(&[pid]) {
            return self.answer(waiter, refused.to_json());
        }
        let limit = task.args.job.timeout;
        let mut session = Session::new(pid, Stage::Queued(Box::new(task)), now);
        session.until = limit.and_then(|limit| now.checked_add(limit));
        session.checkpoint.push(waiter);
        self.sessions.insert(pid, session);
        self.queue.push_back(pid);
        self.pump(now);
    }

    /// Somebody asks for a restore.
    pub(super) fn restore(&mut self, pid: i32, waiter: Waiter, now: Instant) {
        let is_in_checkpoint = self.is_in_checkpoint(pid);
        let Some(session) = self.sessions.get_mut(&pid) else {
            let failure = Failure::new(Exit::NotHeld, format!("process {pid} is not held"));
            return self.answer(waiter, failure.to_json());
        };
        session.restore.push(waiter);
        match session.stage {
            Stage::Queued(_) => self.take_from_queue(pid, STOPPED),
            Stage::Storing => self.stop(pid),
            // All are held or none: its group is not complete.
            Stage::Held if is_in_checkpoint => self.stop(pid),
            Stage::Held | Stage::Parked => self.bring_back(pid, false, now),
            // Whatever is under way answers when it is done.
            Stage::Stopping | Stage::Restoring | Stage::Settling => {}
        }
    }

    /// Somebody wants a checkpoint that is not complete to be stopped.
    pub(super) fn abort(&mut self, pid: i32, waiter: Waiter) {
        let stage = self.sessions.get(&pid).map(|session| &session.stage);
        match stage {
            Some(Stage::Queued(_)) => {
                self.session(pid, |session| session.abort.push(waiter));
                self.take_from_queue(pid, STOPPED);
            }
            Some(Stage::Storing | Stage::Stopping) => {
                self.session(pid, |session| session.abort.push(waiter));
                self.stop(pid);
            }
            Some(_) => {
                let what = format!("the checkpoint of process {pid} is complete");
                let failure = Failure::new(Exit::Held, what);
                let hint = format!("a restore of process {pid} gives it its memory back");
                self.answer(waiter, failure.with_hint(Some(&hint)).to_json());
            }
            None => {
                let what = format!("there is no checkpoint of process {pid} under way");
                self.answer(waiter, Failure::new(Exit::NotHeld, what).to_json());
            }
        }
    }

    /// A session that somebody else has begun, and that stands in a journal.
    pub(super) fn adopt(
        &mut self,
        pid: i32,
        facts: Facts,
        group: Option<GroupRecord>,
        found: Found,
        now: Instant,
    ) {
        if self.sessions.contains_key(&pid) {
            return;
        }
        let is_parked = found == Found::Parked;
        let stage = if is_parked {
            Stage::Parked
        } else {
            Stage::Settling
        };
        let mut session = Session::new(pid, stage, now);
        session.facts = facts;
        session.group = group;
        session.is_gone = found == Found::Gone;
        self.sessions.insert(pid, session);
        if !is_parked {
            self.in_turn(pid, Work::Start(Task::Settle { pid }));
        }
    }

    /// Whether what has failed with process `pid` may be tried again by itself.
    pub(super) fn may_try(&self, pid: i32, now: Instant) -> bool {
        self.pauses.are_over(pid, now)
    }

    /// The journal of a parked session is gone: somebody else has finished it.
    pub(super) fn forget(&mut self, pid: i32) {
        if self.is_parked(pid) {
            self.sessions.remove(&pid);
        }
    }

    /// A parked process has ended: what is left of it is removed.
    pub(super) fn has_ended(&mut self, pid: i32, now: Instant) {
        if self.is_parked(pid) {
            self.session(pid, |session| session.is_gone = true);
            self.set_stage(pid, Stage::Settling, now);
            self.in_turn(pid, Work::Start(Task::Settle { pid }));
        }
    }

    /// A signal that would end a parked process is pending: the restore lets it die.
    pub(super) fn is_doomed(&mut self, pid: i32, now: Instant) {
        if self.is_parked(pid) && self.may_try(pid, now) {
            self.bring_back(pid, false, now);
        }
    }

    /// The processes that have a session in the group of this name, however far that is.
    pub(super) fn pids_in_group(&self, name: &str) -> Vec<i32> {
        let is_member = |session: &Session| {
            let group = session.group.as_ref();
            group.is_some_and(|group| group.name == name)
        };
        let members = self.sessions.iter().filter(|(_, it)| is_member(it));
        members.map(|(&pid, _)| pid).collect()
    }

    /// Whether some child still has something to do.
    pub(super) fn is_busy(&self) -> bool {
        !self.children.is_empty()
    }

    /// Whether nothing but waiting is done for these processes.
    pub(super) fn is_parked(&self, pid: i32) -> bool {
        let session = self.sessions.get(&pid);
        session.is_some_and(|session| matches!(session.stage, Stage::Parked))
    }

    pub(super) fn has(&self, pid: i32) -> bool {
        self.sessions.contains_key(&pid)
    }

    /// The processes that are parked.
    pub(super) fn parked(&self) -> impl Iterator<Item = i32> + '_ {
        let is_parked = |session: &Session| matches!(session.stage, Stage::Parked);
        let parked = self.sessions.iter().filter(move |(_, it)| is_parked(it));
        parked.map(|(&pid, _)| pid)
    }

    /// Why nothing can be begun with `pids`.
    fn refused(&self, pids: &[i32]) -> Option<Failure> {
        if self.is_stopping {
            return Some(Failure::new(Exit::Unavailable, "the daemon is ending"));
        }
        if let Some(pid) = pids.iter().find(|pid| self.has(**pid)) {
            let word = self.sessions.get(pid).map_or("", |it| it.stage.word());
            let what = format!("there is a session with process {pid} already: {word}");
            return Some(Failure::new(Exit::Held, what));
        }
        if self.sessions.len() + pids.len() > self.limits.n_sessions {
            let what = format!(
                "there are {} sessions already, and no more than {} are allowed",
                self.sessions.len(),
                self.limits.n_sessions
            );
            let hint = "max_sessions in the section [daemon] of pipeline.toml sets the limit";
            return Some(Failure::new(Exit::Unavailable, what).with_hint(Some(hint)));
        }
        None
    }

    /// A checkpoint that was not begun is not begun any more.
    fn take_from_queue(&mut self, pid: i32, why: &str) {
        self.queue.retain(|queued| *queued != pid);
        let what = format!("the checkpoint of process {pid} was not begun: {why}");
        let answer = Failure::new(Exit::Aborted, what).to_json();
        self.finish(pid, How::Undone, &answer);
    }

    /// Stops a checkpoint.
    fn stop(&mut self, pid: i32) {
        let Some(session) = self.sessions.get_mut(&pid) else {
            return;
        };
        if let Some(group) = session.group.as_ref().map(|group| group.name.clone())
            && self.groups.contains_key(&group)
        {
            return self.stop_group(&group);
        }
        session.stage = Stage::Stopping;
        if let Some(key) = session.key {
            self.effects.push_back(Effect::Stop { key });
        }
    }

    fn answer(&mut self, waiter: Waiter, answer: Value) {
        self.effects.push_back(Effect::Answer { waiter, answer });
    }

    fn session(&mut self, pid: i32, change: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.get_mut(&pid) {
            change(session);
        }
    }

    fn set_stage(&mut self, pid: i32, stage: Stage, now: Instant) {
        self.session(pid, |session| {
            session.stage = stage;
            session.since = now;
        });
    }

    fn count(&self, is: impl Fn(&Stage) -> bool) -> usize {
        self.sessions.values().filter(|it| is(&it.stage)).count()
    }
}

impl Session {
    fn new(pid: i32, stage: Stage, now: Instant) -> Self {
        Self {
            stage,
            uid: list::uid_of(pid),
            key: None,
            facts: Facts::default(),
            group: None,
            since: now,
            until: None,
            pending: None,
            checkpoint: Vec::new(),
            restore: Vec::new(),
            abort: Vec::new(),
            has_crashed: false,
            parks: false,
            is_gone: false,
            last_word: None,
        }
    }

    /// Whether somebody waits for a held target to run. Who wanted its checkpoint stopped,
    /// too late, does.
    fn is_wanted_back(&mut self) -> bool {
        self.restore.append(&mut self.abort);
        !self.restore.is_empty()
    }
}

impl Stage {
    /// The word for it in lists.
    fn word(&self) -> &'static str {
        match self {
            Self::Queued(_) => "queued",
            Self::Storing | Self::Stopping => "storing",
            Self::Held | Self::Parked | Self::Settling => "held",
            Self::Restoring => "restoring",
        }
    }
}

/// An answer that is good news, of a checkpoint that somebody wanted stopped.
fn stopped(pid: i32) -> Value {
    json!({ "ok": true, "exit_code": Exit::Ok.code(), "pid": pid, "outcome": "undone" })
}
