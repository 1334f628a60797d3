//! How it went: a line on stdout that scripts know, the reason on stderr, the exit code.

use std::error::Error;
use std::io;

use memcr_client::{Answer, Ask, ClientError, Code, Command, Subject};
use memcr_text::usage::{Misuse, in_name_of};
use memcr_text::{Out, diagnose, harmless};
use memcr_wire::answer;
use memcr_wire::legacy::Version;
use serde_json::{Map, Value};

use super::complain;
use super::exit::Exit;
use super::order::Order;
use super::show;
use super::talk::{Said, Silence};

/// Of a checkpoint or a restore.
pub(super) fn procedure(
    order: &Order,
    command: Command,
    result: Result<Said, Silence>,
    out: &mut Out,
) -> Exit {
    let what = doing(command, order.subject.as_ref());
    let (exit, object) = match result {
        Ok(Said::Answer(answer)) => (Exit::from(&*answer), without_id(*answer)),
        Ok(Said::Code(version, code)) => of_code(version, code, command, what),
        Err(silence) => {
            tell_silence(&what, &silence);
            (Exit::from(&silence.error), as_object(silence))
        }
    };
    if order.json {
        out.json(&object);
    } else {
        let word = if exit == Exit::Done { "OK" } else { "ERROR" };
        out.line(format_args!("Procedure finished with {word} status."));
    }
    exit
}

/// Of everything else.
pub(super) fn answer(
    order: &Order,
    ask: &Ask,
    result: Result<Answer, Silence>,
    out: &mut Out,
) -> Exit {
    match result {
        Ok(answer) => {
            let exit = Exit::from(&answer);
            if order.json {
                out.json(&without_id(answer));
            } else {
                show::answer(ask, order.subject.as_ref(), &answer.object, out);
            }
            exit
        }
        Err(silence) => {
            tell_silence(&unanswered(ask), &silence);
            let exit = Exit::from(&silence.error);
            if order.json {
                out.json(&as_object(silence));
            }
            exit
        }
    }
}

/// Of a command line that is wrong.
pub(super) fn misuse(error: &clap::Error, as_json: bool) -> Exit {
    let (text, exit) = (error.to_string(), Exit::Usage);
    if as_json {
        let Misuse { what, tip } = Misuse::of(&text);
        let object = answer::failed(None, exit.code(), exit.meaning(), &[what], tip.as_deref());
        let mut out = Out::default();
        out.json(&object);
        // The code tells of the command line, as it does without --json.
        let _ = out.finish();
    }
    diagnose(in_name_of("memcr-client", &text));
    exit
}

/// That the results did not arrive.
pub(super) fn unwritten(error: &io::Error) -> Exit {
    complain(format_args!("cannot write to stdout: {error}"));
    Exit::Other
}

fn unanswered(ask: &Ask) -> String {
    match ask {
        Ask::Status { .. } | Ask::List | Ask::Stages => "the daemon does not tell".into(),
        ask => format!("cannot {}", ask.verb()),
    }
}

fn doing(command: Command, subject: Option<&Subject>) -> String {
    let verb = match command {
        Command::Checkpoint => "checkpoint",
        Command::Restore => "restore",
    };
    let subject = subject.map(Subject::to_string);
    format!("cannot {verb} {}", subject.unwrap_or_default())
}

/// The old protocol gives no reason; what the number may mean is all there is to say.
fn of_code(version: Version, code: Code, command: Command, what: String) -> (Exit, Value) {
    let (exit, mut object) = match told_by(code, command) {
        None => (Exit::Done, answer::done(None, Map::new())),
        Some(why) => {
            complain(format_args!("{what}: {why}"));
            let causes = [what, why.to_owned()];
            let exit = Exit::Other;
            let object = answer::failed(None, exit.code(), exit.meaning(), &causes, None);
            (exit, object)
        }
    };
    let protocol = match version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    object["protocol"] = protocol.into();
    object["code"] = (code as i32).into();
    (exit, object)
}

fn told_by(code: Code, command: Command) -> Option<&'static str> {
    match (code, command) {
        (Code::Ok, _) => None,
        (Code::General, _) => {
            Some("the daemon answered -1, a failure; the old protocol gives no reason")
        }
        (Code::InvalidPid, Command::Checkpoint) => {
            Some("the daemon answered -2: there is no such process, or it is checkpointed already")
        }
        (Code::InvalidPid, Command::Restore) => {
            Some("the daemon answered -2: the process is not checkpointed")
        }
    }
}

fn tell_silence(what: &str, silence: &Silence) {
    let said = |error| harmless(&causes(error).join(": "));
    match &silence.before {
        None => {
            // What the daemon says may begin with the same words.
            let said = said(&silence.error);
            let rest = said
                .strip_prefix(what)
                .map(|rest| rest.trim_start_matches(": "));
            complain(format_args!("{what}: {}", rest.unwrap_or(&said)));
        }
        Some(before) => complain(format_args!(
            "{what}: {}, and in the old protocol: {}",
            said(before),
            said(&silence.error)
        )),
    }
    if let ClientError::NotDone(answer) = &silence.error {
        show::failed_members(answer);
    }
    if let Some(hint) = hint(&silence.error) {
        diagnose(format_args!("hint: {}", harmless(&hint)));
    }
}

/// The object that `--json` prints: the daemon's, or one of its shape.
fn as_object(silence: Silence) -> Value {
    let exit = Exit::from(&silence.error);
    match silence.error {
        ClientError::NotDone(answer) => without_id(*answer),
        error => answer::failed(
            None,
            exit.code(),
            exit.meaning(),
            &causes(&error),
            hint(&error).as_deref(),
        ),
    }
}

/// The id is a matter between this program and the daemon.
fn without_id(mut answer: Answer) -> Value {
    answer.object.remove("id");
    Value::Object(answer.object)
}

fn hint(error: &ClientError) -> Option<String> {
    let (location, source) = match error {
        ClientError::Connect { location, source } => (location, source),
        ClientError::Closed => {
            return Some("the daemon's log says why; it may not serve this user".into());
        }
        error => return error.hint().map(str::to_owned),
    };
    match source.kind() {
        io::ErrorKind::PermissionDenied => Some(format!(
            "root and the group of the socket may connect: see `ls -l {location}`"
        )),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Some("no daemon listens there; `memcr -l PORT|PATH` starts one".into())
        }
        _ => None,
    }
}

fn causes(error: &ClientError) -> Vec<String> {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes
}
