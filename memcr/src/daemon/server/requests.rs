//! What a client asks for: whether it may, how it is to be done, and who does it.
//!
//! ```text
//!   Incoming ─▶ known?  ─▶ may it? ─▶ how? ─▶ desk
//!                │ NotHeld   │ denied   │ not the client's to choose
//!                └───────────┴──────────┴──▶ answer
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memcr_wire::limit::MAX_UNANSWERED;
use memcr_wire::{Ask, Choice, Command, Compress, Incoming, LegacyRequest, Subject};
use serde_json::{Value, json};

use super::Server;
use super::waiting::Form;
use super::watch::Wanted;
use crate::cli::config;
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::daemon::child::Checkpoint;
use crate::daemon::members;
use crate::daemon::peer::Peer;
use crate::daemon::permit::Permit;
use crate::pipeline::Priority;

/// Of the workers of clients' checkpoints. Whoever waits for a restore waits to go on;
/// whoever waits for a checkpoint has put something aside. Both are asked for at any time,
/// and the desk keeps no restore waiting, so on a busy device they share the CPUs: with
/// this a restore has nine tenths of what both want, and without restores nothing is lost.
/// Not SCHED_IDLE: a checkpoint beside any other busy program would then hardly go on, with
/// its target standing still. That is for the operator or the client to want (`idle`).
const PRIORITY: Priority = Priority::Low;

impl Server {
    /// A request of `peer` has come in on a connection. That may be closed by now, since an
    /// answer to one before it could not be sent: the request counts all the same.
    pub(super) fn request(&mut self, number: u64, peer: &Peer, incoming: Incoming, now: Instant) {
        let has_room = match self.connections.get_mut(&number) {
            Some(connection) => connection.begin(),
            None => self.waiting.n_of(number) < MAX_UNANSWERED,
        };
        self.desk.counters().requests += 1;
        let (form, ask) = match incoming {
            Incoming::Legacy(request) => {
                let command = request.as_ref().map_or(Command::Restore, |it| it.command);
                (Form::Legacy(command), legacy(request))
            }
            Incoming::Own(Ok(request)) => (Form::Own(request.id), Ok(request.ask)),
            Incoming::Own(Err(bad)) => {
                let failure = Failure::new(Exit::Usage, bad.error);
                (Form::Own(bad.id), Err(failure))
            }
        };
        let waiter = self.waiting.add(number, form);
        let done = match ask {
            Err(malformed) => {
                self.desk.counters().requests_malformed += 1;
                Err(malformed)
            }
            Ok(_) if !has_room => {
                let what = "too many requests are under way on this connection";
                Err(Failure::new(Exit::Unavailable, what))
            }
            Ok(ask) => self.ask_for(peer, ask, waiter, now),
        };
        if let Err(failure) = done {
            self.refuse(peer, waiter, &failure, now);
        }
    }

    /// `peer` is told why it is not done.
    pub(super) fn refuse(&mut self, peer: &Peer, waiter: u64, failure: &Failure, now: Instant) {
        if failure.exit == Exit::Permission {
            self.desk.counters().requests_denied += 1;
            let uid = peer.uid();
            if self.denials.note(Some(uid), now) {
                let why = failure.causes().join(": ");
                tracing::warn!(uid, "user {uid} is denied: {why}");
            }
        }
        self.answer(waiter, failure.to_json(), now);
    }

    /// Does what `peer` asks for, or has it done; `waiter` is answered then.
    fn ask_for(&mut self, peer: &Peer, ask: Ask, waiter: u64, now: Instant) -> Result<(), Failure> {
        match ask {
            Ask::Checkpoint {
                subject,
                choice,
                timeout,
            } => self.ask_checkpoint(peer, &subject, &choice, timeout, waiter, now)?,
            Ask::Restore { subject, timeout } => {
                let timeout = timeout.or(self.settings.timeout);
                self.waiting.limit(waiter, timeout, now);
                self.ask_restore(peer, &subject, waiter, now)?;
            }
            Ask::Abort { subject } => self.ask_abort(peer, &subject, waiter)?,
            Ask::Status { pid: None } => {
                let status = self.status();
                self.answer(waiter, ok(status), now);
            }
            Ask::Status { pid: Some(pid) } => {
                self.expect_may_know(peer, pid)?;
                let status = self.desk.status_of(pid);
                self.answer(waiter, ok(status), now);
            }
            Ask::List => {
                self.refresh_all(now);
                let list = self.desk.list(|pid| self.expect_may(peer, pid).is_ok());
                self.answer(waiter, ok(list), now);
            }
            Ask::Stages => self.ask_stages(waiter, now)?,
        }
        Ok(())
    }

    fn ask_checkpoint(
        &mut self,
        peer: &Peer,
        subject: &Subject,
        choice: &Choice,
        timeout: Option<Duration>,
        waiter: u64,
        now: Instant,
    ) -> Result<(), Failure> {
        let mut task = self.checkpoint_of(peer, choice, timeout)?;
        match subject.group() {
            None => {
                let pid = single(subject);
                task.started = Some(self.look(peer, pid)?);
                self.refresh(pid, now);
                task.pid = pid;
                self.desk.checkpoint(task, waiter, now);
            }
            Some(name) => {
                let pids = self.members_of(subject)?;
                for &pid in &pids {
                    self.expect_may(peer, pid)?;
                    self.refresh(pid, now);
                }
                self.desk.checkpoint_group(&name, &pids, task, waiter, now);
            }
        }
        Ok(())
    }

    fn ask_restore(
        &mut self,
        peer: &Peer,
        subject: &Subject,
        waiter: u64,
        now: Instant,
    ) -> Result<(), Failure> {
        let wanted = match subject.group() {
            None => {
                let pid = single(subject);
                self.refresh(pid, now);
                Wanted::Pid(pid)
            }
            Some(name) => {
                self.refresh_all(now);
                Wanted::Group(name)
            }
        };
        self.restore(peer, wanted, waiter, now)
    }

    /// Whether `peer` may have that restored, by what is known of it now.
    pub(super) fn expect_may_restore(&self, peer: &Peer, wanted: &Wanted) -> Result<(), Failure> {
        let theirs = self.held_by_others(wanted);
        match wanted {
            // Of a process that is not held everybody may know that: /proc tells it too.
            Wanted::Pid(pid) if !self.desk.has(*pid) && theirs.is_empty() => Ok(()),
            Wanted::Pid(pid) => self.expect_may(peer, *pid),
            Wanted::Group(name) => {
                let ours = self.desk.pids_in_group(name);
                self.expect_may_all(peer, ours.into_iter().chain(theirs))
            }
        }
    }

    /// Whether `peer` may act on all of these. One that has ended is nobody's any more, and the
    /// others do not miss it.
    fn expect_may_all(
        &self,
        peer: &Peer,
        pids: impl IntoIterator<Item = i32>,
    ) -> Result<(), Failure> {
        for pid in pids {
            match self.expect_may(peer, pid) {
                Err(failure) if failure.exit == Exit::NoProcess => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn ask_abort(&mut self, peer: &Peer, subject: &Subject, waiter: u64) -> Result<(), Failure> {
        match subject.group() {
            None => {
                let pid = single(subject);
                if self.desk.has(pid) {
                    self.expect_may(peer, pid)?;
                }
                self.desk.abort(pid, waiter);
            }
            Some(name) => {
                self.expect_may_all(peer, self.desk.pids_in_group(&name))?;
                self.desk.abort_group(&name, waiter);
            }
        }
        Ok(())
    }

    /// Whether `peer` may know of process `pid`, which may have ended.
    fn expect_may_know(&self, peer: &Peer, pid: i32) -> Result<(), Failure> {
        let owner = self.desk.owner_of_ended(pid);
        if !self.desk.has(pid)
            && owner.is_some_and(|uid| uid == peer.uid() || self.settings.rules.acts_on_all(peer))
        {
            return Ok(());
        }
        self.expect_may(peer, pid)
    }

    /// Whether `peer` may act on process `pid`.
    fn expect_may(&self, peer: &Peer, pid: i32) -> Result<(), Failure> {
        self.look(peer, pid).map(drop)
    }

    /// The same; answers when the process started.
    fn look(&self, peer: &Peer, pid: i32) -> Result<u64, Failure> {
        let gone = || Failure::new(Exit::NoProcess, format!("no process {pid}"));
        if pid <= 0 {
            return Err(gone());
        }
        let rules = &self.settings.rules;
        let target = rules.look(pid).map_err(|_| gone())?;
        let may = rules.may(peer, &target, |pid| self.staff.is_ours(pid));
        may.map_err(|denied| Failure::new(Exit::Permission, denied))?;
        Ok(target.start_time)
    }

    /// How a checkpoint is to be done for `peer`. Its pid is not in it yet.
    fn checkpoint_of(
        &self,
        peer: &Peer,
        choice: &Choice,
        timeout: Option<Duration>,
    ) -> Result<Checkpoint, Failure> {
        let (rules, choices) = (&self.settings.rules, &self.settings.choices);
        let forbidden = |error| Failure::new(Exit::Permission, error);
        let mut args = self.home.args.clone();
        let job = &mut args.job;
        job.timeout = timeout.or(self.settings.timeout);
        job.idle |= choice.idle;
        if let Some(name) = &choice.pipeline {
            choices.pipeline(name).map_err(forbidden)?;
            job.pipeline = Some(name.clone());
            (job.compress, job.checksum, job.encrypt) = (None, false, None);
        }
        let config = &self.settings.config;
        let mut chosen = config::pipeline(config, job, &args.common.set)?;
        if let Some(dir) = &choice.dir {
            let dir = choices.dir(rules, peer, dir).map_err(forbidden)?;
            chosen.store_in(&dir)?;
        }
        if let Some(compress) = choice.compress {
            choices.compression().map_err(forbidden)?;
            let stage = match compress {
                Compress::None => None,
                Compress::Lz4 => Some("lz4"),
                Compress::Zstd => Some("zstd"),
            };
            chosen.compress_with(stage);
        }
        Ok(Checkpoint {
            pid: 0,
            started: None,
            args,
            choice: chosen,
            priority: PRIORITY,
            permit: Permit::new(rules, peer),
            group: None,
            parks: false,
        })
    }

    /// The processes that are `subject` now.
    pub(super) fn members_of(&self, subject: &Subject) -> Result<Vec<i32>, Failure> {
        members::of(subject).map_err(|error| Failure::new(Exit::NoProcess, error))
    }

    /// Tells the desk who is in a group now.
    pub(super) fn look_at_group(&mut self, name: &str) {
        let found = members::subject_of(name).map(|subject| members::of(&subject));
        match found {
            Some(Ok(pids)) => self.desk.members(name, &pids),
            // Nobody is in it any more: those that are frozen are.
            Some(Err(_)) | None => self.desk.members(name, &[]),
        }
    }

    fn status(&self) -> Value {
        let mut status = self.desk.status();
        let limits = self.desk.limits();
        status["version"] = json!(env!("CARGO_PKG_VERSION"));
        status["pid"] = json!(std::process::id());
        status["uptime_seconds"] = json!(self.started.elapsed().as_secs());
        status["connections"] = json!(self.connections.len());
        status["limits"] = json!({
            "checkpoints": limits.n_checkpoints,
            "sessions": limits.n_sessions,
        });
        status
    }
}

fn single(subject: &Subject) -> i32 {
    match subject {
        Subject::Pid(pid) => *pid,
        Subject::Tree(_) | Subject::Cgroup(_) => 0,
    }
}

/// The same question in the words of our own protocol.
fn legacy(request: Result<LegacyRequest, memcr_wire::Malformed>) -> Result<Ask, Failure> {
    let request = request.map_err(|error| Failure::new(Exit::Usage, error))?;
    let subject = Subject::Pid(request.pid);
    Ok(match request.command {
        Command::Checkpoint => Ask::Checkpoint {
            subject,
            choice: Choice {
                pipeline: None,
                dir: request.dir.map(directory),
                compress: request.compress,
                idle: false,
            },
            timeout: None,
        },
        Command::Restore => Ask::Restore {
            subject,
            timeout: None,
        },
    })
}

fn directory(bytes: Vec<u8>) -> PathBuf {
    Path::new(OsStr::from_bytes(&bytes)).to_owned()
}

fn ok(mut answer: Value) -> Value {
    answer["ok"] = json!(true);
    answer["exit_code"] = json!(Exit::Ok.code());
    answer
}
