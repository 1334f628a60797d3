//! Where results go, and what happens when they cannot go there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

fn memcr(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memcr"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .env_clear();
    command
}

#[test]
fn results_are_on_stdout_and_diagnostics_are_not() {
    let done = memcr(&["check"]).output().unwrap();
    assert!(done.status.success());
    assert!(
        String::from_utf8(done.stdout)
            .unwrap()
            .starts_with("FEATURE")
    );
    assert!(done.stderr.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = memcr(&["check"]).stdout(writer).output().unwrap();
    assert!(done.status.success(), "{:?}", done.status);
    assert!(
        done.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let done = memcr(&["check"]).stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(
        said.starts_with("memcr: cannot write to stdout: "),
        "{said}"
    );
}

#[test]
fn a_full_disk_is_a_failure_for_help_too() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let done = memcr(&["--help"]).stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(
        said.starts_with("memcr: cannot write to stdout: "),
        "{said}"
    );
}

/// JSON is UTF-8; names of files are what they are.
#[test]
fn paths_that_are_no_text_are_shown_all_the_same() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join(OsStr::from_bytes(b"no\xfftext"));
    std::fs::create_dir(&dir).unwrap();
    let config = dir.join("c.toml");
    std::fs::write(&config, "").unwrap();
    let list = memcr(&["list", "--json", "--state-dir"]).arg(&dir).output();
    let check = memcr(&["--check-config", "--json", "--config"])
        .arg(&config)
        .output();
    let stages = memcr(&["stages", "--json"])
        .env("MEMCR_STAGE_PATH", &dir)
        .output();
    for done in [list, check, stages] {
        let done = done.unwrap();
        let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert!(
            said.is_object(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert_ne!(done.status.code(), Some(101));
    }
}

/// Neither panics nor fails differently when nobody reads what went wrong.
#[test]
fn nobody_has_to_read_stderr() {
    for args in [
        &["-p", "0"][..],
        &["--check-config", "--config", "/nonexistent"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = memcr(args).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(2));
    }
}

#[test]
fn json_is_one_object_also_when_it_fails() {
    let args = ["--check-config", "--json", "--config", "/nonexistent"];
    let done = memcr(&args).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(said["ok"], false);
    assert_eq!(
        said["exit_code"].as_i64(),
        done.status.code().map(i64::from)
    );
    let features: serde_json::Value =
        serde_json::from_slice(&memcr(&["check", "--json"]).output().unwrap().stdout).unwrap();
    assert!(
        features["features"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["name"] == "pidfd")
    );
}

#[test]
fn json_is_one_object_also_of_a_wrong_command_line() {
    let args = ["-p", "1", "--json", "--bogus"];
    let done = memcr(&args).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&said["ok"], &said["exit_code"]),
        (&false.into(), &2.into())
    );
    let message = "unexpected argument '--bogus' found";
    assert_eq!(said["error"]["message"], message);
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(text.starts_with(&format!("memcr: {message}\n")), "{text}");
    let without = memcr(&["-p", "1", "--bogus"]).output().unwrap();
    assert!(without.stdout.is_empty());
}

/// Whatever ends it.
#[test]
fn with_json_every_line_on_stderr_is_an_object() {
    let wrong_file = ["--check-config", "--config", "/nonexistent"];
    let wrong_flag = ["-p", "1", "-zstd"];
    let nowhere = ["list", "--state-dir", "/dev/null"];
    for (args, code) in [(&wrong_file, 2), (&wrong_flag, 2), (&nowhere, 2)] {
        let done = memcr(args).args(["--log-format", "json"]).output().unwrap();
        assert_eq!(done.status.code(), Some(code));
        let lines = String::from_utf8(done.stderr).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let said: serde_json::Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(said["level"], "error");
        assert_eq!(said["exit_code"], code);
        assert!(!said["message"].as_str().unwrap().contains('\n'), "{said}");
        // Where there is one, as in text.
        assert_eq!(said["hint"].is_null(), args == &wrong_file, "{said}");
    }
}

fn text(args: &[&str]) -> String {
    let done = memcr(args).output().unwrap();
    assert!(done.status.success());
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn completions_of_a_command_offer_what_it_takes() {
    let bash = text(&["completions", "bash"]);
    let list = bash.split("memcr__subcmd__list)").nth(1).unwrap();
    let offered = list.lines().nth(1).unwrap();
    assert!(offered.contains("--state-dir"), "{offered}");
    assert!(!offered.contains("--compress"), "{offered}");
}

#[test]
fn completions_and_man_pages_have_every_flag() {
    let help = text(&["--help"]);
    let flags: Vec<_> = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    let man = text(&["man"]).replace('\\', "");
    for shell in ["bash", "zsh", "fish"] {
        let completions = text(&["completions", shell]);
        for flag in &flags {
            let name = flag.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(
                completions.contains(name),
                "{flag} is not in the completions for {shell}"
            );
            assert!(man.contains(name), "{flag} is not in the man page");
        }
    }
}
