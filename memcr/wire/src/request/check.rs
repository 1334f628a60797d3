//! How keys and values go together: from the parts of a line to what is asked.

use std::path::PathBuf;
use std::time::Duration;

use super::{Ask, Choice, RequestError, Subject};
use crate::compress::Compress;
use crate::limit::{MAX_NAME_LEN, MAX_PATH_LEN, MAX_TIMEOUT};
use crate::line::{Line, Scalar};

type Checked<T> = Result<T, RequestError>;

/// What the line asks for.
pub(super) fn ask(line: Line) -> Checked<Ask> {
    let verb = match &line.verb {
        None => return Err(RequestError::NoVerb),
        Some(Scalar::Text(verb)) => verb.as_str(),
        Some(other) => return Err(RequestError::Verb(other.to_string())),
    };
    match verb {
        "checkpoint" => Ok(Ask::Checkpoint {
            subject: subject("checkpoint", &line)?,
            choice: choice(&line)?,
            timeout: timeout(&line)?,
        }),
        "restore" => {
            refuse_strays("restore", &line, &["pid", "tree", "cgroup", "timeout"])?;
            Ok(Ask::Restore {
                subject: subject("restore", &line)?,
                timeout: timeout(&line)?,
            })
        }
        "abort" => {
            refuse_strays("abort", &line, &["pid", "tree", "cgroup"])?;
            Ok(Ask::Abort {
                subject: subject("abort", &line)?,
            })
        }
        "status" => {
            refuse_strays("status", &line, &["pid"])?;
            let pid = line.pid.as_ref().map(|pid| self::pid("pid", pid));
            Ok(Ask::Status {
                pid: pid.transpose()?,
            })
        }
        "list" => refuse_strays("list", &line, &[]).map(|()| Ask::List),
        "stages" => refuse_strays("stages", &line, &[]).map(|()| Ask::Stages),
        _ => {
            let verb = line.verb.as_ref().map(Scalar::to_string);
            Err(RequestError::Verb(verb.unwrap_or_default()))
        }
    }
}

/// A key that means nothing to the verb is a mistake, and may be a grave one.
fn refuse_strays(verb: &'static str, line: &Line, known: &[&str]) -> Checked<()> {
    let given = [
        ("pid", line.pid.is_some()),
        ("tree", line.tree.is_some()),
        ("cgroup", line.cgroup.is_some()),
        ("pipeline", line.pipeline.is_some()),
        ("dir", line.dir.is_some()),
        ("compress", line.compress.is_some()),
        ("idle", line.idle.is_some()),
        ("timeout", line.timeout.is_some()),
    ];
    let stray = given
        .into_iter()
        .find(|(key, is_given)| *is_given && !known.contains(key));
    match stray {
        Some((key, _)) => Err(RequestError::Stray { verb, key }),
        None => Ok(()),
    }
}

fn subject(verb: &'static str, line: &Line) -> Checked<Subject> {
    match (&line.pid, &line.tree, &line.cgroup) {
        (Some(value), None, None) => pid("pid", value).map(Subject::Pid),
        (None, Some(value), None) => pid("tree", value).map(Subject::Tree),
        (None, None, Some(value)) => path("cgroup", value).map(Subject::Cgroup),
        (pid, tree, cgroup) => {
            let given = [pid, tree, cgroup];
            let given = given.into_iter().flatten().count();
            Err(RequestError::Subject { verb, given })
        }
    }
}

fn choice(line: &Line) -> Checked<Choice> {
    if line.pipeline.is_some() && line.compress.is_some() {
        return Err(RequestError::Both);
    }
    let dir = line.dir.as_ref().map(|value| path("dir", value));
    Ok(Choice {
        pipeline: line.pipeline.as_ref().map(pipeline).transpose()?,
        dir: dir.transpose()?.map(PathBuf::from),
        compress: line.compress.as_ref().map(compress).transpose()?,
        idle: idle(line)?,
    })
}

fn pid(key: &'static str, value: &Scalar) -> Checked<i32> {
    let number = match value {
        Scalar::Number(number) => number.as_i64(),
        _ => None,
    };
    number
        .and_then(|number| i32::try_from(number).ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| RequestError::Pid {
            key,
            value: value.to_string(),
        })
}

/// Without `..`, so that what a path begins with is where it leads, links aside.
fn path(key: &'static str, value: &Scalar) -> Checked<String> {
    match value {
        Scalar::Text(text)
            if text.starts_with('/')
                && text.len() <= MAX_PATH_LEN
                && !text.contains('\0')
                && text.split('/').all(|part| part != "..") =>
        {
            Ok(text.clone())
        }
        _ => Err(RequestError::Path {
            key,
            value: value.to_string(),
        }),
    }
}

fn pipeline(value: &Scalar) -> Checked<String> {
    match value {
        Scalar::Text(name)
            if !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.contains([',', '/']) =>
        {
            Ok(name.clone())
        }
        _ => Err(RequestError::Pipeline(value.to_string())),
    }
}

fn compress(value: &Scalar) -> Checked<Compress> {
    let word = match value {
        Scalar::Text(word) => word.parse().ok(),
        _ => None,
    };
    word.ok_or_else(|| RequestError::Compress(value.to_string()))
}

fn idle(line: &Line) -> Checked<bool> {
    match &line.idle {
        None => Ok(false),
        Some(Scalar::Truth(truth)) => Ok(*truth),
        Some(other) => Err(RequestError::Idle(other.to_string())),
    }
}

fn timeout(line: &Line) -> Checked<Option<Duration>> {
    let Some(value) = &line.timeout else {
        return Ok(None);
    };
    let seconds = match value {
        Scalar::Number(number) => number.as_f64(),
        _ => None,
    };
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match time {
        // What rounds down to no time at all is no time.
        Some(time) if !time.is_zero() && time <= MAX_TIMEOUT => Ok(Some(time)),
        _ => Err(RequestError::Timeout(value.to_string())),
    }
}
