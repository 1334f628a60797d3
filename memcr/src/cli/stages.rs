//! `stages`, `--stages`, `--stage-help`: what the plugins found say of themselves.

use serde_json::{Value, json};

use super::config::Config;
use super::failure::Failure;
use crate::pipeline::{
    FoundStage, ParamDescription, ParamType, Plugin, SearchPath, StageDescription, find_all,
};
use memcr_text::Out;
use memcr_text::Table;

/// Prints every stage found, and every file that looks like one and is none.
pub(super) fn list(search: &SearchPath, as_json: bool, out: &mut Out) {
    if as_json {
        return out.json(&describe(search));
    }
    let found = find_all(search);
    if found.is_empty() {
        out.line("no stages found; searched:");
        return search
            .dirs()
            .iter()
            .for_each(|dir| out.line(format_args!("  {}", dir.display())));
    }
    let mut table = Table::new([
        "NAME",
        "KIND",
        "VERSION",
        "ABI",
        "THREADS",
        "CAPABILITIES",
        "PATH",
    ]);
    found.iter().for_each(|stage| table.row(row(stage)));
    out.line(table);
}

/// The same for machines.
pub(crate) fn describe(search: &SearchPath) -> Value {
    let found = find_all(search);
    json!({
        "stages": found.iter().map(found_json).collect::<Vec<_>>(),
        "searched": search.dirs().iter().map(|dir| dir.to_string_lossy()).collect::<Vec<_>>(),
    })
}

/// Prints the parameters of `name`: a stage of the configuration, a plugin or its path.
pub(super) fn help(
    config: &Config,
    name: &str,
    search: &SearchPath,
    as_json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let configured = config.settings.stages.get(name);
    let plugin = Plugin::load(configured.map_or(name, |stage| &stage.plugin), search)?;
    let stage = plugin.description();
    if as_json {
        out.json(stage);
        return Ok(());
    }
    out.line(format_args!(
        "{} {} ({}): {}",
        stage.name,
        stage.version,
        word(&stage.kind),
        stage.summary
    ));
    out.line(stage.path.display());
    if stage.params.is_empty() {
        out.line("no parameters");
        return Ok(());
    }
    let mut table = Table::new(["PARAMETER", "VALUES", "DEFAULT", "MEANING"]);
    stage
        .params
        .iter()
        .for_each(|param| table.row(param_row(param)));
    out.line(table);
    for param in configured.iter().flat_map(|stage| &stage.params) {
        out.line(format_args!(
            "{}: {} = {}",
            param.origin, param.key, param.value
        ));
    }
    Ok(())
}

fn found_json(found: &FoundStage) -> serde_json::Value {
    let path = found.path.to_string_lossy();
    match &found.stage {
        Ok(stage) => json!({ "path": path, "shadowed": found.shadowed, "stage": stage }),
        Err(error) => json!({
            "path": path,
            "shadowed": found.shadowed,
            "error": { "what": error.what, "detail": error.detail, "hint": error.hint },
        }),
    }
}

fn row(found: &FoundStage) -> [String; 7] {
    let path = found.path.display();
    match &found.stage {
        Ok(stage) => described(
            stage,
            format!("{path}{}", if found.shadowed { " (shadowed)" } else { "" }),
        ),
        Err(error) => {
            let dash = || String::from("-");
            let name = found
                .path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default();
            let name = name.trim_start_matches("libmemcr_stage_").to_owned();
            [
                name,
                "broken".into(),
                dash(),
                dash(),
                dash(),
                dash(),
                format!("{path}: {}", error.detail),
            ]
        }
    }
}

fn described(stage: &StageDescription, path: String) -> [String; 7] {
    let (major, minor) = stage.abi_version;
    let capabilities = if stage.capabilities.is_empty() {
        "-".into()
    } else {
        stage.capabilities.join(",")
    };
    [
        stage.name.clone(),
        word(&stage.kind),
        stage.version.clone(),
        format!("{major}.{minor}"),
        word(&stage.threads),
        capabilities,
        path,
    ]
}

fn param_row(param: &ParamDescription) -> [String; 4] {
    let values = match &param.ty {
        ParamType::String => "text".into(),
        ParamType::Integer { min, max } => format!("{min}..{max}"),
        ParamType::Bool => "true, false".into(),
        ParamType::Size { max: i64::MAX, .. } => "bytes".into(),
        ParamType::Size { min, max } => format!("{min}..{max} bytes"),
        ParamType::Choice { choices } => choices.join(", "),
        ParamType::Path => "path".into(),
        ParamType::Fd => "descriptor".into(),
    };
    let default = match &param.default {
        Some(value) => value.clone(),
        None if param.required => "(needed)".into(),
        None => "-".into(),
    };
    [param.name.clone(), values, default, param.help.clone()]
}

/// The word that JSON has for it too: one per thing.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
