//! A command that did not work: the exit code, the chain of causes, a hint.

use std::error::Error;
use std::io::ErrorKind;

use memcr_plugin_api::abi::code;
use memcr_text::harmless;
use serde_json::{Value, json};

use super::config::{Choice, ConfigError};
use super::exit::Exit;
use crate::checkpoint::{CheckpointError, StepError};
use crate::freeze::{FreezeError, Refusal};
use crate::inject::GuardError;
use crate::pipeline::{CancelReason, LoadError, PipelineError};
use crate::restore::RestoreError;
use crate::session::ParkError;
use crate::session::adopt::AdoptError;
use crate::session::gate::Barred;
use crate::session::journal::JournalError;
use crate::sink::ImageError;

/// What gives the right to trace a process.
const PERMISSION_HINT: &str = "be root, own the process where \
     /proc/sys/kernel/yama/ptrace_scope allows that, or have CAP_SYS_PTRACE, CAP_DAC_OVERRIDE \
     and CAP_KILL";

/// What a guard takes in a target that has as many descriptors as it may.
const LIMIT_HINT: &str = "memcr may go beyond the target's hard limit (RLIMIT_NOFILE, see \
     prlimit(1)) with CAP_SYS_RESOURCE; without, raise the limit, or let the target close a \
     descriptor";

/// Why a command failed, and how memcr ends because of it.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    /// A field that `--json` prints beside the others.
    detail: Option<(&'static str, Value)>,
}

impl Failure {
    /// A failure with its exit code and no hint.
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit,
            error: error.into(),
            hint: None,
            detail: None,
        }
    }

    /// Of a pipeline that was chosen: a parameter that does not fit is named with the
    /// place where it was given.
    pub(crate) fn of_choice(error: PipelineError, choice: &Choice) -> Self {
        let origin = match &error {
            PipelineError::Param { stage, key, .. } => choice.origin(stage, key),
            _ => None,
        };
        match origin {
            None => Self::from(error),
            Some(origin) => {
                Self::new(Exit::Plugin, format!("{origin}: {error}")).with_hint(error.hint())
            }
        }
    }

    /// Of a pipeline that no image can be begun with.
    pub(crate) fn not_begun(error: PipelineError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self::new(not_ready(&error), error).with_hint(hint.as_deref())
    }

    /// The failure that an answer tells of, as [`Failure::to_json`] has put it; `None`: it
    /// tells of none.
    pub(crate) fn of_answer(answer: &Value) -> Option<Self> {
        if answer["ok"] == true {
            return None;
        }
        let code = answer["exit_code"].as_u64();
        let is_it = |exit: &Exit| code == Some(exit.code().into());
        let exit = Exit::ALL.into_iter().find(is_it).unwrap_or(Exit::Internal);
        let text = |key: &str| answer["error"][key].as_str();
        let failure = Self::new(exit, text("message").unwrap_or("no reason was given"));
        Some(failure.with_hint(text("hint")))
    }

    /// The same, as a cause of `what`.
    pub(crate) fn in_context(mut self, what: &str) -> Self {
        self.error = format!("{what}: {}", self.causes().join(": ")).into();
        self
    }

    /// The same with what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<&str>) -> Self {
        self.hint = hint.filter(|hint| !hint.is_empty()).map(str::to_owned);
        self
    }

    /// The same with this hint, unless it has one.
    #[must_use]
    pub(super) fn or_hint(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }

    /// The same with a field that only `--json` prints.
    #[must_use]
    pub(super) fn with_detail(mut self, key: &'static str, value: Value) -> Self {
        self.detail = Some((key, value));
        self
    }

    /// What failed, then cause by cause.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        causes(self.error.as_ref())
    }

    /// What the user can do about it, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// An error and its causes in one line, where it is no failure of the command.
    pub(crate) fn said(error: &(dyn Error + 'static)) -> String {
        causes(error).join(": ")
    }

    /// The text for stderr: `memcr: what: cause: cause`, and a line with the hint. Names in
    /// it may come from an image or a process.
    #[must_use]
    pub fn message(&self) -> String {
        let hint = self.hint.as_ref();
        let hint = hint.map(|hint| format!("\nhint: {}", harmless(hint)));
        format!(
            "memcr: {}{}",
            harmless(&self.causes().join(": ")),
            hint.unwrap_or_default()
        )
    }

    /// The object that `--json` prints.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "ok": false,
            "exit_code": self.exit.code(),
            "meaning": self.exit.meaning(),
            "error": { "message": self.causes().join(": "), "causes": self.causes(), "hint": self.hint },
        });
        if let Some((key, value)) = &self.detail {
            object[key] = value.clone();
        }
        object
    }
}

/// An error that repeats its cause in its own text is not printed twice, nor is what a cause
/// begins with, if its error ends so.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        let said = causes.last().map_or("", String::as_str);
        let text = match text.split_once(": ") {
            Some((begin, rest)) if said.ends_with(&format!(" {begin}")) => rest,
            _ => &text,
        };
        if !said.ends_with(text) {
            causes.push(text.to_owned());
        }
        next = cause.source();
    }
    causes
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let hint = error.hint.clone();
        Self::new(Exit::Plugin, error).with_hint(Some(&hint))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::new(unread(&error), error)
    }
}

/// Of an image that was not read. What cannot be had says nothing about its bytes.
fn unread(error: &ImageError) -> Exit {
    match error {
        ImageError::Open(source) | ImageError::Io { source, .. } => match source.code {
            code::PERMISSION => Exit::Permission,
            code::NOT_FOUND | code::IO => Exit::Internal,
            _ => Exit::ImageInvalid,
        },
        _ => Exit::ImageInvalid,
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let hint = journal_hint(&error);
        Self::new(no_session(&error), error).with_hint(hint.as_deref())
    }
}

/// Of a session that was not begun or not adopted. Nothing was touched.
fn no_session(error: &JournalError) -> Exit {
    match error {
        JournalError::Held { .. } | JournalError::Busy { .. } | JournalError::Daemon { .. } => {
            Exit::Held
        }
        JournalError::NotHeld { .. } => Exit::NotHeld,
        JournalError::Gone { .. } | JournalError::NoProcess { .. } => Exit::NoProcess,
        JournalError::Layout { .. } => Exit::RestoreFailed,
        JournalError::Unfit { .. } => Exit::Usage,
        JournalError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            Exit::Permission
        }
        _ => Exit::Internal,
    }
}

/// A journal that was adopted and cannot be written now. Another directory would not help.
fn is_unwritten(error: &JournalError) -> bool {
    matches!(
        error,
        JournalError::Io { .. } | JournalError::TooLong { .. }
    )
}

fn journal_hint(error: &JournalError) -> Option<String> {
    Some(match error {
        JournalError::Held { record } if record.parked => {
            format!("`memcr restore {}` gives it its memory back", record.pid)
        }
        JournalError::Held { record } => format!(
            "the memcr that held it has died: `memcr recover {}` finishes what it began",
            record.pid
        ),
        JournalError::Busy { pid, by: Some(by) } => format!(
            "process {by} gives it its memory back: a `memcr -p` with Enter, or by \
             `kill -INT {by}`, a daemon by `memcr-client -l PORT|PATH -p {pid} -r`"
        ),
        JournalError::Gone { journal } => format!(
            "`memcr recover {}` removes what is left of it",
            journal.record().pid
        ),
        JournalError::Layout { pid } => format!(
            "it stays held, for it would run on wrong memory; `kill -KILL {pid}` ends it, and \
             `memcr recover {pid}` removes what is left of it"
        ),
        JournalError::Damaged { path, .. } => format!(
            "if the process of this number is not held, {} may be removed",
            path.display()
        ),
        JournalError::Untrusted { path, .. } => format!(
            "give it back to its owner alone (chown, chmod 600 {}) if nobody has changed it: \
             without it the process it is of stays held",
            path.display()
        ),
        JournalError::Daemon { .. } => "a daemon of its own takes a --state-dir of its own".into(),
        JournalError::Newer { .. } => "the memcr that wrote it finishes its session".into(),
        JournalError::Unfit { .. } | JournalError::Io { .. } => {
            "--state-dir DIR names another directory, as does state_dir in pipeline.toml".into()
        }
        _ => return None,
    })
}

/// Of a pipeline without a target: loading it, or reading an image. With a target, the
/// checkpoint and restore rooms say what became of it, and that decides.
impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        let exit = match &error {
            PipelineError::Load(_)
            | PipelineError::Param { .. }
            | PipelineError::Config { .. }
            | PipelineError::Plugin { .. }
            | PipelineError::WrongKey { .. } => Exit::Plugin,
            PipelineError::Corrupt { .. }
            | PipelineError::Lied { .. }
            | PipelineError::Sink { .. } => Exit::ImageInvalid,
            PipelineError::Image(error) => unread(error),
            PipelineError::Cancelled(CancelReason::TargetGone) => Exit::TargetGone,
            PipelineError::Cancelled(_) => Exit::Aborted,
            _ => Exit::Internal,
        };
        let hint = error.hint().map(str::to_owned);
        Self::new(exit, error).with_hint(hint.as_deref())
    }
}

/// The exit code says what became of the target.
impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let exit = match &error {
            CheckpointError::Refused {
                source: Refusal::NoSuchProcess(_),
                ..
            } => Exit::NoProcess,
            CheckpointError::Refused {
                source: Refusal::Permission { .. },
                ..
            } => Exit::Permission,
            CheckpointError::Refused { .. } | CheckpointError::NoGuard { .. } => Exit::Refused,
            CheckpointError::Journal { source, .. } => no_session(source),
            CheckpointError::HeldElsewhere { .. } => Exit::Held,
            CheckpointError::NotReady { source, .. } | CheckpointError::OnlyHere { source, .. } => {
                not_ready(source)
            }
            CheckpointError::Barred { source, .. } => barred(source),
            CheckpointError::TargetExited { .. } => Exit::TargetGone,
            CheckpointError::Undone { source, .. } => match &**source {
                StepError::Pipeline(error) => undone(error),
                StepError::Freeze(FreezeError::Cancelled { .. }) => Exit::Aborted,
                StepError::Barred(source) => barred(source),
                _ => Exit::Undone,
            },
            CheckpointError::NotUndone { source, .. } => not_restored(source),
        };
        let hint = match &error {
            CheckpointError::Refused {
                source: Refusal::Permission { .. },
                ..
            } => Some(PERMISSION_HINT.to_owned()),
            CheckpointError::NoGuard { pid, .. } => Some(format!(
                "it takes a userfaultfd, see `memcr check`; `memcr -p {pid}` holds it as long as memcr runs"
            )),
            CheckpointError::Journal { source, .. } => journal_hint(source),
            CheckpointError::HeldElsewhere { pid } => Some(format!(
                "`memcr restore {pid} --state-dir DIR`, as the user who has checkpointed it; \
                 or ask the daemon, if that was it"
            )),
            CheckpointError::NotReady { source, .. } => source.hint().map(str::to_owned),
            CheckpointError::OnlyHere { pid, source } => Some(format!(
                "{}; or `memcr -p {pid}`, which holds it as long as memcr runs",
                source.hint().unwrap_or("choose other stages")
            )),
            CheckpointError::Undone { source, .. } => match &**source {
                StepError::Pipeline(error) => error.hint().map(str::to_owned),
                StepError::Guard(GuardError::Limit(source))
                    if source.kind() == ErrorKind::PermissionDenied =>
                {
                    Some(LIMIT_HINT.to_owned())
                }
                _ => None,
            },
            _ => None,
        };
        Self::new(exit, error).with_hint(hint.as_deref())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let hint = match &error {
            RestoreError::NoRoom { .. } => Some(ROOM_HINT.to_owned()),
            RestoreError::Corrupt { pid, .. } => Some(damaged_hint(*pid)),
            RestoreError::TakeDown { pid, .. } => Some(leftover_hint(*pid)),
            _ => None,
        };
        Self::new(not_restored(&error), error).with_hint(hint.as_deref())
    }
}

/// Who follows a hint must not lose by it what `--on-corrupt hold` has saved.
fn damaged_hint(pid: i32) -> String {
    format!(
        "when the image is repaired, `memcr restore {pid} --on-corrupt hold` tries again; \
         without --on-corrupt hold a damaged image costs the process its life"
    )
}

const ROOM_HINT: &str = "end something else, or raise the limit of its memory cgroup";

fn leftover_hint(pid: i32) -> String {
    format!("`memcr recover {pid}` takes the rest out")
}

impl From<AdoptError> for Failure {
    fn from(error: AdoptError) -> Self {
        let exit = match &error {
            AdoptError::Lost { .. } => Exit::ImageCorrupt,
            AdoptError::TargetExited { .. } | AdoptError::AnotherProgram { .. } => Exit::TargetGone,
            AdoptError::Refused {
                source: Refusal::Permission { .. },
                ..
            } => Exit::Permission,
            AdoptError::Image { .. } => Exit::Internal,
            AdoptError::Journal(error) if !is_unwritten(error) => no_session(error),
            _ => Exit::RestoreFailed,
        };
        let hint = match &error {
            AdoptError::Refused {
                source: Refusal::Permission { .. },
                ..
            } => Some(PERMISSION_HINT.to_owned()),
            AdoptError::Held { source, .. } => source.hint().map(str::to_owned),
            AdoptError::NoRoom { .. } => Some(ROOM_HINT.to_owned()),
            AdoptError::Corrupt { pid, .. } => Some(damaged_hint(*pid)),
            AdoptError::TakeDown { pid, .. } => Some(leftover_hint(*pid)),
            AdoptError::Journal(error) if !is_unwritten(error) => journal_hint(error),
            _ => None,
        };
        Self::new(exit, error).with_hint(hint.as_deref())
    }
}

impl From<ParkError> for Failure {
    fn from(error: ParkError) -> Self {
        let exit = match &error {
            ParkError::TargetExited(_) => Exit::TargetGone,
            _ => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

/// Of a pipeline that failed before the target was touched.
fn not_ready(error: &PipelineError) -> Exit {
    match error {
        PipelineError::Leftover { failure, .. } => not_ready(failure),
        PipelineError::Plugin { .. }
        | PipelineError::Sink { .. }
        | PipelineError::WrongKey { .. } => Exit::Plugin,
        error => match undone(error) {
            Exit::Undone => Exit::Internal,
            exit => exit,
        },
    }
}

/// Of a pipeline that failed while the target could still be let go as it was.
fn undone(error: &PipelineError) -> Exit {
    match error {
        PipelineError::Load(_) | PipelineError::Param { .. } | PipelineError::Config { .. } => {
            Exit::Plugin
        }
        PipelineError::Cancelled(CancelReason::TargetGone) => Exit::TargetGone,
        PipelineError::Cancelled(_) => Exit::Aborted,
        _ => Exit::Undone,
    }
}

fn barred(barred: &Barred) -> Exit {
    match barred {
        Barred::Cancelled(_) => Exit::Aborted,
        Barred::Ended => Exit::NoProcess,
        Barred::Denied(_) => Exit::Permission,
    }
}

fn not_restored(error: &RestoreError) -> Exit {
    match error {
        RestoreError::Lost { .. } => Exit::ImageCorrupt,
        RestoreError::TargetExited { .. } => Exit::TargetGone,
        _ => Exit::RestoreFailed,
    }
}

#[cfg(test)]
mod tests;
