//! Output that takes no work: completions, man page, the configuration in force.

use clap_complete::Shell;
use serde_json::json;

use super::args;
use super::config::Config;
use super::exit::Exit;
use super::failure::Failure;
use super::out::Out;
use crate::pipeline::LinkDescription;

/// Prints completions for `shell`.
pub(super) fn completions(shell: Shell, out: &mut Out) {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "memcr", &mut text);
    out.line(String::from_utf8_lossy(&text).trim_end());
}

/// Prints the man page of memcr, or that of one of its commands.
pub(super) fn man(verb: Option<&str>, out: &mut Out) -> Result<(), Failure> {
    let mut command = args::command();
    command.build();
    let page = match verb {
        None => command,
        Some(verb) => match command.find_subcommand(verb) {
            Some(found) => found.clone(),
            None => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("there is no command `{verb}`"),
                ));
            }
        },
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|error| Failure::new(Exit::Internal, error))?;
    out.line(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

/// Prints that the configuration works, and what it comes to.
pub(super) fn config(config: &Config, stages: &[LinkDescription], as_json: bool, out: &mut Out) {
    if as_json {
        return out.json(&json!({ "ok": true, "config": config.path, "pipeline": stages }));
    }
    out.line(format_args!("{}: ok", config.name()));
    for stage in stages {
        out.line(format_args!(
            "  {}: {} {} ({})",
            stage.alias,
            stage.name,
            stage.version,
            stage.path.display()
        ));
    }
}
