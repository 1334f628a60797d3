//! `--check-config`: whether all that the configuration names can work here.
//!
//! ```text
//! the pipeline of the command line ─┐
//! every one of [pipelines] ─────────┤
//! each [stage.NAME] of the file that┼─▶ Part ──▶ a line, or an entry of `checked`
//!   is in none of them ─────────────┤      └──▶ Failure
//! stage_path, state_dir ────────────┤
//! what [daemon] names ──────────────┘
//! ```
//!
//! Of a pipeline an image is begun and removed again: what it takes to open its sink is asked
//! of the sink. A stage that is in no pipeline is only made, as nobody knows what it is for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access};
use serde_json::{Value, json};

use super::args::Args;
use super::config::{self, Choice, Config};
use super::exit::Exit;
use super::failure::Failure;
use super::log;
use crate::pages::{ChunkPlan, FetchPages};
use crate::pipeline::{
    Cancel, EncodeSetup, LinkDescription, Pipeline, PipelineError, Priority, Progress, SearchPath,
};
use crate::session::journal::StateDir;
use crate::sys::page_size;
use memcr_text::Out;

/// Something that works or does not.
struct Part {
    /// Its name; `None`: the pipeline that would be used.
    name: Option<String>,
    done: Result<Vec<LinkDescription>, Failure>,
}

/// Tries out everything that `config` names, and `args` with it.
///
/// # Errors
/// What does not work, with its code; of several things the first one's.
pub(super) fn run(
    args: &Args,
    config: &Config,
    search: &SearchPath,
    out: &mut Out,
) -> Result<(), Failure> {
    let parts = parts(args, config, search);
    let checked: Vec<Value> = parts.iter().map(Part::to_json).collect();
    let is_whole = parts.iter().all(|part| part.done.is_ok());
    match (args.common.json, is_whole) {
        (true, true) => {
            let pipeline = parts.first().and_then(|part| part.done.as_ref().ok());
            let path = config.path.as_ref().map(|path| path.to_string_lossy());
            out.json(
                &json!({ "ok": true, "config": path, "pipeline": pipeline, "checked": checked }),
            );
        }
        (false, true) => {
            out.line(format_args!("{}: ok", config.name()));
            parts.first().iter().for_each(|part| part.describe(out));
            parts.iter().skip(1).for_each(|part| part.print(out));
        }
        // There is nothing to tell apart where there is one.
        (false, false) if parts.len() > 1 => parts.iter().for_each(|part| part.print(out)),
        (_, false) => {}
    }
    let n_parts = parts.len();
    let failures: Vec<Failure> = parts.into_iter().filter_map(|it| it.done.err()).collect();
    sum_up(failures, n_parts, args, config).map_or(Ok(()), |failure| {
        Err(failure.with_detail("checked", checked.into()))
    })
}

/// The only failure, or the number of them, behind what was said of each.
fn sum_up(
    mut failures: Vec<Failure>,
    n_parts: usize,
    args: &Args,
    config: &Config,
) -> Option<Failure> {
    if failures.len() < 2 {
        return failures.pop();
    }
    for failure in &failures {
        log::complain(failure, args.common.log_format);
    }
    let (n, name) = (failures.len(), config.name());
    let what = format!("{n} of {n_parts} parts of {name} cannot work");
    Some(Failure::new(failures.first()?.exit, what))
}

fn parts(args: &Args, config: &Config, search: &SearchPath) -> Vec<Part> {
    let settings = &config.settings;
    let chosen = config::pipeline(config, &args.job, &args.common.set);
    let mut in_use: BTreeSet<String> = chosen.iter().flat_map(aliases).collect();
    let stages_of = |choice: &Choice| choice.spec.stages.clone();
    let known = chosen.as_ref().ok().map(stages_of);
    let mut parts = vec![Part {
        name: None,
        done: chosen
            .map_err(Failure::from)
            .and_then(|it| try_out(&it, search)),
    }];
    for (name, list) in &settings.pipelines {
        let choice = config::named(config, list);
        in_use.extend(choice.iter().flat_map(aliases));
        // What was tried out already does not fail twice.
        let is_chosen = choice.is_ok() && choice.as_ref().ok().map(stages_of) == known;
        if is_chosen && parts.first().is_some_and(|part| part.done.is_err()) {
            continue;
        }
        let context = format!("{}: pipeline `{name}`", list.origin);
        let try_out = |choice: Choice| {
            try_out(&choice, search).map_err(|failure| failure.in_context(&context))
        };
        parts.push(Part {
            name: Some(format!("pipeline {name}")),
            done: choice.map_err(Failure::from).and_then(try_out),
        });
    }
    // What the built-in copy has beside may be missing from a small installation.
    let said = |it: &config::Stage| it.origin.is_in(config.path.as_deref());
    for (name, table) in &settings.stages {
        if in_use.contains(name) || !said(table) {
            continue;
        }
        let done = Pipeline::try_stage(&config::stage(name, table), search);
        let context = format!("{}: [stage.{name}]", table.origin);
        parts.push(Part {
            name: Some(format!("stage {name}")),
            done: match done {
                Ok(()) => Ok(Vec::new()),
                Err(error) => Err(Failure::from(error).in_context(&context)),
            },
        });
    }
    if let Some(dirs) = settings.stage_path.as_ref().filter(|dirs| !dirs.is_empty()) {
        parts.push(Part {
            name: Some("stage_path".into()),
            done: look_at_stage_path(dirs).map(|()| Vec::new()),
        });
    }
    if let Some(dir) = &settings.state_dir {
        parts.push(Part {
            name: Some("state_dir".into()),
            done: look_at_state_dir(dir).map(|()| Vec::new()),
        });
    }
    if settings.daemon.names_something() {
        parts.push(Part {
            name: Some("daemon".into()),
            done: settings
                .daemon
                .look()
                .map(|()| Vec::new())
                .map_err(Failure::from),
        });
    }
    parts
}

fn aliases(choice: &Choice) -> impl Iterator<Item = String> + use<> {
    let stages = choice.spec.stages.clone().into_iter();
    stages.map(|stage| stage.alias)
}

fn try_out(choice: &Choice, search: &SearchPath) -> Result<Vec<LinkDescription>, Failure> {
    let loaded = Pipeline::load(&choice.spec, search);
    let pipeline = loaded.map_err(|error| Failure::of_choice(error, choice))?;
    let links = pipeline.describe().to_vec();
    begin_image(pipeline).map_err(Failure::not_begun)?;
    Ok(links)
}

/// Does with `pipeline` what a checkpoint does before the freeze, and lets it go.
fn begin_image(pipeline: Pipeline) -> Result<(), PipelineError> {
    let setup = EncodeSetup {
        // For the name of an image, which it never gets.
        pid: std::process::id(),
        page_size: page_size() as u32,
        expected_len_bytes: 0,
        fetch: Arc::new(NoPages),
        keep: false,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::new(Progress::default()),
    };
    pipeline.prepare_encode(setup)?.abort()
}

/// Where nothing is to be had.
struct NoPages;

impl FetchPages for NoPages {
    fn fetch(&self, _: &ChunkPlan, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

fn look_at_stage_path(dirs: &[PathBuf]) -> Result<(), Failure> {
    match dirs.iter().find(|dir| !dir.is_dir()) {
        None => Ok(()),
        Some(dir) => {
            let what = format!("stage_path: there is no directory {}", dir.display());
            Err(Failure::new(Exit::Usage, what))
        }
    }
}

/// One that is not there is made by the first checkpoint, if it can be.
fn look_at_state_dir(dir: &Path) -> Result<(), Failure> {
    if StateDir::find(Some(dir))?.is_some() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(dir);
    let may_be_made = access(parent, Access::WRITE_OK | Access::EXEC_OK);
    may_be_made.map_err(|error| {
        let what = format!("state_dir: cannot make {}: {error}", dir.display());
        Failure::new(Exit::Usage, what)
    })
}

impl Part {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("pipeline")
    }

    fn print(&self, out: &mut Out) {
        let word = match self.done {
            Ok(_) => "ok",
            Err(_) => "cannot work",
        };
        out.line(format_args!("{}: {word}", self.name()));
    }

    /// Its stages.
    fn describe(&self, out: &mut Out) {
        for stage in self.done.iter().flatten() {
            out.line(format_args!(
                "  {}: {} {} ({})",
                stage.alias,
                stage.name,
                stage.version,
                stage.path.display()
            ));
        }
    }

    fn to_json(&self) -> Value {
        let name = self.name();
        match &self.done {
            Ok(_) => json!({ "name": name, "ok": true }),
            Err(failure) => {
                let mut object = failure.to_json();
                object["name"] = name.into();
                object
            }
        }
    }
}
