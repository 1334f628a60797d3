//! From the text of a `pipeline.toml` to its settings.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::daemon::{self, DaemonFile};
use super::error::ConfigError;
use super::origin::{Origin, Text};

/// A value and where it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub origin: Origin,
}

/// A parameter of a stage; whether the stage has such a parameter is found out when
/// its plugin is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub key: String,
    /// Its value as text.
    pub value: String,
    /// Where it was given.
    pub origin: Origin,
}

/// A `[stage.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Where it begins; of a plugin without a table: where it was named.
    pub origin: Origin,
    /// The plugin behind it: a name, or a path with a `/`.
    pub plugin: String,
    /// Its parameters.
    pub params: Vec<Param>,
}

/// The settings of one file. What it does not say is `None` or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    /// The default pipeline: a list of stages, or a name from `pipelines`.
    pub pipeline: Option<Given<String>>,
    /// Directories in which plugins are searched first.
    pub stage_path: Option<Vec<PathBuf>>,
    /// Directory with the journals of held processes.
    pub state_dir: Option<PathBuf>,
    /// Threads that encode and decode; 0: one per CPU.
    pub workers: Option<Given<u16>>,
    /// Whether checkpoints let everybody else on the machine go first.
    pub idle: Option<bool>,
    /// Seconds after which a stage that does not come back is given up; 0: never.
    pub stall_limit: Option<Given<u64>>,
    /// Chunk length as text, a number of bytes with or without suffix.
    pub chunk: Option<Given<String>>,
    /// Pipelines with a name.
    pub pipelines: BTreeMap<String, Given<String>>,
    /// Stages with a name.
    pub stages: BTreeMap<String, Stage>,
    /// What is for the daemon alone.
    pub daemon: DaemonFile,
}

/// Reads the settings in `text`, which came from `path`.
///
/// # Errors
/// [`ConfigError::Entry`] with line and column of the first mistake.
pub fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let places = Text::new(path, text);
    let raw: Raw = toml::from_str(text).map_err(|error| syntax(&places, &error))?;
    let given = |value: Spanned<String>| Given {
        origin: places.place(value.span()),
        value: value.into_inner(),
    };
    let stages = raw
        .stage
        .into_iter()
        .map(|(name, keys)| stage(&places, name, keys));
    Ok(File {
        pipeline: raw.pipeline.map(given),
        stage_path: raw
            .stage_path
            .map(|dirs| directories(&places, "stage_path", dirs))
            .transpose()?,
        state_dir: raw
            .state_dir
            .map(|dir| absolute(&places, "state_dir", dir))
            .transpose()?,
        workers: raw
            .workers
            .map(|value| number(&places, "workers", value, 0..=MAX_WORKERS))
            .transpose()?,
        idle: raw.idle,
        stall_limit: raw
            .stall_limit
            .map(|value| number(&places, "stall_limit", value, 0..=MAX_STALL_LIMIT))
            .transpose()?,
        chunk: raw
            .chunk
            .map(|value| scalar(&places, "chunk", value))
            .transpose()?,
        pipelines: raw
            .pipelines
            .into_iter()
            .map(|(name, list)| (name, given(list)))
            .collect(),
        stages: stages.collect::<Result<_, _>>()?,
        daemon: raw.daemon.parse(&places)?,
    })
}

/// The file as it is written. serde's own complaint about an unknown key lists those
/// that are allowed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    pipeline: Option<Spanned<String>>,
    stage_path: Option<Vec<Spanned<PathBuf>>>,
    state_dir: Option<Spanned<PathBuf>>,
    workers: Option<Spanned<Value>>,
    idle: Option<bool>,
    stall_limit: Option<Spanned<Value>>,
    chunk: Option<Spanned<Value>>,
    #[serde(default)]
    pipelines: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    stage: BTreeMap<Spanned<String>, Keys>,
    #[serde(default)]
    daemon: daemon::Raw,
}

type Keys = BTreeMap<Spanned<String>, Spanned<Value>>;

fn syntax(places: &Text<'_>, error: &toml::de::Error) -> ConfigError {
    let message = error
        .message()
        .lines()
        .collect::<Vec<_>>()
        .join("; ")
        .replace("unknown field", "unknown key");
    ConfigError::Entry {
        origin: places.place(error.span().unwrap_or_default()),
        message,
    }
}

fn directories(
    places: &Text<'_>,
    key: &str,
    dirs: Vec<Spanned<PathBuf>>,
) -> Result<Vec<PathBuf>, ConfigError> {
    let check = |dir| absolute(places, key, dir);
    dirs.into_iter().map(check).collect()
}

/// A relative path would mean another directory, with other code or other sessions in
/// it, wherever memcr is started.
pub(super) fn absolute(
    places: &Text<'_>,
    key: &str,
    dir: Spanned<PathBuf>,
) -> Result<PathBuf, ConfigError> {
    let origin = places.place(dir.span());
    match dir.into_inner() {
        dir if dir.is_absolute() => Ok(dir),
        dir => Err(entry(
            origin,
            format!("{key}: `{}` is not an absolute path", dir.display()),
        )),
    }
}

/// Most workers that can be asked for; more only cost memory on any machine there is.
const MAX_WORKERS: u16 = 1024;

/// A day, seconds: who wants to wait longer wants to wait for ever.
const MAX_STALL_LIMIT: u64 = 24 * 60 * 60;

pub(super) fn number<T: TryFrom<i64> + PartialOrd + std::fmt::Display>(
    places: &Text<'_>,
    key: &str,
    value: Spanned<Value>,
    range: RangeInclusive<T>,
) -> Result<Given<T>, ConfigError> {
    let origin = places.place(value.span());
    let number = value
        .get_ref()
        .as_integer()
        .and_then(|number| T::try_from(number).ok());
    match number.filter(|number| range.contains(number)) {
        Some(value) => Ok(Given { value, origin }),
        None => {
            let (min, max) = range.into_inner();
            let message = format!(
                "{key}: `{}` is no number from {min} to {max}",
                value.get_ref()
            );
            Err(entry(origin, message))
        }
    }
}

fn stage(
    places: &Text<'_>,
    name: Spanned<String>,
    keys: Keys,
) -> Result<(String, Stage), ConfigError> {
    let origin = places.place(name.span());
    let name = name.into_inner();
    if name.is_empty()
        || name.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
    {
        let message = format!(
            "`{}` is no name for a stage: letters, digits, `_` and `-` only",
            name.escape_debug()
        );
        return Err(entry(origin, message));
    }
    let mut stage = Stage {
        origin,
        plugin: name.clone(),
        params: Vec::new(),
    };
    for (key, value) in keys {
        let given = scalar(places, key.get_ref(), value)?;
        match key.get_ref().as_str() {
            "plugin" => stage.plugin = given.value,
            _ => stage.params.push(Param {
                origin: places.place(key.span()),
                key: key.into_inner(),
                value: given.value,
            }),
        }
    }
    Ok((name, stage))
}

/// The text of a value that is one word: what plugins take.
pub(super) fn scalar(
    places: &Text<'_>,
    key: &str,
    value: Spanned<Value>,
) -> Result<Given<String>, ConfigError> {
    let origin = places.place(value.span());
    let value = match value.into_inner() {
        Value::String(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        other => {
            let message = format!(
                "`{key}` is {}; a text, a number, true or false is needed",
                kind(&other)
            );
            return Err(entry(origin, message));
        }
    };
    // Plugins take C strings, which end at the first NUL.
    if value.contains('\0') {
        return Err(entry(origin, format!("`{key}` contains a NUL character")));
    }
    Ok(Given { value, origin })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
        _ => "a date",
    }
}

pub(super) fn entry(origin: Origin, message: String) -> ConfigError {
    ConfigError::Entry { origin, message }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn complaint(text: &str) -> String {
        parse(Path::new("p.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (text, want) in [
            (
                "\npipelin = 1",
                "p.toml:2:1: unknown key `pipelin`, expected one of `pipeline`, `stage_path`, `state_dir`, `workers`",
            ),
            (
                "workers = -1",
                "p.toml:1:11: workers: `-1` is no number from 0 to 1024",
            ),
            (
                "stall_limit = 'ever'",
                "p.toml:1:15: stall_limit: `\"ever\"` is no number from 0 to 86400",
            ),
            (
                "idle = 1",
                "p.toml:1:8: invalid type: integer `1`, expected a boolean",
            ),
            (
                "idle = 'yes'",
                "p.toml:1:8: invalid type: string \"yes\", expected a boolean",
            ),
            ("pipeline = [", "p.toml:1:13: "),
            ("chunk = [1]", "p.toml:1:9: `chunk` is a list; a text"),
            (
                "stage_path = ['a']",
                "p.toml:1:15: stage_path: `a` is not an absolute path",
            ),
            (
                "state_dir = 'a'",
                "p.toml:1:13: state_dir: `a` is not an absolute path",
            ),
            (
                "[stage.a]\nlevel = 1\nx = 1979-05-27",
                "p.toml:3:5: `x` is a date; a text",
            ),
            ("[stage.'a,b']", "p.toml:1:8: `a,b` is no name for a stage"),
            (
                "[stage.a]\nx = \"a\\u0000\"",
                "p.toml:2:5: `x` contains a NUL",
            ),
            (
                "[stage]\na = 1",
                "p.toml:2:5: invalid type: integer `1`, expected a map",
            ),
            ("a = 1\na = 2", "p.toml:2:1: duplicate key"),
        ] {
            assert!(
                complaint(text).starts_with(want),
                "{text}: {}",
                complaint(text)
            );
        }
    }

    #[test]
    fn parameters_keep_their_place() {
        let file = parse(
            Path::new("p.toml"),
            "[stage.c]\nplugin = 'lz4'\nacceleration = 4\n",
        )
        .unwrap();
        let stage = &file.stages["c"];
        assert_eq!(stage.plugin, "lz4");
        let param = &stage.params[0];
        assert_eq!(
            (param.key.as_str(), param.value.as_str()),
            ("acceleration", "4")
        );
        assert_eq!(param.origin.to_string(), "p.toml:3:1");
    }

    #[test]
    fn no_text_makes_it_panic() {
        let seeds = [
            "[stage.x]\na='ä'\n",
            "pipeline=\"a,b\"\n[pipelines]\nx='y'",
            "[[stage]]",
            "a.b.c = {d = [1,2]}",
        ];
        for seed in seeds {
            for cut in (0..=seed.len()).filter(|&at| seed.is_char_boundary(at)) {
                let _ = parse(Path::new("p"), &seed[..cut]);
                let _ = parse(
                    Path::new("p"),
                    &format!("{}\u{fe}[{}", &seed[..cut], &seed[cut..]),
                );
            }
        }
        let _ = parse(Path::new("p"), &"[".repeat(10_000));
        let _ = parse(Path::new("p"), &format!("a = {}", "[".repeat(100_000)));
    }
}
