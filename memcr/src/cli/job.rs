//! The main job as the user sees it: checkpoint, wait, restore.
//!
//! ```text
//!   load ─▶ checkpoint ─▶ report ─▶ "press enter" ─▶ restore ─▶ report
//!              │ undone                │ the target's end   │ tried again, then told
//!              └──────── Failure ◀─────┴────────────────────┘
//! ```
//!
//! With `--json` stdout holds one object at the end and nothing else, so the line that
//! asks for Enter goes to stderr then.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::Args;
use super::compat;
use super::exit::Exit;
use super::failure::Failure;
use super::interactive::{self, Line};
use super::out::Out;
use super::{progress, report, signals, units};
use crate::checkpoint::{CheckpointOptions, checkpoint};
use crate::pipeline::{Cancel, Pipeline, Progress};
use crate::restore::{self, OnCorrupt, RestoreReport, restore};
use crate::session::journal::StateDir;
use crate::session::{Held, HeldEvent};

/// What the user is asked when the target is held. Others wait for these words.
const PROMPT: &str = "press enter to restore";

/// A restore that failed without proof that the memory is lost (a disk or a server that
/// is away, memory that is short) is tried again after a pause, which grows from the
/// first to the second of these.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often it is tried at the most once somebody wants memcr to end.
const LAST_TRIES: u32 = 3;

/// Takes the memory of process `pid` away through the pipeline that `load` makes, waits,
/// and gives it back.
pub(super) fn run(
    args: &Args,
    pid: u32,
    state_dir: &Path,
    load: impl FnOnce() -> Result<Pipeline, Failure>,
    out: &mut Out,
) -> Result<(), Failure> {
    for flag in compat::without_effect(&args.job) {
        tracing::info!("{flag} changes nothing: the channel to the target has no name");
    }
    let cancel = Cancel::new();
    // Before any other thread: those of plugins must have the signals blocked too.
    let limit = signals::watch(&cancel, args.job.timeout).map_err(|error| {
        Failure::new(Exit::Internal, format!("cannot watch for signals: {error}"))
    })?;
    let pipeline = load()?;
    let stages = pipeline.describe().to_vec();
    let state_dir = StateDir::open(Some(state_dir))?;
    let options = options(args, pid, state_dir, &cancel);
    let line = progress::Line::start("checkpoint", &options.progress, shows_progress(args));
    let result = checkpoint(pipeline, &options);
    drop(line);
    limit.disarm();
    let mut held = result?;

    let taken = held.report().clone();
    if !args.common.json {
        report::checkpoint(&taken, &stages, out);
    }
    if !args.job.no_wait {
        wait(&mut held, &cancel, args.common.json, out);
    }
    let given_back = bring_back(held, &cancel, shows_progress(args))?;
    if args.common.json {
        out.json(&json!({
            "ok": true,
            "exit_code": Exit::Ok.code(),
            "pipeline": stages,
            "checkpoint": taken,
            "restore": given_back,
        }));
    } else {
        report::restore(&given_back, out);
    }
    Ok(())
}

fn options(args: &Args, pid: u32, state_dir: StateDir, cancel: &Cancel) -> CheckpointOptions {
    CheckpointOptions {
        pid: pid.cast_signed(),
        proc_mem: args.job.proc_mem,
        drop_file_pages: args.job.rss_file,
        include_locked: false,
        state_dir,
        verify: false,
        needs_guard: false,
        cancel: cancel.clone(),
        progress: Arc::new(Progress::default()),
    }
}

fn shows_progress(args: &Args) -> bool {
    !args.common.json && !args.common.quiet
}

/// Waits for Enter, for a signal that wants memcr to end, or for the target's end.
/// Whatever it is, the restore is next: it is the one that tells the target's end.
fn wait(held: &mut Held, cancel: &Cancel, as_json: bool, out: &mut Out) {
    if as_json {
        // Who does not read it presses Enter all the same, or has closed the input.
        let _ = writeln!(std::io::stderr(), "{PROMPT}");
    } else {
        out.line(PROMPT);
    }
    let stdin = std::io::stdin();
    loop {
        match held.wait(std::os::fd::AsFd::as_fd(&stdin), cancel) {
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
/// wants memcr to end: giving up means the target's end.
fn bring_back(
    mut held: Held,
    cancel: &Cancel,
    shows_progress: bool,
) -> Result<RestoreReport, Failure> {
    let mut pause = PAUSES.0;
    let mut last_tries = LAST_TRIES;
    loop {
        let progress = Arc::new(Progress::default());
        let line = progress::Line::start("restore", &progress, shows_progress);
        let result = restore(held, OnCorrupt::Kill, &progress);
        drop(line);
        let failure = match result {
            Ok(report) => {
                if report.truncated_bytes > 0 {
                    tracing::warn!(
                        "{} of process {} are behind the end of their file now, which was cut short",
                        units::bytes(report.truncated_bytes),
                        report.pid
                    );
                }
                if let Some(left) = &report.image_left {
                    tracing::warn!("the image stays behind: {left}");
                }
                return Ok(report);
            }
            Err(failure) => failure,
        };
        let reason = Failure::from(failure.error);
        let Some(again) = failure.held else {
            return Err(reason);
        };
        held = *again;
        if cancel.reason().is_some() {
            last_tries -= 1;
        }
        if last_tries == 0 {
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

fn give_up(held: Held, reason: Failure) -> Failure {
    let pid = held.pid();
    restore::give_up(held);
    reason.with_hint(Some(&format!(
        "process {pid} was killed: it cannot run without its memory, which memcr could not give back"
    )))
}
