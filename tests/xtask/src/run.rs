//! Commands: shown before they run, their failure told with their name.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Nothing, or a message for the person at the terminal.
pub(crate) type Done<T = ()> = Result<T, String>;

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    // Two levels above this package, as the workspace has it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .to_owned()
}

/// Cargo, the same that runs us, at the top of the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command with our own stdin, stdout and stderr.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(crate) fn visibly(command: &mut Command) -> Done {
    println!("$ {}", text(command));
    let status = command
        .status()
        .map_err(|error| cannot_start(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}`: {status}", text(command)))
    }
}

/// Runs a command and hands every line of its stdout to `each`, besides printing it.
///
/// # Errors
/// As [`visibly`].
pub(crate) fn watched(command: &mut Command, mut each: impl FnMut(&str)) -> Done {
    println!("$ {}", text(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|error| format!("`{}`: {error}", text(command)))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            each(&line);
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("`{}`: {error}", text(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}`: {status}", text(command)))
    }
}

/// What a command prints on stdout.
///
/// # Errors
/// As [`visibly`].
pub(crate) fn output(command: &mut Command) -> Done<String> {
    let output = command
        .output()
        .map_err(|error| cannot_start(command, &error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "`{}`: {}: {}",
            text(command),
            output.status,
            stderr.trim()
        ))
    }
}

/// Whether a program of that name is on the search path.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    // Cargo is called by its full path; people call it cargo.
    words
        .join(" ")
        .replacen(&*cargo().get_program().to_string_lossy(), "cargo", 1)
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("cannot start `{}`: {error}", text(command))
}
