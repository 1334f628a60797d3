//! `[daemon]`: where the daemon listens, whom it serves, and how much at once.
//!
//! ```text
//! [daemon] of the file ──parse──▶ DaemonFile ─┐
//! that of the built-in ──parse──▶ DaemonFile ─┴─over──▶ check ──settled──▶ Daemon
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Group;
use serde::Deserialize;
use toml::{Spanned, Value};

use super::error::ConfigError;
use super::file::{Given, absolute, entry, number, scalar};
use super::origin::{Origin, Text};

/// Whom the daemon takes a TCP peer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpTrust {
    /// The user whose socket it is, as the kernel tells for connections within this
    /// machine; nobody else is served.
    Uid,
    /// Everybody who reaches the port may do what root may.
    All,
}

/// What becomes of held targets when the daemon is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// They stay held, for the next daemon or `memcr restore`.
    Hold,
    /// They are restored.
    Restore,
    /// They are killed.
    Kill,
}

/// The section as one file has it. What it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonFile {
    /// Ports, and absolute paths of UNIX sockets.
    pub listen: Option<Vec<Given<String>>>,
    /// Name or number of the group that owns the UNIX sockets.
    pub group: Option<Given<String>>,
    /// Whether every user may connect to the UNIX sockets.
    pub others: Option<bool>,
    /// Address at which ports are bound.
    pub tcp_address: Option<IpAddr>,
    /// Who a TCP peer is.
    pub tcp_trust: Option<TcpTrust>,
    /// Pipelines that clients may name; `None`: every name of `[pipelines]`.
    pub pipelines: Option<Vec<Given<String>>>,
    /// Directories that clients may name, with what is below; `None`: root and the group
    /// any, others none.
    pub dirs: Option<Vec<Given<PathBuf>>>,
    /// Whether clients may choose the compression.
    pub compress: Option<bool>,
    /// Checkpoints that move bytes at once; 0: one per CPU.
    pub max_checkpoints: Option<u16>,
    /// Sessions at once.
    pub max_sessions: Option<u32>,
    /// Limit of one checkpoint or restore; zero: none.
    pub timeout: Option<Duration>,
    /// What becomes of held targets when the daemon is told to end.
    pub on_stop: Option<OnStop>,
    /// The file that the counters are written to.
    pub metrics: Option<Given<PathBuf>>,
}

/// The section as it is in force, before flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Ports, and absolute paths of UNIX sockets; `-l` replaces them all.
    pub listen: Vec<Given<String>>,
    /// Name or number of the group that owns the UNIX sockets and may act on every
    /// target, see [`gid`]; `-g` replaces it.
    pub group: Option<Given<String>>,
    /// Whether every user may connect to the UNIX sockets.
    pub others: bool,
    /// Address at which ports are bound.
    pub tcp_address: IpAddr,
    /// Who a TCP peer is.
    pub tcp_trust: TcpTrust,
    /// Pipelines that clients may name.
    pub pipelines: Vec<String>,
    /// Directories that clients may name, with what is below; `None`: root and the group
    /// any, others none.
    pub dirs: Option<Vec<PathBuf>>,
    /// Whether clients may choose the compression.
    pub compress: bool,
    /// Checkpoints that move bytes at once; 0: one per CPU.
    pub max_checkpoints: u16,
    /// Sessions at once.
    pub max_sessions: u32,
    /// Limit of one checkpoint or restore; `-t` replaces it.
    pub timeout: Option<Duration>,
    /// What becomes of held targets when the daemon is told to end.
    pub on_stop: OnStop,
    /// The file that the counters are written to.
    pub metrics: Option<PathBuf>,
}

/// As many as one machine has CPUs to move bytes with, and a good deal more.
const MAX_CHECKPOINTS: u16 = 1024;

/// Each session is a process: more than this is more than a pid space can have.
const MAX_SESSIONS: u32 = 100_000;

/// A day, seconds: who wants to wait longer wants to wait for ever.
const MAX_TIMEOUT: f64 = 24.0 * 60.0 * 60.0;

/// Longest path of a UNIX socket, bytes: `sun_path` of unix(7) without its NUL.
const MAX_SOCKET_PATH_LEN: usize = 107;

impl DaemonFile {
    /// These settings, and where they are silent those of `base`.
    #[must_use]
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            listen: self.listen.or(base.listen),
            group: self.group.or(base.group),
            others: self.others.or(base.others),
            tcp_address: self.tcp_address.or(base.tcp_address),
            tcp_trust: self.tcp_trust.or(base.tcp_trust),
            pipelines: self.pipelines.or(base.pipelines),
            dirs: self.dirs.or(base.dirs),
            compress: self.compress.or(base.compress),
            max_checkpoints: self.max_checkpoints.or(base.max_checkpoints),
            max_sessions: self.max_sessions.or(base.max_sessions),
            timeout: self.timeout.or(base.timeout),
            on_stop: self.on_stop.or(base.on_stop),
            metrics: self.metrics.or(base.metrics),
        }
    }

    /// Whether every pipeline that clients may name is one of `named`, those of the
    /// merged files: a name may be given in one and mean something in the other.
    pub(super) fn check<T>(&self, named: &BTreeMap<String, T>) -> Result<(), ConfigError> {
        let unknown = |given: &&Given<String>| !named.contains_key(&given.value);
        match self.pipelines.iter().flatten().find(unknown) {
            None => Ok(()),
            Some(given) => {
                let known: Vec<_> = named.keys().map(String::as_str).collect();
                let known = match known.as_slice() {
                    [] => "[pipelines] has none".to_owned(),
                    known => format!("[pipelines] has {}", known.join(", ")),
                };
                let message = format!(
                    "pipelines: no pipeline has the name `{}`; {known}",
                    given.value
                );
                Err(entry(given.origin.clone(), message))
            }
        }
    }

    /// Whether it names anything that a machine may not have.
    #[must_use]
    pub fn names_something(&self) -> bool {
        let listens = self.listen.iter().flatten().next().is_some();
        listens || self.group.is_some() || self.dirs.is_some() || self.metrics.is_some()
    }

    /// Whether this machine has what is named: directories may come later and groups too, so
    /// that only who asks is told.
    ///
    /// # Errors
    /// The first that is not there.
    pub fn look(&self) -> Result<(), ConfigError> {
        self.group.as_ref().map(gid).transpose()?;
        for dir in self.dirs.iter().flatten() {
            expect_dir("dirs", &dir.origin, Some(&dir.value))?;
        }
        for given in self.listen.iter().flatten() {
            let path = Path::new(&given.value);
            if path.is_absolute() {
                expect_dir("listen", &given.origin, path.parent())?;
            }
        }
        match &self.metrics {
            Some(file) => expect_dir("metrics", &file.origin, file.value.parent()),
            None => Ok(()),
        }
    }

    /// Every setting with its value, be it the default one; `named` are the `[pipelines]`.
    #[must_use]
    pub fn settled<T>(&self, named: &BTreeMap<String, T>) -> Daemon {
        let chosen = self.pipelines.as_ref();
        let chosen = chosen.map(|list| list.iter().map(|given| given.value.clone()).collect());
        let dirs = self.dirs.as_ref();
        Daemon {
            listen: self.listen.clone().unwrap_or_default(),
            group: self.group.clone(),
            others: self.others.unwrap_or(false),
            tcp_address: self.tcp_address.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            tcp_trust: self.tcp_trust.unwrap_or(TcpTrust::Uid),
            pipelines: chosen.unwrap_or_else(|| named.keys().cloned().collect()),
            dirs: dirs.map(|list| list.iter().map(|given| given.value.clone()).collect()),
            compress: self.compress.unwrap_or(true),
            max_checkpoints: self.max_checkpoints.unwrap_or(0),
            max_sessions: self.max_sessions.unwrap_or(1000),
            timeout: self.timeout.filter(|limit| !limit.is_zero()),
            on_stop: self.on_stop.unwrap_or(OnStop::Hold),
            metrics: self.metrics.as_ref().map(|given| given.value.clone()),
        }
    }
}

/// `dir`: `None` of the root, which is always there.
fn expect_dir(key: &str, origin: &Origin, dir: Option<&Path>) -> Result<(), ConfigError> {
    match dir.filter(|dir| !dir.is_dir()) {
        None => Ok(()),
        Some(dir) => {
            let message = format!("{key}: there is no directory {}", dir.display());
            Err(entry(origin.clone(), message))
        }
    }
}

/// The number of a group that is given by name or number.
///
/// # Errors
/// When there is no such group, or the user database cannot be asked.
pub fn gid(group: &Given<String>) -> Result<u32, ConfigError> {
    let name = group.value.trim();
    let complain = |message| Err(entry(group.origin.clone(), message));
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number stands for "no group" in chown(2).
        return match name.parse() {
            Ok(gid) if gid != u32::MAX => Ok(gid),
            _ => complain(format!(
                "group: `{name}` is no number of a group, 0 to 4294967294"
            )),
        };
    }
    match Group::from_name(name) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) => complain(format!("group: there is no group `{name}`")),
        Err(error) => complain(format!("group: cannot look up `{name}`: {}", error.desc())),
    }
}

/// The section as it is written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    listen: Option<Vec<Spanned<Value>>>,
    group: Option<Spanned<Value>>,
    others: Option<bool>,
    tcp_address: Option<Spanned<String>>,
    tcp_trust: Option<Spanned<String>>,
    pipelines: Option<Vec<Spanned<String>>>,
    dirs: Option<Vec<Spanned<PathBuf>>>,
    compress: Option<bool>,
    max_checkpoints: Option<Spanned<Value>>,
    max_sessions: Option<Spanned<Value>>,
    timeout: Option<Spanned<Value>>,
    on_stop: Option<Spanned<String>>,
    metrics: Option<Spanned<PathBuf>>,
}

impl Raw {
    /// The settings, with the places of the text they came from.
    pub(super) fn parse(self, places: &Text<'_>) -> Result<DaemonFile, ConfigError> {
        let given = |value: Spanned<String>| Given {
            origin: places.place(value.span()),
            value: value.into_inner(),
        };
        Ok(DaemonFile {
            listen: each(self.listen, |value| listen(places, value))?,
            group: one(self.group, |value| scalar(places, "group", value))?,
            others: self.others,
            tcp_address: one(self.tcp_address, |value| tcp_address(places, value))?,
            tcp_trust: one(self.tcp_trust, |value| {
                let names = [("uid", TcpTrust::Uid), ("all", TcpTrust::All)];
                word(places, "tcp_trust", value, &names)
            })?,
            pipelines: each(self.pipelines, |value| Ok(given(value)))?,
            dirs: each(self.dirs, |dir| {
                let origin = places.place(dir.span());
                let value = absolute(places, "dirs", dir)?;
                Ok(Given { value, origin })
            })?,
            compress: self.compress,
            max_checkpoints: one(self.max_checkpoints, |value| {
                number(places, "max_checkpoints", value, 0..=MAX_CHECKPOINTS)
            })?
            .map(|given| given.value),
            max_sessions: one(self.max_sessions, |value| {
                number(places, "max_sessions", value, 1..=MAX_SESSIONS)
            })?
            .map(|given| given.value),
            timeout: one(self.timeout, |value| timeout(places, value))?,
            on_stop: one(self.on_stop, |value| {
                let names = [
                    ("hold", OnStop::Hold),
                    ("restore", OnStop::Restore),
                    ("kill", OnStop::Kill),
                ];
                word(places, "on_stop", value, &names)
            })?,
            metrics: one(self.metrics, |path| {
                let origin = places.place(path.span());
                let value = absolute(places, "metrics", path)?;
                Ok(Given { value, origin })
            })?,
        })
    }
}

fn one<T, U>(
    value: Option<T>,
    parse: impl FnOnce(T) -> Result<U, ConfigError>,
) -> Result<Option<U>, ConfigError> {
    value.map(parse).transpose()
}

fn each<T, U>(
    list: Option<Vec<T>>,
    parse: impl FnMut(T) -> Result<U, ConfigError>,
) -> Result<Option<Vec<U>>, ConfigError> {
    one(list, |list| list.into_iter().map(parse).collect())
}

/// `-l` takes everything that begins with a number for a port, as the C memcr did; here,
/// where nobody depends on it, `9000x` is a mistake.
fn listen(places: &Text<'_>, value: Spanned<Value>) -> Result<Given<String>, ConfigError> {
    let given = scalar(places, "listen", value)?;
    let text = given.value.as_str();
    let is_port = text.parse::<u16>().is_ok_and(|port| port > 0);
    let message = if is_port || (Path::new(text).is_absolute() && text.len() <= MAX_SOCKET_PATH_LEN)
    {
        return Ok(given);
    } else if Path::new(text).is_absolute() {
        format!(
            "listen: `{text}` has {} bytes, the path of a socket at most {MAX_SOCKET_PATH_LEN}",
            text.len()
        )
    } else {
        format!("listen: `{text}` is neither a port, 1 to 65535, nor an absolute path")
    };
    Err(entry(given.origin, message))
}

fn tcp_address(places: &Text<'_>, value: Spanned<String>) -> Result<IpAddr, ConfigError> {
    value.get_ref().parse().map_err(|_| {
        let message = format!(
            "tcp_address: `{}` is no address, such as 127.0.0.1 or ::1",
            value.get_ref()
        );
        entry(places.place(value.span()), message)
    })
}

/// One of a few words.
fn word<T: Copy>(
    places: &Text<'_>,
    key: impl Display,
    value: Spanned<String>,
    names: &[(&str, T)],
) -> Result<T, ConfigError> {
    match names.iter().find(|(name, _)| name == value.get_ref()) {
        Some((_, meant)) => Ok(*meant),
        None => {
            let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "{key}: `{}` is none of {}",
                value.get_ref(),
                names.join(", ")
            );
            Err(entry(places.place(value.span()), message))
        }
    }
}

fn timeout(places: &Text<'_>, value: Spanned<Value>) -> Result<Duration, ConfigError> {
    let seconds = match value.get_ref() {
        // No precision is lost below MAX_TIMEOUT, and nothing above it is taken.
        Value::Integer(whole) => Some(*whole as f64),
        Value::Float(seconds) => Some(*seconds),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| (0.0..=MAX_TIMEOUT).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        let message = format!(
            "timeout: `{}` is no number of seconds from 0 to {MAX_TIMEOUT}",
            value.get_ref()
        );
        entry(places.place(value.span()), message)
    })
}

#[cfg(test)]
mod tests;
