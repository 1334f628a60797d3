//! A request of our own protocol: what may be asked, and how a line says it.
//!
//! ```text
//!   {"memcr":1,"id":7,"do":"checkpoint","pid":4711,"dir":"/var/tmp","compress":"lz4","timeout":20.5}
//!   {"memcr":1,"do":"checkpoint","tree":4711,"pipeline":"small"}
//!   {"memcr":1,"do":"restore","cgroup":"/app.slice/x"}
//!   {"memcr":1,"do":"abort","pid":4711}
//!   {"memcr":1,"do":"status"}   {"memcr":1,"do":"status","pid":4711}
//!   {"memcr":1,"do":"list"}     {"memcr":1,"do":"stages"}
//! ```
//!
//! The same checks stand at both ends: a client learns of a mistake before it connects.

mod check;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::VERSION;
use crate::compress::Compress;
use crate::key::Id;
use crate::limit::{MAX_ID_LEN, MAX_LINE_LEN, MAX_NAME_LEN, MAX_PATH_LEN, MAX_TIMEOUT};
use crate::line::{Head, Line, Scalar};

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What its answer is to be known by.
    pub id: Option<Id>,
    /// What is wanted.
    pub ask: Ask,
}

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Take the memory of the subject away and hold it.
    Checkpoint {
        /// Whose memory.
        subject: Subject,
        /// How, as far as the client has a say.
        choice: Choice,
        /// Undo it if it is not complete by then; never zero.
        timeout: Option<Duration>,
    },
    /// Give the subject its memory back; during a checkpoint: abort that.
    Restore {
        /// Whose memory.
        subject: Subject,
        /// Say so if it is not complete by then, and go on; never zero.
        timeout: Option<Duration>,
    },
    /// Stop a checkpoint that is not complete.
    Abort {
        /// Of whom.
        subject: Subject,
    },
    /// Tell how the daemon is, or one process.
    Status {
        /// This process, not the daemon.
        pid: Option<i32>,
    },
    /// Tell which sessions there are.
    List,
    /// Tell which stages there are.
    Stages,
}

/// One process, or several as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A process.
    Pid(i32),
    /// A process and all its descendants.
    Tree(i32),
    /// All processes of a cgroup and of those below it: its path from the root of the
    /// hierarchy, which begins with `/`.
    Cgroup(String),
}

/// How to checkpoint, as far as the client has a say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Name of a pipeline of the daemon's configuration; excludes `compress`.
    pub pipeline: Option<String>,
    /// Where the image is to be: absolute, without `..`.
    pub dir: Option<PathBuf>,
    /// How the image is compressed.
    pub compress: Option<Compress>,
    /// Everybody else on the machine goes first, so that the process stands still the longer.
    /// `false`: as the daemon's configuration says.
    pub idle: bool,
}

/// Why a line is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More bytes than a line may have. The rest of the connection is not read.
    #[error("a request has at most {MAX_LINE_LEN} bytes")]
    TooLong,
    /// The connection ended before the line did.
    #[error("the connection ended within a request, which ends with a line feed")]
    Unfinished,
    /// No JSON, or a key twice.
    #[error("the request is not one JSON object in one line")]
    Json(#[source] Misread),
    /// JSON, but no object.
    #[error("the request is not a JSON object")]
    NotAnObject,
    /// A version that we do not speak.
    #[error("the request is in version {0} of the protocol; version {VERSION} is spoken here")]
    Version(String),
    /// No version.
    #[error("the request does not say its version: \"memcr\":{VERSION}")]
    NoVersion,
    /// A key that no request has, or a key twice.
    #[error("the request is not understood")]
    Key(#[source] Misread),
    /// Neither a number nor a short text.
    #[error("`id` is a number or a text of at most {MAX_ID_LEN} bytes, not {0}")]
    Id(String),
    /// A verb that there is not.
    #[error("`do` is one of checkpoint, restore, abort, status, list and stages, not {0}")]
    Verb(String),
    /// No verb.
    #[error("the request does not say what to `do`")]
    NoVerb,
    /// A key that goes with another verb.
    #[error("`{verb}` takes no `{key}`")]
    Stray {
        /// What is to be done.
        verb: &'static str,
        /// What does not go with it.
        key: &'static str,
    },
    /// None or several of pid, tree and cgroup.
    #[error("`{verb}` needs one of `pid`, `tree` and `cgroup`, and has {given}")]
    Subject {
        /// What is to be done.
        verb: &'static str,
        /// How many there are.
        given: usize,
    },
    /// No process has this number.
    #[error("`{key}` is a whole number in 1..={}, not {value}", i32::MAX)]
    Pid {
        /// `pid` or `tree`.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// A path that cannot be meant.
    #[error(
        "`{key}` is an absolute path of at most {MAX_PATH_LEN} bytes without `..`, not {value}"
    )]
    Path {
        /// `dir` or `cgroup`.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// No name.
    #[error(
        "`pipeline` is the name of a pipeline in the daemon's configuration, of at most {MAX_NAME_LEN} \
         bytes; stages cannot be listed here: not {0}"
    )]
    Pipeline(String),
    /// No compression.
    #[error("`compress` is one of none, lz4 and zstd, not {0}")]
    Compress(String),
    /// Neither true nor false.
    #[error("`idle` is true or false, not {0}")]
    Idle(String),
    /// A pipeline says already how it compresses.
    #[error("`pipeline` and `compress` exclude each other: a pipeline says how it compresses")]
    Both,
    /// No length of time.
    #[error("`timeout` is a number of seconds above 0 and at most {max}, not {0}", max = MAX_TIMEOUT.as_secs())]
    Timeout(String),
}

/// What a parser has to say of a line, with the place. It may quote the line, so it is cut
/// short and has nothing in it that a terminal obeys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misread(String);

/// A line that is no request, and whose answer says so.
#[derive(Debug)]
pub struct BadRequest {
    /// The `id`, if it could be read.
    pub id: Option<Id>,
    /// What is wrong.
    pub error: RequestError,
}

impl Request {
    /// A request whose answer needs no `id` to be known.
    #[must_use]
    pub fn new(ask: Ask) -> Self {
        Self { id: None, ask }
    }

    /// The line for it, with the `\n` at its end.
    ///
    /// # Errors
    /// When no daemon would take it.
    pub fn to_line(&self) -> Result<Vec<u8>, RequestError> {
        let mut line = serde_json::to_vec(&self.to_keys()?)
            .map_err(|error| RequestError::Json(error.into()))?;
        line.push(b'\n');
        match Self::parse(&line) {
            Ok(_) => Ok(line),
            Err(bad) => Err(bad.error),
        }
    }

    /// The request in one line, with or without the `\n` at its end.
    ///
    /// # Errors
    /// What is wrong with it, and the `id` to answer to.
    pub fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let head = match Head::parse(line) {
            Ok(head) => head,
            Err(error) => return Err(BadRequest { id: None, error }),
        };
        let id = match head.id.map(|id| Id::from_scalar(id.clone()).ok_or(id)) {
            Some(Err(id)) => {
                let error = RequestError::Id(id.to_string());
                return Err(BadRequest { id: None, error });
            }
            Some(Ok(id)) => Some(id),
            None => None,
        };
        match parse_ask(line, head.memcr.as_ref()) {
            Ok(ask) => Ok(Self { id, ask }),
            Err(error) => Err(BadRequest { id, error }),
        }
    }

    fn to_keys(&self) -> Result<Line, RequestError> {
        let mut line = self.ask.to_keys()?;
        line.memcr = Some(Scalar::Number(VERSION.into()));
        line.id = self.id.as_ref().map(Id::to_scalar);
        Ok(line)
    }
}

impl Head {
    fn parse(line: &[u8]) -> Result<Self, RequestError> {
        let begin = line.trim_ascii_start().first();
        if line.len() > MAX_LINE_LEN {
            return Err(RequestError::TooLong);
        }
        let head = serde_json::from_slice(line);
        // serde would take a list for an object whose keys are left out.
        if begin != Some(&b'{') {
            return Err(match serde_json::from_slice::<Scalar>(line) {
                Ok(_) => RequestError::NotAnObject,
                Err(error) => RequestError::Json(error.into()),
            });
        }
        head.map_err(|error| RequestError::Json(error.into()))
    }
}

fn parse_ask(line: &[u8], version: Option<&Scalar>) -> Result<Ask, RequestError> {
    match version {
        None => return Err(RequestError::NoVersion),
        Some(Scalar::Number(version)) if version.as_u64() == Some(VERSION) => {}
        Some(other) => return Err(RequestError::Version(other.to_string())),
    }
    let line: Line =
        serde_json::from_slice(line).map_err(|error| RequestError::Key(error.into()))?;
    check::ask(line)
}

impl Ask {
    /// The word for it: the value of `do`.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Checkpoint { .. } => "checkpoint",
            Self::Restore { .. } => "restore",
            Self::Abort { .. } => "abort",
            Self::Status { .. } => "status",
            Self::List => "list",
            Self::Stages => "stages",
        }
    }

    fn to_keys(&self) -> Result<Line, RequestError> {
        let mut line = Line {
            verb: Some(Scalar::Text(self.verb().into())),
            ..Line::default()
        };
        match self {
            Self::Checkpoint {
                subject,
                choice,
                timeout,
            } => {
                subject.put(&mut line);
                choice.put(&mut line)?;
                line.timeout = timeout.map(seconds).transpose()?;
            }
            Self::Restore { subject, timeout } => {
                subject.put(&mut line);
                line.timeout = timeout.map(seconds).transpose()?;
            }
            Self::Abort { subject } => subject.put(&mut line),
            Self::Status { pid } => line.pid = pid.map(|pid| Scalar::Number(pid.into())),
            Self::List | Self::Stages => {}
        }
        Ok(line)
    }
}

impl Subject {
    /// `tree:4711`, `cgroup:/x`: the value of `group` in answers; none for one process. A
    /// cgroup has one, however many `/` its path was given with.
    #[must_use]
    pub fn group(&self) -> Option<String> {
        match self {
            Self::Pid(_) => None,
            Self::Tree(pid) => Some(format!("tree:{pid}")),
            Self::Cgroup(path) => {
                let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
                Some(format!("cgroup:/{}", parts.join("/")))
            }
        }
    }

    fn put(&self, line: &mut Line) {
        match self {
            Self::Pid(pid) => line.pid = Some(Scalar::Number((*pid).into())),
            Self::Tree(pid) => line.tree = Some(Scalar::Number((*pid).into())),
            Self::Cgroup(path) => line.cgroup = Some(Scalar::Text(path.clone())),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "process {pid}"),
            Self::Tree(pid) => write!(f, "process {pid} and its descendants"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.escape_debug()),
        }
    }
}

impl Choice {
    fn put(&self, line: &mut Line) -> Result<(), RequestError> {
        line.pipeline = self.pipeline.clone().map(Scalar::Text);
        line.idle = self.idle.then_some(Scalar::Truth(true));
        line.compress = self.compress.map(|word| Scalar::Text(word.name().into()));
        if let Some(dir) = &self.dir {
            // JSON is text, and a path need not be.
            let text = dir.to_str().ok_or_else(|| RequestError::Path {
                key: "dir",
                value: Scalar::Text(dir.to_string_lossy().into_owned()).to_string(),
            })?;
            line.dir = Some(Scalar::Text(text.into()));
        }
        Ok(())
    }
}

impl From<serde_json::Error> for Misread {
    fn from(error: serde_json::Error) -> Self {
        const SHOWN: usize = 300;
        let harmless = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Self(
            error
                .to_string()
                .chars()
                .take(SHOWN)
                .map(harmless)
                .collect(),
        )
    }
}

fn seconds(time: Duration) -> Result<Scalar, RequestError> {
    let number = serde_json::Number::from_f64(time.as_secs_f64());
    let number = number.ok_or_else(|| RequestError::Timeout(format!("{time:?}")))?;
    Ok(Scalar::Number(number))
}

#[cfg(test)]
mod tests;
