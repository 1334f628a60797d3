//! Output that takes no work: completions, man page, the configuration in force.

use std::io::Write;

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
    clap_complete::generate(shell, &mut args::command_to_complete(), "memcr", &mut text);
    out.line(String::from_utf8_lossy(&text).trim_end());
}

/// Prints the man page of memcr, or that of one of its commands.
pub(super) fn man(verb: Option<&str>, out: &mut Out) -> Result<(), Failure> {
    let mut command = args::command();
    command.build();
    let page = match verb {
        None => main_page(command),
        Some(verb) => match command.find_subcommand(verb) {
            Some(found) => whole(clap_mangen::Man::new(found.clone())),
            None => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("there is no command `{verb}`"),
                ));
            }
        },
    };
    let text = page.map_err(|error| Failure::new(Exit::Internal, error))?;
    out.line(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

type Page = std::io::Result<Vec<u8>>;

fn whole(man: clap_mangen::Man) -> Page {
    let mut text = Vec::new();
    man.render(&mut text)?;
    Ok(text)
}

/// The page with the sections that a page of its kind has and clap knows nothing of.
fn main_page(command: clap::Command) -> Page {
    let man = clap_mangen::Man::new(command);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    man.render_subcommands_section(&mut text)?;
    writeln!(text, ".SH \"EXIT STATUS\"")?;
    for exit in Exit::ALL {
        entry(&mut text, &exit.code().to_string(), exit.meaning())?;
    }
    writeln!(text, ".SH FILES")?;
    for (file, what) in FILES {
        entry(&mut text, file, what)?;
    }
    writeln!(text, ".SH ENVIRONMENT")?;
    entry(
        &mut text,
        "MEMCR_STAGE_PATH",
        "directories with stage plugins, separated by colons",
    )?;
    man.render_version_section(&mut text)?;
    Ok(text)
}

const FILES: [(&str, &str); 4] = [
    (
        "$XDG_CONFIG_HOME/memcr/pipeline.toml, /etc/memcr/pipeline.toml",
        "the configuration; the first one found is read",
    ),
    (
        "../share/memcr/pipeline.toml",
        "the default configuration, beside the directory of the program",
    ),
    (
        "../lib/memcr/stages, /usr/lib/memcr/stages",
        "stage plugins, beside the directory of the program and of the system",
    ),
    (
        "/run/memcr, $XDG_RUNTIME_DIR/memcr, /tmp/memcr-UID",
        "the journals of held processes: of root, and of others",
    ),
];

/// A word and what it means. Hyphens and leading points are roff's own otherwise.
fn entry(text: &mut Vec<u8>, word: &str, meaning: &str) -> std::io::Result<()> {
    let escaped = |text: &str| text.replace('-', "\\-");
    writeln!(
        text,
        ".TP\n\\fB{}\\fR\n\\&{}",
        escaped(word),
        escaped(meaning)
    )
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
