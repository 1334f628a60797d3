//! `--check-config`: whether all that the configuration names can work here.
//!
//! ```text
//! the pipeline of the command line ─┐
//! every one of [pipelines] ─────────┤
//! each [stage.NAME] of the file that┼─▶ Part ──▶ a line, or an entry of `checked`
//!   is in none of them ─────────────┤      └──▶ Failure
//! group and dirs of [daemon] ───────┘
//! ```

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::args::Args;
use super::config::{self, Choice, Config};
use super::failure::Failure;
use super::log;
use crate::pipeline::{LinkDescription, Pipeline, SearchPath};
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
    if settings.daemon.dirs.is_some() || settings.daemon.group.is_some() {
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
    match Pipeline::load(&choice.spec, search) {
        Ok(pipeline) => Ok(pipeline.describe().to_vec()),
        Err(error) => Err(Failure::of_choice(error, choice)),
    }
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
