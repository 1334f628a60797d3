//! What memcr says, pinned: every message of the command line and the configuration.
//!
//! Each file in `transcripts/` is a session:
//!
//! ```text
//!   # a remark
//!   = p.toml                      writes a file into {DIR} …
//!   | pipeline = "a,b"            … with these lines
//!   $ memcr --config {DIR}/p.toml --check-config
//!   > a line on stdout
//!   ! a line on stderr
//!   ? 2                           the exit code; left out when it is 0
//! ```
//!
//! `{DIR}` is a fresh directory, `{STAGES}` one with all plugins, `{BROKEN}` one with files
//! that look like plugins and are none, `{PREFIX}` where memcr thinks it is installed.
//! Words in front of `memcr` go into its environment, which is otherwise all but empty.
//! `MEMCR_BLESS=1` writes what memcr says now into the files, to be read before it is
//! committed.
//!
//! What README.md shows of a session in a shell is played too: see `fixtures::shell`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixtures;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixtures::shell::Shell;

#[test]
fn usage() {
    play("usage");
}

#[test]
fn configuration() {
    play("configuration");
}

#[test]
fn stages_and_plugins() {
    play("stages");
}

#[test]
fn broken_plugins() {
    play("broken");
}

#[test]
fn images() {
    play("images");
}

#[test]
fn sessions() {
    play("sessions");
}

#[test]
fn daemon() {
    play("daemon");
}

/// The sessions in a shell that README.md shows, with targets that are really held.
#[test]
fn readme() {
    let memcr = Path::new(env!("CARGO_BIN_EXE_memcr"));
    if !can_checkpoint(memcr) {
        assert!(
            std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
            "required: a memcr that can checkpoint here"
        );
        return eprintln!("skipped: memcr cannot checkpoint anything here, see `memcr check`");
    }
    let readme = include_str!("../../README.md");
    let sessions = fixtures::shell::blocks(readme);
    assert!(!sessions.is_empty(), "README.md shows no session");
    for session in sessions {
        let world = tempfile::tempdir().unwrap();
        let shell = Shell {
            dir: world.path().canonicalize().unwrap(),
            programs: fixtures::shell::programs(memcr),
            stages: stages(),
        };
        let said = shell.play(&session);
        let shape = |line| format!("{}\n", shell.shape(line));
        let written: String = session.iter().copied().map(shape).collect();
        let played: String = said.lines().map(shape).collect();
        if let Some(differences) = differences(&written, &played) {
            panic!("README.md: memcr says something else now:\n{differences}\nall of it:\n{said}");
        }
    }
}

fn can_checkpoint(memcr: &Path) -> bool {
    let output = Command::new(memcr).args(["check", "--json"]).output();
    String::from_utf8_lossy(&output.unwrap().stdout).contains("\"can_checkpoint\": true")
}

/// The world of one transcript.
struct World {
    dir: tempfile::TempDir,
}

/// Plays a transcript and compares what memcr says now with what is written there.
fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/transcripts")
        .join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).unwrap();
    let world = World {
        dir: tempfile::tempdir().unwrap(),
    };
    fixtures::broken_plugins(&world.dir.path().join("broken"), &stages());
    let played = world.play(&script);
    if std::env::var_os("MEMCR_BLESS").is_some() {
        fs::write(&path, &played).unwrap();
    }
    if let Some(differences) = differences(&script, &played) {
        panic!(
            "{}: memcr says something else now:\n{differences}",
            path.display()
        );
    }
}

impl World {
    /// The script again, with what memcr says now.
    fn play(&self, script: &str) -> String {
        let mut out = String::new();
        let mut file = None;
        for line in script.lines() {
            match line.split_at_checked(2) {
                Some(("= ", name)) => {
                    let path = self.dir.path().join(name);
                    fs::write(&path, "").unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                    file = Some(path);
                }
                Some(("| ", text)) => append(file.as_ref().expect("a `= NAME` before"), text),
                Some(("$ ", command)) => {
                    out.push_str(&format!("{line}\n{}", self.run(command)));
                    continue;
                }
                // What memcr said then, unless it is a remark or an empty line.
                _ if !(line.is_empty() || line.starts_with('#')) => continue,
                _ => {}
            }
            out.push_str(line);
            out.push('\n');
        }
        out
    }

    fn run(&self, command: &str) -> String {
        let words: Vec<String> = command.split(' ').map(|word| self.fill_in(word)).collect();
        let program = words
            .iter()
            .position(|word| word == "memcr")
            .expect("only memcr is run");
        let set = words[..program]
            .iter()
            .map(|word| word.split_once('=').expect("NAME=VALUE"));
        let output = Command::new(env!("CARGO_BIN_EXE_memcr"))
            .args(&words[program + 1..])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env_clear()
            .env("XDG_CONFIG_HOME", self.dir.path().join("xdg"))
            .env("MEMCR_STAGE_PATH", stages())
            .envs(set)
            .output()
            .unwrap();
        let mut said = String::new();
        for (mark, bytes) in [("> ", &output.stdout), ("! ", &output.stderr)] {
            for line in String::from_utf8_lossy(bytes).lines() {
                said.push_str(self.cut_out(&format!("{mark}{line}")).trim_end());
                said.push('\n');
            }
        }
        match output.status.code() {
            Some(0) => {}
            Some(code) => said.push_str(&format!("? {code}\n")),
            None => said.push_str(&format!("? {}\n", output.status)),
        }
        said
    }

    /// What stands for which path; a path within another comes before it.
    fn names(&self) -> [(&'static str, PathBuf); 4] {
        let dir = self.dir.path();
        let exe = Path::new(env!("CARGO_BIN_EXE_memcr"));
        [
            ("{BROKEN}", dir.join("broken")),
            ("{DIR}", dir.to_owned()),
            ("{STAGES}", stages()),
            ("{PREFIX}", exe.ancestors().nth(2).unwrap().to_owned()),
        ]
    }

    fn fill_in(&self, word: &str) -> String {
        self.names()
            .iter()
            .fold(word.to_owned(), |word, (name, path)| {
                word.replace(name, path.to_str().unwrap())
            })
    }

    fn cut_out(&self, line: &str) -> String {
        self.names()
            .iter()
            .fold(line.to_owned(), |line, (name, path)| {
                line.replace(path.to_str().unwrap(), name)
            })
    }
}

fn append(path: &Path, line: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{text}{line}\n")).unwrap();
}

fn stages() -> PathBuf {
    fixtures::stages(Path::new(env!("CARGO_BIN_EXE_memcr")))
}

/// The lines that differ, `- ` written and `+ ` said now; `None`: no difference.
fn differences(written: &str, said: &str) -> Option<String> {
    if written == said {
        return None;
    }
    let (written, said): (Vec<_>, Vec<_>) = (written.lines().collect(), said.lines().collect());
    let from = written
        .iter()
        .zip(&said)
        .take_while(|(a, b)| a == b)
        .count();
    let minus = written[from..]
        .iter()
        .take(12)
        .map(|line| format!("- {line}\n"));
    let plus = said[from..]
        .iter()
        .take(12)
        .map(|line| format!("+ {line}\n"));
    Some(format!(
        "line {}:\n{}",
        from + 1,
        minus.chain(plus).collect::<String>()
    ))
}
