//! Output that takes no work: completions and man pages.

use std::io::Write;

use clap_complete::Shell;

use super::args;
use super::exit::Exit;
use super::failure::Failure;
use memcr_text::Out;

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
            Some(found) => verb_page(verb, found.clone()),
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

fn verb_page(verb: &str, command: clap::Command) -> Page {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    if verb == "daemon" {
        for (title, entries) in DAEMON {
            section(&mut text, title, entries)?;
        }
    }
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
    section(&mut text, "FILES", &FILES)?;
    section(&mut text, "ENVIRONMENT", &ENVIRONMENT)?;
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

const ENVIRONMENT: [(&str, &str); 1] = [(
    "MEMCR_STAGE_PATH",
    "directories with stage plugins, separated by colons",
)];

/// What belongs to the daemon alone.
const DAEMON: [(&str, &[(&str, &str)]); 5] = [
    (
        "CLIENTS",
        &[(
            "memcr-client(1), libmemcrclient",
            "ask the daemon from a shell and from C; docs/protocol.md of the sources describes \
             the protocols: lines of JSON, and those of the C memcr",
        )],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT, SIGHUP, SIGQUIT",
                "end it: no new clients; checkpoints under way are undone; held processes stay \
                 held, or as on_stop says",
            ),
            (
                "the same once more",
                "ends it at once; what is held stays held, whatever on_stop says",
            ),
            (
                "SIGKILL",
                "as the death of any memcr: the next daemon goes on with what is held",
            ),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "it was told to end, and did"),
            ("13", "another daemon works with the state directory"),
            (
                "1, 2, 3, 6",
                "it could not begin; the codes are those of memcr(1)",
            ),
        ],
    ),
    (
        "FILES",
        &[
            (
                "pipeline.toml",
                "its section [daemon] says where the daemon listens, who may ask for what, and \
                 how much is done at once; memcr(1) says where the file is",
            ),
            (
                "/run/memcr, or what --state-dir says",
                "the journals, and a lock: one daemon for each of these directories",
            ),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "NOTIFY_SOCKET",
                "where a service manager hears that the daemon is ready, and that it ends",
            ),
            (
                "WATCHDOG_USEC, WATCHDOG_PID",
                "how often it wants to hear that the daemon is alive",
            ),
        ],
    ),
];

/// A title, and words with what they mean.
fn section(text: &mut Vec<u8>, title: &str, entries: &[(&str, &str)]) -> std::io::Result<()> {
    writeln!(text, ".SH \"{title}\"")?;
    for (word, meaning) in entries {
        entry(text, word, meaning)?;
    }
    Ok(())
}

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
