//! From the configuration and the flags to the pipeline that is to be loaded.
//!
//! ```text
//! --pipeline A,B,SINK     these stages
//! -c -z -e                md5, lz4 or zstd, encrypt (in this order) and the sink of the
//!                         configuration's pipeline
//! neither                 the configuration's pipeline
//!
//! parameters: plugin's default < [stage.NAME] < -e CIPHER, -d DIR < --set
//! ```

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use crate::cli::args::Job;
use crate::pipeline::{
    DEFAULT_CHUNK_LEN, DEFAULT_STALL_LIMIT, PipelineSpec, StageSpec, chunk_len, is_called,
    parse_size, short_name,
};

use super::file::{Given, Stage};
use super::{Config, ConfigError, Origin, Param};

/// A pipeline to be loaded, and where each parameter was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The pipeline.
    pub spec: PipelineSpec,
    /// Whether the checkpoint lets everybody else on the machine go first.
    pub idle: bool,
    params: Vec<(String, Param)>,
}

impl Choice {
    /// Where the parameter `key` of the stage `alias` was given.
    #[must_use]
    pub fn origin(&self, alias: &str, key: &str) -> Option<&Origin> {
        let found = self
            .params
            .iter()
            .find(|(stage, param)| stage == alias && param.key == key);
        found.map(|(_, param)| &param.origin)
    }

    /// The same pipeline with its image where a client wants it, whatever was said before.
    ///
    /// # Errors
    /// A name that is not UTF-8: parameters are text.
    pub(crate) fn store_in(&mut self, dir: &Path) -> Result<(), ConfigError> {
        let text = text_of(dir)?;
        if let Some(sink) = self.spec.stages.last_mut() {
            sink.params.retain(|(key, _)| key != "dir");
            sink.params.push(("dir".into(), text.into()));
        }
        Ok(())
    }

    /// The same pipeline with the compression that a client has chosen, `None` for none:
    /// `lz4` and `zstd` stages make way for it, everything else stays as it was configured.
    /// Where there was none it comes in front of `encrypt`, or of the sink.
    pub(crate) fn compress_with(&mut self, stage: Option<&str>) {
        let compresses = |stage: &StageSpec| ["lz4", "zstd"].contains(&short_name(&stage.plugin));
        let stages = &mut self.spec.stages;
        // The one that is wanted may have parameters of the operator's.
        if let Some(wanted) = stage
            && stages.iter().any(|it| short_name(&it.plugin) == wanted)
        {
            return stages.retain(|it| !compresses(it) || short_name(&it.plugin) == wanted);
        }
        let at = stages.iter().position(compresses);
        let before = |stage: &StageSpec| short_name(&stage.plugin) == "encrypt";
        let at = at.or_else(|| stages.iter().position(before));
        let at = at.unwrap_or(stages.len().saturating_sub(1));
        stages.retain(|it| !compresses(it));
        if let Some(name) = stage {
            let spec = StageSpec {
                alias: name.into(),
                plugin: name.into(),
                params: Vec::new(),
            };
            stages.insert(at.min(stages.len()), spec);
        }
    }
}

/// The pipeline that `job` asks for under `config`, with the `--set` values `sets`.
///
/// # Errors
/// When the list of stages is empty or has an empty name, or a `--set` names no stage
/// of it.
pub fn pipeline(config: &Config, job: &Job, sets: &[String]) -> Result<Choice, ConfigError> {
    let list = stage_list(config, job)?;
    let mut stages = resolve(config, &list)?;
    apply_flags(&mut stages, job)?;
    apply_sets(&mut stages, sets, &list.value)?;
    choice(config, stages, workers(config, job), job.idle)
}

/// The pipeline that `list`, one of `[pipelines]`, is without any flag.
///
/// # Errors
/// When the list of stages is empty or has an empty name.
pub fn named(config: &Config, list: &Given<String>) -> Result<Choice, ConfigError> {
    choice(
        config,
        resolve(config, list)?,
        configured_workers(config),
        false,
    )
}

fn resolve(config: &Config, list: &Given<String>) -> Result<Vec<Named>, ConfigError> {
    let names = split(list)?.into_iter();
    Ok(names
        .map(|name| Named::resolve(config, name, &list.origin))
        .collect())
}

fn choice(
    config: &Config,
    stages: Vec<Named>,
    workers: Option<NonZeroUsize>,
    idle: bool,
) -> Result<Choice, ConfigError> {
    Ok(Choice {
        spec: PipelineSpec {
            stages: stages.iter().map(Named::spec).collect(),
            workers,
            chunk_len_bytes: chunk_len_bytes(config)?,
            stall_limit: stall_limit(config),
        },
        idle: idle || config.settings.idle.unwrap_or(false),
        params: stages.into_iter().flat_map(Named::into_params).collect(),
    })
}

/// The stage of the table `[stage.NAME]`, as a pipeline would have it.
#[must_use]
pub fn stage(name: &str, table: &Stage) -> StageSpec {
    let (alias, stage) = (name.to_owned(), table.clone());
    Named { alias, stage }.spec()
}

/// The `--set` values by stage, for a pipeline that an image describes.
///
/// # Errors
/// When one has not the form STAGE.KEY=VALUE.
pub fn overrides(sets: &[String]) -> Result<Vec<StageSpec>, ConfigError> {
    let spec = |text: &String| {
        let set = Set::parse(text)?;
        let params = vec![(set.param.key, set.param.value)];
        Ok(StageSpec {
            alias: set.stage,
            plugin: String::new(),
            params,
        })
    };
    sets.iter().map(spec).collect()
}

/// The list of stages, with a name from `[pipelines]` replaced by what it stands for.
fn stage_list(config: &Config, job: &Job) -> Result<Given<String>, ConfigError> {
    let settings = &config.settings;
    let named = |list: Given<String>| {
        settings
            .pipelines
            .get(list.value.trim())
            .cloned()
            .unwrap_or(list)
    };
    if let Some(text) = &job.pipeline {
        return Ok(named(Given {
            value: text.clone(),
            origin: Origin::Flag("--pipeline".into()),
        }));
    }
    let configured = named(settings.pipeline.clone().unwrap_or_else(|| Given {
        value: String::new(),
        origin: Origin::Flag("the built-in configuration".into()),
    }));
    let mut wanted = Vec::new();
    let mut flags = Vec::new();
    for (flag, stage) in [
        ("-c", job.checksum.then_some("md5")),
        ("-z", job.compress.map(|algorithm| algorithm.stage())),
        ("-e", job.encrypt.map(|_| "encrypt")),
    ] {
        flags.extend(stage.map(|_| flag));
        wanted.extend(stage);
    }
    if wanted.is_empty() {
        return Ok(configured);
    }
    let sink = split(&configured)?.pop().unwrap_or_default().to_owned();
    wanted.push(&sink);
    Ok(Given {
        value: wanted.join(","),
        origin: Origin::Flag(flags.join(" ")),
    })
}

fn split(list: &Given<String>) -> Result<Vec<&str>, ConfigError> {
    let names: Vec<&str> = list.value.split(',').map(str::trim).collect();
    let message = if list.value.trim().is_empty() {
        "no stages; at least a sink is needed, as in `file` or `compress,file`"
    } else if names.contains(&"") {
        "a stage has no name"
    } else {
        return Ok(names);
    };
    Err(ConfigError::Pipeline {
        pipeline: list.value.clone(),
        origin: list.origin.clone(),
        message: message.into(),
    })
}

/// A stage of the pipeline under the name that `--set` and messages use.
struct Named {
    alias: String,
    stage: Stage,
}

impl Named {
    /// A stage of the configuration, else a plugin of that name or path.
    fn resolve(config: &Config, name: &str, origin: &Origin) -> Self {
        let stage = config.settings.stages.get(name).cloned();
        let stage = stage.unwrap_or_else(|| Stage {
            origin: origin.clone(),
            plugin: name.to_owned(),
            params: Vec::new(),
        });
        Self {
            alias: short_name(name).to_owned(),
            stage,
        }
    }

    /// The last value of a key counts, as the pipeline room has it.
    fn set(&mut self, param: Param) {
        self.stage.params.retain(|old| old.key != param.key);
        self.stage.params.push(param);
    }

    fn spec(&self) -> StageSpec {
        let params = self.stage.params.iter();
        StageSpec {
            alias: self.alias.clone(),
            plugin: self.stage.plugin.clone(),
            params: params.map(|p| (p.key.clone(), p.value.clone())).collect(),
        }
    }

    fn into_params(self) -> impl Iterator<Item = (String, Param)> {
        let alias = self.alias;
        self.stage
            .params
            .into_iter()
            .map(move |param| (alias.clone(), param))
    }
}

fn apply_flags(stages: &mut [Named], job: &Job) -> Result<(), ConfigError> {
    let param = |flag: &str, key: &str, value: &str| Param {
        key: key.into(),
        value: value.into(),
        origin: Origin::Flag(flag.into()),
    };
    if let (Some(cipher), Some(stage)) = (
        job.encrypt,
        stages.iter_mut().find(|stage| stage.alias == "encrypt"),
    ) {
        stage.set(param("-e", "cipher", cipher.name()));
    }
    if let (Some(dir), Some(sink)) = (&job.dir, stages.last_mut()) {
        sink.set(param("--dir", "dir", text_of(dir)?));
    }
    Ok(())
}

fn text_of(dir: &Path) -> Result<&str, ConfigError> {
    dir.to_str().ok_or_else(|| ConfigError::Entry {
        origin: Origin::Flag("--dir".into()),
        message: format!("`{}` is not UTF-8", dir.display()),
    })
}

fn apply_sets(stages: &mut [Named], sets: &[String], list: &str) -> Result<(), ConfigError> {
    for text in sets {
        let set = Set::parse(text)?;
        let mut known = stages
            .iter_mut()
            .filter(|stage| is_called(&set.stage, &stage.alias, &stage.stage.plugin))
            .peekable();
        if known.peek().is_none() {
            let message = format!("the pipeline `{list}` has no stage `{}`", set.stage);
            return Err(ConfigError::Set {
                text: text.clone(),
                message,
            });
        }
        known.for_each(|stage| stage.set(set.param.clone()));
    }
    Ok(())
}

/// A `--set`, taken apart.
struct Set {
    stage: String,
    param: Param,
}

impl Set {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let error = |message: &str| ConfigError::Set {
            text: text.into(),
            message: message.into(),
        };
        let (place, value) = text
            .split_once('=')
            .ok_or_else(|| error("STAGE.KEY=VALUE is needed"))?;
        match place.split_once('.') {
            Some((stage, key)) if !stage.is_empty() && !key.is_empty() => Ok(Self {
                stage: stage.into(),
                param: Param {
                    key: key.into(),
                    value: value.into(),
                    origin: Origin::Flag("--set".into()),
                },
            }),
            _ => Err(error("STAGE.KEY=VALUE is needed, as in lz4.acceleration=4")),
        }
    }
}

/// What is not said is as everywhere else; 0 is for ever.
fn stall_limit(config: &Config) -> Option<Duration> {
    match &config.settings.stall_limit {
        None => Some(DEFAULT_STALL_LIMIT),
        Some(given) => (given.value > 0).then(|| Duration::from_secs(given.value)),
    }
}

/// How many workers `job` asks for under `config`; `None`: as many as CPUs and memory allow.
#[must_use]
pub fn workers(config: &Config, job: &Job) -> Option<NonZeroUsize> {
    match job.workers {
        Some(workers) => NonZeroUsize::new(workers.into()),
        None => configured_workers(config),
    }
}

fn configured_workers(config: &Config) -> Option<NonZeroUsize> {
    NonZeroUsize::new(config.settings.workers.as_ref()?.value.into())
}

fn chunk_len_bytes(config: &Config) -> Result<u64, ConfigError> {
    let Some(chunk) = &config.settings.chunk else {
        return Ok(DEFAULT_CHUNK_LEN);
    };
    let complain = |message| {
        Err(ConfigError::Entry {
            origin: chunk.origin.clone(),
            message,
        })
    };
    match parse_size(&chunk.value).and_then(|len| u64::try_from(len).ok()) {
        None => complain(format!(
            "chunk: `{}` is no length in bytes, such as 65536, 64K or 1MiB",
            chunk.value
        )),
        Some(len_bytes) => match chunk_len(len_bytes) {
            Ok(_) => Ok(len_bytes),
            Err(error) => complain(format!("chunk: {error}")),
        },
    }
}

#[cfg(test)]
mod tests;
