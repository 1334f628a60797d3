//! `restore` and `recover`: sessions that another memcr began.
//!
//! ```text
//!   restore PID ──adopt──▶ journal ──load its pipeline──▶ finish ──▶ the target runs
//!   recover     ──list───▶ adopt each ─┬─ the process still is there ─▶ finish, or --hold
//!                                      └─ it has ended ──────────────▶ clean
//! ```
//!
//! What `checkpoint` left held on purpose is not an accident: `recover` without a PID
//! leaves it alone unless it is told `--all`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::{Args, LogFormat, OnCorrupt};
use super::config::{self, Config};
use super::exit::Exit;
use super::failure::Failure;
use super::{job, list, log, progress, report, signals};
use crate::pipeline::{Cancel, Pipeline, PipelineSpec, SearchPath, StageSpec, is_called};
use crate::restore::{RestoreOptions, RestoreReport};
use crate::session::adopt::{self, AdoptError};
use crate::session::gate::{Gate, Open};
use crate::session::journal::{Entry, Journal, JournalError, Standing, State, StateDir};
use memcr_text::Out;

/// What the commands need to know beside their target.
pub(crate) struct Sessions<'a> {
    /// Where journals are.
    pub(crate) dir: PathBuf,
    /// Where plugins are.
    pub(crate) search: SearchPath,
    /// `--set`: keys, for one, that no journal holds.
    pub(crate) overrides: Vec<StageSpec>,
    /// `--workers`.
    pub(crate) workers: Option<u16>,
    /// `--on-corrupt`.
    pub(crate) on_corrupt: OnCorrupt,
    /// Where a restored process waits for the others of its group.
    pub(crate) gate: Arc<dyn Gate>,
    /// Set when somebody wants memcr to end.
    pub(crate) cancel: &'a Cancel,
    /// Whether a progress line is wanted.
    pub(crate) shows_progress: bool,
    /// Whether one JSON object is wanted.
    pub(crate) as_json: bool,
}

/// The word for [`Outcome::Cleaned`].
pub(crate) const CLEANED: &str = "cleaned";

/// What became of a session.
pub(crate) enum Outcome {
    /// The target has its memory back and runs.
    Restored(Box<RestoreReport>),
    /// The target had all its memory and ran all the time.
    NothingMissing,
    /// The target stays held, on purpose now.
    Held,
    /// The target has ended; nothing of it is left.
    Cleaned,
    /// The target was ended, since nobody wants it any more; nothing of it is left.
    Killed,
}

/// Clears what an earlier session has left, so that a checkpoint may begin: of a process
/// that had the pid before, or of a memcr that died before anything was missing.
///
/// # Errors
/// When the process is held already.
pub(super) fn make_way(dir: &StateDir, pid: i32, search: &SearchPath) -> Result<(), Failure> {
    match dir.adopt(pid) {
        Ok(journal) if journal.record().state == State::Storing => {
            tracing::warn!("cleaning up after a memcr that died while it stored process {pid}");
            Ok(adopt::settle(journal, search)?)
        }
        Ok(journal) => Err(JournalError::Held {
            record: Box::new(journal.record().clone()),
        }
        .into()),
        Err(JournalError::Gone { journal }) => {
            tracing::warn!("cleaning up after the process {pid} that was held and has ended");
            clean(*journal, search)
        }
        // The checkpoint tells whether there is such a process.
        Err(JournalError::NotHeld { .. } | JournalError::NoProcess { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes what is left of a session whose target has ended.
fn clean(journal: Journal, search: &SearchPath) -> Result<(), Failure> {
    let record = journal.record();
    let locator = record.image.as_ref().map(|image| image.locator.clone());
    let hint = format!(
        "what is at {} may be removed by hand; then `memcr recover {}` again",
        locator.unwrap_or_default(),
        record.pid
    );
    adopt::bury(journal, search).map_err(|error| match error {
        error @ AdoptError::Image { .. } => Failure::from(error).with_hint(Some(&hint)),
        error => error.into(),
    })
}

/// Calls `what` with what `args` and the configuration say.
pub(super) fn with(
    args: &Args,
    config: &Config,
    what: impl FnOnce(&Sessions<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cancel = Cancel::new();
    // Nothing stops a restore half way; `recover` ends behind the one that is under way.
    signals::watch(&cancel, None).map_err(job::not_watched)?;
    what(&Sessions {
        dir: super::state_dir(args, config),
        search: super::search(config),
        overrides: config::overrides(&args.common.set)?,
        workers: args.job.workers,
        on_corrupt: args.job.on_corrupt,
        gate: Arc::new(Open),
        cancel: &cancel,
        shows_progress: job::shows_progress(args),
        as_json: args.common.json,
    })
}

impl Sessions<'_> {
    /// `restore PID`.
    pub(super) fn restore(&self, pid: i32, out: &mut Out) -> Result<(), Failure> {
        let outcome = self.bring_back(pid)?;
        outcome.tell(pid, self.as_json, out);
        Ok(())
    }

    /// Restores the process that is held with no memcr beside it.
    pub(crate) fn bring_back(&self, pid: i32) -> Result<Outcome, Failure> {
        let journal = self.adopt_any(pid)?;
        self.finish(journal)
    }

    /// `recover PID`.
    pub(super) fn recover_one(&self, pid: i32, hold: bool, out: &mut Out) -> Result<(), Failure> {
        let outcome = self.recover(pid, hold)?;
        if let Outcome::Cleaned = outcome {
            let what = format!("process {pid} has ended while it was held; nothing of it is left");
            return Err(Failure::new(Exit::NoProcess, what));
        }
        outcome.tell(pid, self.as_json, out);
        Ok(())
    }

    /// `recover`, `recover --all`.
    pub(super) fn recover_every(
        &self,
        parked_too: bool,
        hold: bool,
        form: LogFormat,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let dir = StateDir::find(Some(&self.dir))?;
        let entries = dir.as_ref().map_or(Ok(Vec::new()), StateDir::list)?;
        let wanted = entries
            .into_iter()
            .filter(|entry| is_wanted(entry, parked_too));
        let (mut sessions, mut failed) = (Vec::new(), Vec::new());
        for entry in wanted {
            if let Some(reason) = self.cancel.reason() {
                let what = format!(
                    "{reason}: the session with process {} was not finished",
                    entry.pid
                );
                failed.push(Failure::new(Exit::Aborted, what));
                break;
            }
            match self.recover(entry.pid, hold) {
                Ok(outcome) => {
                    sessions.push(outcome.to_json(entry.pid));
                    if !self.as_json {
                        outcome.print(entry.pid, out);
                    }
                }
                Err(failure) => {
                    log::complain(&failure, form);
                    sessions.push(json!({ "pid": entry.pid, "failure": failure.to_json() }));
                    failed.push(failure);
                }
            }
        }
        dir.map_or(Ok(()), |dir| dir.sweep())?;
        self.sum_up(sessions, failed, out)
    }

    /// One object, or the number of failures, behind what was said of each.
    fn sum_up(
        &self,
        sessions: Vec<Value>,
        failed: Vec<Failure>,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let n = sessions.len();
        if let Some(first) = failed.first() {
            let what = format!("{} of {n} sessions could not be finished", failed.len());
            return Err(Failure::new(first.exit, what).with_detail("sessions", sessions.into()));
        }
        if self.as_json {
            out.json(&json!({ "ok": true, "exit_code": Exit::Ok.code(), "sessions": sessions }));
        } else if n == 0 {
            out.line("nothing to recover");
        }
        Ok(())
    }

    /// Finishes one session in the direction that loses nothing; `hold`: what can be held
    /// stays so.
    pub(crate) fn recover(&self, pid: i32, hold: bool) -> Result<Outcome, Failure> {
        match self.adopt_any(pid) {
            Ok(journal) if hold && can_be_held(&journal) => {
                adopt::hold(journal)?;
                Ok(Outcome::Held)
            }
            Ok(journal) => self.finish(journal),
            Err(JournalError::Gone { journal }) => {
                clean(*journal, &self.search).map(|()| Outcome::Cleaned)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a process that is held, and removes what its session has left.
    pub(crate) fn end(&self, pid: i32) -> Result<Outcome, Failure> {
        adopt::kill(self.adopt_any(pid)?, &self.search)?;
        Ok(Outcome::Killed)
    }

    fn adopt_any(&self, pid: i32) -> Result<Journal, JournalError> {
        match StateDir::find(Some(&self.dir))? {
            Some(dir) => dir.adopt(pid),
            None => Err(JournalError::not_held(pid, &self.dir)),
        }
    }

    /// Gives a target back what it lacks and lets it run.
    fn finish(&self, journal: Journal) -> Result<Outcome, Failure> {
        let pid = journal.record().pid;
        if adopt::misses_nothing(journal.record()) {
            // Without a stage: the one that crashed may be gone.
            adopt::settle(journal, &self.search)?;
            return Ok(Outcome::NothingMissing);
        }
        let pipeline = Pipeline::load(&self.pipeline(&journal)?, &self.search)
            .map_err(|error| still_held(pid, error.into()))?;
        let options = RestoreOptions {
            on_corrupt: self.on_corrupt.into(),
            gate: self.gate.clone(),
            ..RestoreOptions::default()
        };
        let line = progress::Line::start("restore", &options.progress, self.shows_progress);
        let result = adopt::restore(journal, pipeline, &self.search, &options);
        drop(line);
        let given_back = result.map_err(|error| still_held(pid, error.into()))?;
        report::remarks(&given_back);
        Ok(Outcome::Restored(Box::new(given_back)))
    }

    /// The pipeline of the checkpoint, with what the user gives along.
    fn pipeline(&self, journal: &Journal) -> Result<PipelineSpec, Failure> {
        let mut spec = PipelineSpec::from(&journal.record().pipeline);
        for given in &self.overrides {
            give(&mut spec, given).map_err(|()| {
                let what = format!(
                    "process {} was checkpointed without a stage `{}`: its pipeline is {}",
                    journal.record().pid,
                    given.alias,
                    list::stages(journal.record())
                );
                Failure::new(Exit::Usage, what)
            })?;
        }
        let workers = self.workers.map(usize::from).and_then(NonZeroUsize::new);
        spec.workers = workers.or(spec.workers);
        Ok(spec)
    }
}

/// Gives the stages that are called so their parameters. `Err`: there is none.
fn give(spec: &mut PipelineSpec, given: &StageSpec) -> Result<(), ()> {
    let is_meant = |stage: &&mut StageSpec| is_called(&given.alias, &stage.alias, &stage.plugin);
    let mut meant = spec.stages.iter_mut().filter(is_meant).peekable();
    meant.peek().ok_or(())?;
    meant.for_each(|stage| stage.params.extend(given.params.iter().cloned()));
    Ok(())
}

impl Outcome {
    fn tell(&self, pid: i32, as_json: bool, out: &mut Out) {
        if !as_json {
            return self.print(pid, out);
        }
        let mut object = self.to_json(pid);
        object["ok"] = true.into();
        object["exit_code"] = Exit::Ok.code().into();
        out.json(&object);
    }

    fn print(&self, pid: i32, out: &mut Out) {
        match self {
            Self::Restored(given_back) => report::restore(given_back, out),
            Self::NothingMissing => {
                out.line(format_args!("process {pid} had all its memory, and runs"));
            }
            Self::Held => out.line(format_args!("process {pid} is held")),
            Self::Cleaned => out.line(format_args!(
                "process {pid} has ended while it was held; nothing of it is left"
            )),
            Self::Killed => out.line(format_args!("process {pid} was killed")),
        }
    }

    pub(crate) fn to_json(&self, pid: i32) -> Value {
        let word = match self {
            Self::Restored(given_back) => {
                return json!({ "pid": pid, "outcome": "restored", "restore": given_back });
            }
            Self::NothingMissing => "nothing missing",
            Self::Held => "held",
            Self::Cleaned => CLEANED,
            Self::Killed => "killed",
        };
        json!({ "pid": pid, "outcome": word })
    }
}

/// Whether `recover` without a PID finishes this session. What is damaged is: it fails,
/// and so is not passed over in silence.
fn is_wanted(entry: &Entry, parked_too: bool) -> bool {
    if entry.owner.is_some() {
        return false;
    }
    match &entry.record {
        Ok(record) => parked_too || !record.parked || entry.standing != Standing::Same,
        Err(_) => true,
    }
}

/// With all that is missing in its image, and no memory on its way back.
fn can_be_held(journal: &Journal) -> bool {
    let record = journal.record();
    record.guard.is_some() && matches!(record.state, State::Dropping | State::Held)
}

/// A failure after which another try may succeed tells how.
fn still_held(pid: i32, failure: Failure) -> Failure {
    match failure.exit {
        Exit::ImageCorrupt | Exit::TargetGone | Exit::NoProcess => failure,
        _ => failure.or_hint(&format!(
            "the process stays held; `memcr restore {pid}` tries again"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_finds_its_stage_by_either_name() {
        let stage = |alias: &str, plugin: &str| StageSpec {
            alias: alias.into(),
            plugin: plugin.into(),
            params: Vec::new(),
        };
        for (word, want) in [
            ("secret", [0, 1, 0]),
            ("encrypt", [0, 1, 0]),
            ("own", [1, 0, 0]),
            ("mine", [1, 0, 0]),
            ("file", [0, 0, 1]),
        ] {
            let mut spec = PipelineSpec {
                stages: vec![
                    stage("mine", "/a/libmemcr_stage_own.so"),
                    stage("secret", "encrypt"),
                    stage("file", "file"),
                ],
                ..PipelineSpec::default()
            };
            let mut given = stage(word, "");
            given.params.push(("key".into(), "value".into()));
            assert_eq!(give(&mut spec, &given), Ok(()), "{word}");
            let n_params: Vec<_> = spec.stages.iter().map(|it| it.params.len()).collect();
            assert_eq!(n_params, want, "{word}");
        }
        assert!(give(&mut PipelineSpec::default(), &stage("lz4", "")).is_err());
    }
}
