//! The main job as the user sees it: checkpoint, wait, restore. And its first half, which
//! leaves the process held with no memcr beside it.
//!
//! ```text
//!   load ─▶ checkpoint ─▶ report ─▶ "press enter" ─▶ restore ─▶ report
//!              │ undone                │ the target's end   │ tried again, then told
//!              └──────── Failure ◀─────┴────────────────────┘
//! ```
//!
//! With `--json` stdout holds one object at the end and nothing else, so the line that
//! asks for Enter goes to stderr then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Args, LogFormat};
use super::config::Choice;
use super::exit::Exit;
use super::failure::Failure;
use super::interactive::{self, Line};
use super::{compat, log, progress, report, sessions, signals};
use crate::checkpoint::{CheckpointOptions, CheckpointReport, checkpoint};
use crate::pipeline::{Cancel, LinkDescription, Pipeline, Priority, Progress, SearchPath};
use crate::restore::{self, RestoreError, RestoreOptions, RestoreReport, restore};
use crate::session::gate::Gate;
use crate::session::journal::{GroupRecord, StateDir};
use crate::session::{Held, HeldEvent, LOOK_EVERY};
use memcr_text::Out;

/// What the user is asked when the target is held. Others wait for these words.
const PROMPT: &str = "press enter to restore";

/// A restore that failed without proof that the memory is lost (a disk or a server that
/// is away, memory that is short) is tried again after a pause, which grows from the
/// first to the second of these.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often it is tried at the most once somebody wants memcr to end.
const LAST_TRIES: u32 = 3;

/// A process whose memory is to be taken away, and how.
pub(crate) struct Order<'a> {
    pub(crate) args: &'a Args,
    pub(crate) pid: u32,
    /// Where journals are.
    pub(crate) state_dir: &'a Path,
    /// Where plugins are.
    pub(crate) search: &'a SearchPath,
    /// What the configuration and the flags come to.
    pub(crate) choice: &'a Choice,
    /// Of the workers, unless the choice is that everybody else goes first.
    pub(crate) priority: Priority,
    /// Of which group it is a member.
    pub(crate) group: Option<GroupRecord>,
    /// Where it waits for the others of that.
    pub(crate) gate: Arc<dyn Gate>,
    /// Stops the work.
    pub(crate) cancel: Cancel,
}

/// A process that is held.
pub(crate) struct Taken {
    pub(crate) held: Held,
    pub(crate) stages: Vec<LinkDescription>,
    cancel: Cancel,
    pub(crate) watch: signals::Watch,
}

/// `-p PID`: takes the memory of a process away, waits, and gives it back.
pub(super) fn run(order: &Order<'_>, out: &mut Out) -> Result<(), Failure> {
    let args = order.args;
    compat::say_without_effect(&args.job);
    let Taken {
        mut held,
        stages,
        cancel,
        ..
    } = order.take(false)?;
    let taken = held.report().clone();
    if !args.common.json {
        report::checkpoint(&taken, &stages, out);
    }
    if !args.job.no_wait {
        wait(&mut held, &cancel, args, out);
    }
    let given_back = bring_back(held, &cancel, args)?;
    if args.common.json {
        let mut answer = answer(&stages, &taken);
        answer["restore"] = json!(given_back);
        out.json(&answer);
    } else {
        report::restore(&given_back, out);
    }
    Ok(())
}

/// What a checkpoint that worked answers with `--json`.
pub(crate) fn answer(stages: &[LinkDescription], taken: &CheckpointReport) -> Value {
    json!({
        "ok": true,
        "exit_code": Exit::Ok.code(),
        "pipeline": stages,
        "checkpoint": taken,
    })
}

/// `checkpoint PID`: takes the memory of a process away and leaves the process held.
pub(super) fn park(order: &Order<'_>, out: &mut Out) -> Result<(), Failure> {
    let Taken { held, stages, .. } = order.take(true)?;
    let taken = held.park().map_err(|error| {
        let again = format!("`memcr recover {}` finishes the session", order.pid);
        match Failure::from(error) {
            failure if failure.exit == Exit::TargetGone => failure,
            failure => failure.with_hint(Some(&again)),
        }
    })?;
    if order.args.common.json {
        out.json(&answer(&stages, &taken));
    } else {
        report::checkpoint(&taken, &stages, out);
    }
    Ok(())
}

impl Order<'_> {
    /// Checkpoints. `parks`: memcr is not to stay.
    pub(crate) fn take(&self, parks: bool) -> Result<Taken, Failure> {
        let cancel = self.cancel.clone();
        // Before any other thread: those of plugins must have the signals blocked too.
        let watch = signals::watch(&cancel, self.args.job.timeout).map_err(not_watched)?;
        let state_dir = StateDir::open(Some(self.state_dir))?;
        sessions::make_way(&state_dir, self.pid.cast_signed(), self.search)?;
        let pipeline = Pipeline::load(&self.choice.spec, self.search)
            .map_err(|error| Failure::of_choice(error, self.choice))?;
        let stages = pipeline.describe().to_vec();
        let options = CheckpointOptions {
            pid: self.pid.cast_signed(),
            proc_mem: self.args.job.proc_mem,
            drop_file_pages: self.args.job.rss_file,
            include_locked: false,
            state_dir,
            search: self.search.clone(),
            verify: self.args.job.verify,
            priority: match self.choice.idle {
                true => Priority::Idle,
                false => self.priority,
            },
            parks,
            on_corrupt: self.args.job.on_corrupt.into(),
            group: self.group.clone(),
            gate: self.gate.clone(),
            cancel: cancel.clone(),
            progress: Arc::new(Progress::default()),
        };
        let wanted = shows_progress(self.args);
        let line = progress::Line::start("checkpoint", &options.progress, wanted);
        let result = checkpoint(pipeline, &options);
        drop(line);
        watch.disarm();
        Ok(Taken {
            held: result?,
            stages,
            cancel,
            watch,
        })
    }
}

pub(super) fn not_watched(error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("cannot watch for signals: {error}"))
}

pub(super) fn shows_progress(args: &Args) -> bool {
    let for_people = args.common.log_format == LogFormat::Text;
    for_people && !args.common.json && !args.common.quiet
}

/// Waits for Enter, for a signal that wants memcr to end, or for the target's end.
/// Whatever it is, the restore is next: it is the one that tells the target's end.
fn wait(held: &mut Held, cancel: &Cancel, args: &Args, out: &mut Out) {
    if args.common.json {
        // Who does not read it presses Enter all the same, or has closed the input.
        log::remark(PROMPT, args.common.log_format);
    } else {
        out.line(PROMPT);
    }
    let stdin = std::io::stdin();
    loop {
        match held.wait(std::os::fd::AsFd::as_fd(&stdin), LOOK_EVERY, cancel) {
            Ok(HeldEvent::Wake) if interactive::take(&stdin) == Line::Begun => {}
            Ok(HeldEvent::Wake | HeldEvent::TargetExited(_)) => return,
            Ok(HeldEvent::Cancelled(reason)) => return tracing::info!("{reason}: restoring"),
            Err(error) => {
                return tracing::warn!(
                    "{}: restoring",
                    Failure::new(Exit::Internal, error).causes().join(": ")
                );
            }
        }
    }
}

/// Restores. A failure that leaves the target held is tried again for as long as nobody
/// wants memcr to end: then somebody else has to, if a guard lets it wait.
pub(crate) fn bring_back(
    mut held: Held,
    cancel: &Cancel,
    args: &Args,
) -> Result<RestoreReport, Failure> {
    let mut pause = PAUSES.0;
    let mut last_tries = LAST_TRIES;
    loop {
        let options = RestoreOptions {
            on_corrupt: args.job.on_corrupt.into(),
            ..RestoreOptions::default()
        };
        let line = progress::Line::start("restore", &options.progress, shows_progress(args));
        let result = restore(held, &options);
        drop(line);
        let failure = match result {
            Ok(given_back) => {
                report::remarks(&given_back);
                return Ok(given_back);
            }
            Err(failure) => failure,
        };
        let is_damaged = matches!(failure.error, RestoreError::Corrupt { .. });
        let reason = Failure::from(failure.error);
        let Some(again) = failure.held else {
            return Err(reason);
        };
        held = *again;
        if cancel.reason().is_some() {
            last_tries -= 1;
        }
        // Another copy of the image may come while it waits; without us, if it can.
        if last_tries == 0 || (is_damaged && held.can_be_left()) {
            return Err(give_up(held, reason));
        }
        tracing::error!(
            "{}; next try in {} s",
            reason.causes().join(": "),
            pause.as_secs()
        );
        // The next try tells the target's end, should that be what ended the pause.
        wait_for_next_try(&mut held, pause, cancel);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Once memcr is to end, tries follow each other after the shortest pause.
fn wait_for_next_try(held: &mut Held, pause: Duration, cancel: &Cancel) {
    if cancel.reason().is_some() {
        held.pause(PAUSES.0, &Cancel::new());
    } else {
        held.pause(pause, cancel);
    }
}

/// Ends with the target still held, or with its end where nothing would hold it.
fn give_up(held: Held, reason: Failure) -> Failure {
    let pid = held.pid();
    if !held.has_guard() {
        restore::give_up(held);
        return reason.with_hint(Some(&format!(
            "process {pid} was killed: it cannot run without its memory, which memcr could not give back"
        )));
    }
    let held_by_itself = held.park();
    reason.or_hint(&match held_by_itself {
        Ok(_) => format!("process {pid} stays held; `memcr restore {pid}` tries again"),
        Err(error) => format!(
            "process {pid} stays held ({}); `memcr recover {pid}` tries again",
            Failure::said(&error)
        ),
    })
}
