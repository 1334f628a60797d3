//! The process of a session: it checkpoints its target, holds it, and restores it when
//! it is told to. One target each, so that a plugin that crashes costs one session a
//! restart, and nobody else anything.
//!
//! ```text
//!   fork ─▶ checkpoint ──Held──▶ wait ─┬─ Restore ──▶ restore ──End(Restored)──▶ exit
//!             │ SIGTERM: undone        │                 └─ failed: Still ──▶ wait
//!             └─End(Undone)            ├─ Park, or the daemon is gone ──▶ park ──▶ exit
//!                                      └─ the target ends ──End(Exited)──▶ exit
//! ```
//!
//! Sessions that were parked are finished by children of the same kind, which only have
//! the second half to do.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use super::link::{Facts, How, Link, News, Order};
use super::permit::Permit;
use crate::cli::args::Args;
use crate::cli::config::Choice;
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::job::{self, Taken};
use crate::cli::sessions::{Outcome, Sessions};
use crate::cli::stages;
use crate::pipeline::{Cancel, CancelReason, Pipeline, Priority, SearchPath};
use crate::restore::{self, RestoreOptions};
use crate::session::gate::{Barred, Gate, Step};
use crate::session::journal::GroupRecord;
use crate::session::{Held, HeldEvent};
use crate::sys::heap;
use crate::sys::procfs::Stat;

/// How often a held target is looked at for a signal that would end it. A thousand
/// sessions look at the same machine.
const PACE: Duration = Duration::from_secs(1);

/// How often a session that waits for others looks whether the work was stopped.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// How long a target that is said to have ended may take to do so.
const DEATH_TIME: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What all children of one daemon need to know; they have it from their parent.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    /// The command line of the daemon.
    pub(crate) args: Args,
    /// Where plugins are.
    pub(crate) search: SearchPath,
    /// Where journals are.
    pub(crate) state_dir: PathBuf,
}

/// What a child is started for.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// Checkpoint a process and hold it.
    Checkpoint(Box<Checkpoint>),
    /// Restore one that is parked; `gated`: wait for others before it runs.
    Restore { pid: i32, gated: bool },
    /// Finish what a memcr that died has left, in the direction that loses nothing; what
    /// can stay held does.
    Settle { pid: i32 },
    /// End a process that is parked.
    Kill { pid: i32 },
    /// Look at every stage there is.
    Stages,
    /// Load a pipeline.
    Try(Box<Choice>),
}

/// A checkpoint that somebody has asked for.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    /// The target.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot, which with the pid names one process;
    /// `None`: it is begun at once, and means the one that it finds.
    pub(crate) started: Option<u64>,
    /// The command line of the daemon with what the request says.
    pub(crate) args: Args,
    /// What it comes to.
    pub(crate) choice: Choice,
    /// Of the workers, unless the choice is that everybody else goes first.
    pub(crate) priority: Priority,
    /// What the one who asks may do, looked at again when the target stands still.
    pub(crate) permit: Option<Permit>,
    /// The group that it is to be a member of, which opens the gates.
    pub(crate) group: Option<GroupRecord>,
    /// In the end no process is to be left beside it.
    pub(crate) parks: bool,
}

/// Does `task`, and answers the exit code of the child.
pub(super) fn run(home: &Home, task: &Task, link: Link) -> i32 {
    let link = Arc::new(link);
    let end = match task {
        Task::Checkpoint(task) => checkpoint(home, task, &link),
        Task::Restore { pid, gated } => finish(home, &link, *pid, *gated, |sessions| {
            sessions.bring_back(*pid)
        }),
        Task::Settle { pid } => finish(home, &link, *pid, false, |sessions| {
            sessions.recover(*pid, true)
        }),
        Task::Kill { pid } => finish(home, &link, *pid, false, |sessions| sessions.end(*pid)),
        Task::Stages => End::new(How::Answered, ok(stages::describe(&home.search))),
        Task::Try(choice) => match Pipeline::load(&choice.spec, &home.search) {
            Ok(_) => End::new(How::Answered, ok(json!({}))),
            Err(error) => {
                let failure = Failure::of_choice(error, choice);
                End::new(How::Answered, failure.to_json())
            }
        },
    };
    let End { how, answer } = end;
    let too_long = |_| {
        let failure = Failure::new(Exit::Internal, "the answer is too long");
        let answer = failure.to_json();
        link.say(&News::End { how, answer })
    };
    // A daemon that is gone needs no answer: the journals tell the next one.
    let _ = link.say(&News::End { how, answer }).or_else(too_long);
    0
}

/// The last word of a child.
struct End {
    how: How,
    answer: Value,
}

impl End {
    fn new(how: How, answer: Value) -> Self {
        Self { how, answer }
    }

    /// Of a checkpoint or a restore that failed. `otherwise`: what became of a target that
    /// neither ended nor was killed.
    fn failed(failure: &Failure, otherwise: How) -> Self {
        let how = match failure.exit {
            Exit::TargetGone | Exit::NoProcess => How::Exited,
            Exit::ImageCorrupt => How::Killed,
            Exit::NotHeld => How::Unheld,
            _ => otherwise,
        };
        Self::new(how, failure.to_json())
    }
}

fn checkpoint(home: &Home, task: &Checkpoint, link: &Arc<Link>) -> End {
    let cancel = Cancel::new();
    let gate = Checks {
        link: Arc::clone(link),
        cancel: cancel.clone(),
        pid: task.pid,
        started: task.started.or_else(|| started(task.pid)),
        permit: task.permit.clone(),
        is_gated: task.group.is_some(),
    };
    let order = job::Order {
        args: &task.args,
        pid: task.pid.cast_unsigned(),
        state_dir: &home.state_dir,
        search: &home.search,
        choice: &task.choice,
        priority: task.priority,
        group: task.group.clone(),
        gate: Arc::new(gate),
        cancel,
    };
    match order.take(task.parks) {
        Ok(taken) => hold(taken, &task.args, link),
        // What was dropped and could not be put back is missing still.
        Err(failure) if failure.exit == Exit::RestoreFailed => End::failed(&failure, How::Parked),
        // Whether its parent has noticed yet makes no difference: the others do not miss it.
        Err(failure)
            if failure.exit == Exit::Refused && task.group.is_some() && is_over(task.pid) =>
        {
            let what = format!("process {} has ended", task.pid);
            End::failed(&Failure::new(Exit::NoProcess, what), How::Undone)
        }
        Err(failure) => End::failed(&failure, How::Undone),
    }
}

/// Whether a process has ended, all of its threads: reaped, or a zombie.
fn is_over(pid: i32) -> bool {
    ends_within(pid, &Timespec::default())
}

/// When a process started, if there is one.
fn started(pid: i32) -> Option<u64> {
    Stat::read(pid).ok().map(|stat| stat.start_time)
}

/// Holds the target until somebody says what is to become of it.
fn hold(taken: Taken, args: &Args, link: &Arc<Link>) -> End {
    let Taken {
        mut held,
        stages,
        watch,
        ..
    } = taken;
    watch.end();
    let aliases: Vec<&str> = stages.iter().map(|stage| stage.alias.as_str()).collect();
    let facts = facts(&held, aliases.join(","));
    let answer = job::answer(&stages, held.report());
    drop(stages);
    // Who does not hear it is gone, which the wait below finds out.
    let _ = link.say(&News::Held { facts, answer });
    heap::give_back();
    loop {
        let order = match held.wait(link.as_fd(), PACE, &Cancel::new()) {
            Ok(HeldEvent::Wake) => link.hear(false),
            Ok(HeldEvent::TargetExited(_)) => Ok(Some(Order::Restore { gated: false })),
            Ok(HeldEvent::Cancelled(_)) => continue,
            Err(error) => {
                tracing::error!("process {}: {}", held.pid(), Failure::said(&error));
                Ok(Some(Order::Park))
            }
        };
        match order {
            Ok(Some(Order::Go)) => {}
            Ok(Some(Order::Restore { gated })) => match bring_back(held, args, link, gated) {
                Ok(end) => return end,
                Err(again) => held = *again,
            },
            Ok(Some(Order::Kill)) => return kill(held),
            Ok(Some(Order::Park) | None) | Err(_) => return park(held, args),
        }
    }
}

fn facts(held: &Held, pipeline: String) -> Facts {
    let record = held.record();
    let report = held.report();
    Facts {
        name: record.name.clone(),
        since: record.since,
        rss_before_bytes: report.rss_before_bytes,
        rss_held_bytes: report.rss_held_bytes,
        image: report.image.clone(),
        pipeline,
        raw_bytes: report.raw_bytes,
        image_bytes: report.image_bytes,
    }
}

/// Restores. `Err`: it failed, and the target is held as before.
fn bring_back(held: Held, args: &Args, link: &Arc<Link>, gated: bool) -> Result<End, Box<Held>> {
    let pid = held.pid();
    let options = RestoreOptions {
        on_corrupt: args.job.on_corrupt.into(),
        gate: Arc::new(Checks::of_restore(link, pid, gated)),
        ..RestoreOptions::default()
    };
    let failure = match restore::restore(held, &options) {
        Ok(report) => {
            let outcome = Outcome::Restored(Box::new(report));
            return Ok(End::new(How::Restored, ok(outcome.to_json(pid))));
        }
        Err(failure) => failure,
    };
    let reason = Failure::from(failure.error);
    match failure.held {
        Some(held) => {
            let _ = link.say(&News::Still(reason.to_json()));
            Err(held)
        }
        // All memory is back, but something of ours may be left in it.
        None => Ok(End::failed(&reason, How::Parked)),
    }
}

/// Leaves the target held. Without a guard it cannot be, nor with an image that only we can
/// read, and gets its memory back.
fn park(held: Held, args: &Args) -> End {
    let pid = held.pid();
    if !held.can_be_left() {
        let why = match held.has_guard() {
            true => "no other memcr could give it its memory back",
            false => "it has no guard",
        };
        tracing::warn!("process {pid} cannot be held by itself, {why}: restoring it");
        return match job::bring_back(held, &Cancel::new(), args) {
            Ok(report) => {
                let outcome = Outcome::Restored(Box::new(report));
                End::new(How::Restored, ok(outcome.to_json(pid)))
            }
            Err(failure) => End::failed(&failure, How::Parked),
        };
    }
    match held.park() {
        Ok(_) => End::new(How::Parked, ok(Outcome::Held.to_json(pid))),
        Err(error) => End::failed(&Failure::from(error), How::Parked),
    }
}

fn kill(held: Held) -> End {
    let pid = held.pid();
    restore::give_up(held);
    End::new(How::Killed, ok(Outcome::Killed.to_json(pid)))
}

/// What is left to do of a session whose memcr is gone.
fn finish(
    home: &Home,
    link: &Arc<Link>,
    pid: i32,
    gated: bool,
    what: impl FnOnce(&Sessions<'_>) -> Result<Outcome, Failure>,
) -> End {
    let cancel = Cancel::new();
    let sessions = Sessions {
        dir: home.state_dir.clone(),
        search: home.search.clone(),
        overrides: Vec::new(),
        workers: home.args.job.workers,
        on_corrupt: home.args.job.on_corrupt,
        gate: Arc::new(Checks::of_restore(link, pid, gated)),
        cancel: &cancel,
        shows_progress: false,
        as_json: true,
    };
    let failure = match what(&sessions) {
        Ok(outcome) => {
            let how = match outcome {
                Outcome::Restored(_) | Outcome::NothingMissing => How::Restored,
                Outcome::Held => How::Parked,
                Outcome::Cleaned => How::Exited,
                Outcome::Killed => How::Killed,
            };
            return End::new(how, ok(outcome.to_json(pid)));
        }
        Err(failure) => failure,
    };
    let end = End::failed(&failure, How::Parked);
    // It may hold the journal, and with it the lock.
    drop(failure);
    if end.how == How::Exited {
        clean(&sessions, pid);
    }
    end
}

/// Nothing is to be left of a target that has ended in the middle of something, whatever
/// that was.
fn clean(sessions: &Sessions<'_>, pid: i32) {
    // A process that is being killed is there for a moment still, and looks as if it lived. In
    // time or not: what is found then decides.
    ends_within(pid, &DEATH_TIME);
    match sessions.recover(pid, true) {
        Ok(_) => {}
        // Whoever noticed its end has removed it all.
        Err(left) if left.exit == Exit::NotHeld || left.exit == Exit::NoProcess => {}
        Err(left) => tracing::warn!(pid, "{}", left.causes().join(": ")),
    }
}

/// Whether a process has ended, or does so within this time.
fn ends_within(pid: i32, time: &Timespec) -> bool {
    match Pid::from_raw(pid).map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
        Some(Ok(pidfd)) => {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            matches!(poll(&mut fds, Some(time)), Ok(1..))
        }
        Some(Err(error)) => error == Errno::SRCH,
        None => true,
    }
}

/// `answer` with what every answer has that is good news.
fn ok(mut answer: Value) -> Value {
    answer["ok"] = json!(true);
    answer["exit_code"] = json!(Exit::Ok.code());
    answer
}

/// The gates of a session's process: which process it is, and what its caller may do is
/// looked at again, and with others it goes on when the daemon says so.
#[derive(Debug)]
struct Checks {
    link: Arc<Link>,
    cancel: Cancel,
    pid: i32,
    started: Option<u64>,
    permit: Option<Permit>,
    is_gated: bool,
}

impl Checks {
    fn of_restore(link: &Arc<Link>, pid: i32, is_gated: bool) -> Self {
        Self {
            link: Arc::clone(link),
            cancel: Cancel::new(),
            pid,
            started: None,
            permit: None,
            is_gated,
        }
    }

    /// Waits for the daemon's word.
    fn wait(&self) -> Result<(), Barred> {
        loop {
            if let Some(reason) = self.cancel.reason() {
                return Err(Barred::Cancelled(reason));
            }
            let mut fds = [PollFd::new(&*self.link, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&LOOK)), Ok(1..)) {
                continue;
            }
            match self.link.hear(false) {
                Ok(Some(Order::Go)) => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    return Err(Barred::Cancelled(CancelReason::Interrupted));
                }
            }
        }
    }
}

impl Gate for Checks {
    fn pass(&self, step: Step) -> Result<(), Barred> {
        // Looked at before the freeze too, so that nobody else's is frozen for nothing.
        if matches!(step, Step::Prepared | Step::Frozen)
            && self.started.is_some()
            && started(self.pid) != self.started
        {
            return Err(Barred::Ended);
        }
        if step == Step::Frozen
            && let Some(permit) = &self.permit
        {
            let denied = permit.check(self.pid);
            denied.map_err(|denied| Barred::Denied(denied.into()))?;
        }
        if !self.is_gated {
            return Ok(());
        }
        // Nobody there: the wait finds out.
        let _ = self.link.say(&News::At(step));
        self.wait()
    }
}
