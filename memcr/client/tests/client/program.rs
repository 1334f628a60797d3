//! The program: its flags, what it sends, what it prints, how it ends.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::fake::{Fake, Serve, hear, old, say};

/// How a run of memcr-client ended.
#[derive(Debug)]
struct Ran {
    exit: i32,
    stdout: String,
    stderr: String,
}

/// Runs `memcr-client -l SOCKET` with these words.
fn run(socket: &Path, words: &str) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_memcr-client"))
        .arg("-l")
        .arg(socket)
        .args(words.split_whitespace())
        .output()
        .unwrap();
    Ran {
        exit: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Answers a request that is, but for version and id, `want`.
fn answer(stream: &mut UnixStream, want: Value, answer: Value) {
    let mut request = hear(stream);
    say(stream, &request, answer);
    let keys = request.as_object_mut().unwrap();
    keys.retain(|key, _| key != "memcr" && key != "id");
    assert_eq!(request, want);
}

/// Runs with a daemon that is asked for `want` and answers `with`.
fn asked(words: &str, want: Value, with: Value) -> Ran {
    let daemon = Fake::answering(|stream| answer(stream, want, with));
    run(&daemon.path(), words)
}

fn done() -> Value {
    json!({"ok": true, "exit_code": 0})
}

const OK: &str = "Procedure finished with OK status.\n";
const ERROR: &str = "Procedure finished with ERROR status.\n";

#[test]
fn flags_become_requests() {
    for (words, want) in [
        ("-p 7 -c", json!({"do": "checkpoint", "pid": 7})),
        (
            "--pid=7 --checkpoint",
            json!({"do": "checkpoint", "pid": 7}),
        ),
        ("-rp7", json!({"do": "restore", "pid": 7})),
        (
            "--tree 7 -c --pipeline small",
            json!({"do": "checkpoint", "tree": 7, "pipeline": "small"}),
        ),
        (
            "--cgroup /a/b -c -zLZ4 -d /var/tmp --timeout 2.5",
            json!({"do": "checkpoint", "cgroup": "/a/b", "compress": "lz4", "dir": "/var/tmp", "timeout": 2.5}),
        ),
        (
            "-p 7 -c -z NONE",
            json!({"do": "checkpoint", "pid": 7, "compress": "none"}),
        ),
        (
            "-p 7 -c --idle",
            json!({"do": "checkpoint", "pid": 7, "idle": true}),
        ),
        // Where the image is, the daemon knows.
        (
            "-p 7 -r -d /tmp --compress zstd",
            json!({"do": "restore", "pid": 7}),
        ),
    ] {
        let ran = asked(words, want, done());
        assert_eq!(
            (ran.exit, &*ran.stdout, &*ran.stderr),
            (0, OK, ""),
            "{words}"
        );
    }
}

#[test]
fn a_directory_is_one_of_the_client() {
    let here = std::env::current_dir().unwrap();
    let want = json!({"do": "checkpoint", "pid": 7, "dir": here.join("images")});
    assert_eq!(asked("-p 7 -c -d images", want, done()).exit, 0);
}

#[test]
fn a_checkpoint_and_a_restore_are_two_procedures() {
    let daemon = Fake::answering(|stream| {
        answer(stream, json!({"do": "checkpoint", "pid": 7}), done());
        answer(stream, json!({"do": "restore", "pid": 7}), done());
    });
    let ran = run(&daemon.path(), "-p 7 -cr");
    assert_eq!((ran.exit, ran.stdout), (0, format!("{OK}{OK}")));
}

fn refusal() -> Value {
    json!({"ok": false, "exit_code": 13, "meaning": "held",
           "error": {"message": "process 7 is held\u{1b}[2J", "causes": [], "hint": "restore it"}})
}

#[test]
fn a_failure_has_its_reason_hint_and_exit_code() {
    let want = json!({"do": "checkpoint", "pid": 7});
    let ran = asked("-p 7 -c -r", want, refusal());
    assert_eq!((ran.exit, &*ran.stdout), (13, ERROR));
    assert_eq!(
        ran.stderr,
        "memcr-client: cannot checkpoint process 7: process 7 is held\\u{1b}[2J\n\
         hint: restore it\n"
    );
}

#[test]
fn failures_in_a_group_are_told_one_by_one() {
    let members = json!([
        {"pid": 7, "ok": true, "exit_code": 0},
        {"pid": 8, "ok": false, "exit_code": 4, "error": {"message": "has a vhost device"}},
    ]);
    let with = json!({"ok": false, "exit_code": 4, "error": {"message": "1 of 2 failed"},
                      "group": "tree:7", "members": members});
    let ran = asked("--tree 7 -c", json!({"do": "checkpoint", "tree": 7}), with);
    assert_eq!(ran.exit, 4);
    assert_eq!(
        ran.stderr,
        "memcr-client: cannot checkpoint process 7 and its descendants: 1 of 2 failed\n\
         process 8: has a vhost device\n"
    );
}

#[test]
fn json_is_the_object_of_the_daemon() {
    let want = || json!({"do": "checkpoint", "pid": 7});
    let with = json!({"ok": true, "exit_code": 0, "checkpoint": {"pid": 7}});
    let ran = asked("-p 7 -c --json", want(), with.clone());
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    let mut expected = with;
    expected["memcr"] = 1.into();
    assert_eq!((ran.exit, printed), (0, expected));
    let ran = asked("-p 7 -c --json", want(), refusal());
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.exit, &printed["meaning"]), (13, &json!("held")));
}

#[test]
fn nobody_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nothing");
    let ran = run(&path, "-p 7 -c -r");
    assert_eq!((ran.exit, &*ran.stdout), (15, ERROR));
    assert_eq!(
        ran.stderr,
        format!(
            "memcr-client: cannot checkpoint process 7: cannot connect to a daemon at {}: \
             No such file or directory (os error 2)\n\
             hint: no daemon listens there; `memcr -l PORT|PATH` starts one\n",
            path.display()
        )
    );
    let ran = run(&path, "--list --json");
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.exit, &printed["exit_code"]), (15, &json!(15)));
    assert_eq!(printed["ok"], false);
    assert_eq!(printed["error"]["causes"].as_array().unwrap().len(), 2);
}

#[test]
fn a_deadline_that_passes_is_told() {
    let daemon = Fake::answering(|stream| {
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let ran = run(&daemon.path(), "--abort -p 7 --timeout 0.05");
    assert_eq!((ran.exit, &*ran.stdout), (15, ""));
    assert_eq!(
        ran.stderr,
        "memcr-client: cannot abort: the daemon has not answered within 0.05 seconds, and \
         goes on with the work\n"
    );
}

#[test]
fn the_old_protocol_is_spoken_when_it_is_asked_for() {
    for (words, numbers, code, exit, said) in [
        ("-p 7 -c -v", (100, 7), 0, 0, ""),
        ("-p 7 -r --v1", (101, 7), 0, 0, ""),
        ("-p 7 -c --v2", (102, 8), 0, 0, ""),
        (
            "-p 7 -c -v",
            (100, 7),
            -1,
            1,
            "answered -1, a failure; the old protocol gives no reason",
        ),
        (
            "-p 7 -c -v",
            (100, 7),
            -2,
            1,
            "answered -2: there is no such process, or it is checkpointed already",
        ),
        (
            "-p 7 -r -v",
            (101, 7),
            -2,
            1,
            "answered -2: the process is not checkpointed",
        ),
        (
            "-p 7 -r -v",
            (101, 7),
            5,
            1,
            "answered 5, which is not 0, -1 or -2",
        ),
    ] {
        let daemon = Fake::new(vec![old(Some(numbers), code)]);
        let ran = run(&daemon.path(), words);
        let line = if exit == 0 { OK } else { ERROR };
        assert_eq!((ran.exit, &*ran.stdout), (exit, line), "{words}");
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[test]
fn both_procedures_of_the_old_protocol_are_a_connection_each() {
    let daemon = Fake::new(vec![old(Some((100, 7)), 0), old(Some((101, 7)), 0)]);
    let ran = run(&daemon.path(), "-p 7 -c -r -v");
    assert_eq!((ran.exit, ran.stdout), (0, format!("{OK}{OK}")));
}

/// A daemon that knows nothing but version 2.
fn v2(command: i32, options: &'static [u8]) -> Serve {
    Box::new(move |stream| {
        let numbers = [102, 8 + options.len() as i32, command, 7];
        let want: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        let mut request = vec![0; want.len() + options.len()];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(request, [&want[..], options].concat());
        std::io::Write::write_all(stream, &[0; 4]).unwrap();
    })
}

#[test]
#[cfg(target_endian = "little")]
fn options_go_into_version_2_as_they_were_given() {
    let options = b"\xc8\0\0\0images\0\xc9\0\0\0\x02\0\0\0";
    let daemon = Fake::new(vec![v2(100, options), v2(101, options)]);
    let ran = run(&daemon.path(), "-p 7 -cr --v2 -d images -z zstd");
    assert_eq!((ran.exit, ran.stdout), (0, format!("{OK}{OK}")));
}

#[test]
fn an_old_daemon_is_asked_again_in_what_it_speaks() {
    // Once it is known to be one, it is not asked in our own protocol any more.
    let daemon = Fake::new(vec![
        old(None, -1),
        old(Some((100, 7)), 0),
        old(Some((101, 7)), 0),
    ]);
    let ran = run(&daemon.path(), "-p 7 -c -r");
    let whole = format!("{OK}{OK}");
    assert_eq!((ran.exit, &*ran.stdout, &*ran.stderr), (0, &*whole, ""));
    // One that just closes is one, too; with an option it is asked in version 2.
    let closing: Serve = Box::new(|stream| {
        hear(stream);
    });
    let daemon = Fake::new(vec![closing, old(Some((102, 16)), 0)]);
    let ran = run(&daemon.path(), "-p 7 -c -z lz4 --json");
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    let want = json!({"memcr": 1, "ok": true, "exit_code": 0, "protocol": "v2", "code": 0});
    assert_eq!((ran.exit, printed), (0, want));
}

#[test]
fn a_failure_in_both_protocols_is_told_as_such() {
    let daemon = Fake::new(vec![
        old(None, -1),
        Box::new(|stream| {
            stream.read_exact(&mut [0; 8]).unwrap();
        }),
    ]);
    let ran = run(&daemon.path(), "-p 7 -c");
    assert_eq!((ran.exit, &*ran.stdout), (15, ERROR));
    assert_eq!(
        ran.stderr,
        "memcr-client: cannot checkpoint process 7: the daemon does not speak this protocol: \
         it answered with 4 bytes of another, and in the old protocol: the daemon closed the \
         connection without an answer\n\
         hint: the daemon's log says why; it may not serve this user\n"
    );
}

#[test]
fn what_an_old_daemon_cannot_be_asked_is_not_tried() {
    for words in [
        "--tree 7 -c",
        "-p 7 -c --pipeline small",
        "-p 7 -c --idle",
        "--list",
        "-p 7 --abort",
    ] {
        let daemon = Fake::new(vec![old(None, -1)]);
        let ran = run(&daemon.path(), words);
        assert_eq!(ran.exit, 15, "{words}");
        assert!(
            ran.stderr.contains("does not speak this protocol"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn the_status_of_a_daemon_is_a_few_lines() {
    let with = json!({"ok": true, "exit_code": 0, "version": "0.1.0", "pid": 99,
        "uptime_seconds": 12000, "stopping": false, "saved_bytes": 5 << 20,
        "sessions": {"queued": 1, "storing": 2, "held": 3, "restoring": 0},
        "limits": {"checkpoints": 2, "sessions": 1000},
        "counters": {"checkpoints_done": 5, "restore_seconds": 0.0164471}});
    let ran = asked("--status", json!({"do": "status"}), with);
    assert_eq!(ran.exit, 0);
    assert_eq!(
        ran.stdout,
        "memcr 0.1.0, process 99, up for 3 h 20 min\n\
         \x20 sessions 1 queued, 2 storing, 3 held, 0 restoring\n\
         \x20 saved    5.0 MiB\n\
         \x20 limits   2 checkpoints at once, 1000 sessions\n\
         \n\
         COUNTER           VALUE\n\
         checkpoints_done  5\n\
         restore_seconds   0.016\n"
    );
    // One that says less is shown all the same.
    let ran = asked("--status", json!({"do": "status"}), done());
    assert!(ran.exit == 0 && ran.stdout.starts_with("memcr -, process -, up for -\n"));
}

#[test]
fn the_status_of_a_process_is_a_sentence() {
    let want = || json!({"do": "status", "pid": 7});
    let with = json!({"ok": true, "exit_code": 0, "pid": 7, "state": "held"});
    let ran = asked("--status -p 7", want(), with);
    assert_eq!(ran.stdout, "process 7: held\n");
    let with = json!({"ok": true, "exit_code": 0, "pid": 7, "state": "none",
        "ended": {"how": "undone", "at": 1_000_000_000, "exit_code": 7, "message": "disk full"}});
    let ran = asked("--status -p 7", want(), with);
    let (first, rest) = ran.stdout.split_once('\n').unwrap();
    assert!(
        first.starts_with("process 7: no session; the last one ended "),
        "{first}"
    );
    assert_eq!(rest, "  why      disk full\n");
}

#[test]
fn sessions_are_a_table() {
    let sessions = json!([
        {"pid": 7, "name": "a\tb", "state": "held", "since": 1, "age_seconds": 61,
         "rss_saved_bytes": 4096, "image": {"locator": "/tmp/pages-7.img"}, "pipeline": "lz4,file",
         "group": null, "uid": 0},
        {"pid": 12345, "name": "x", "state": "queued", "group": "tree:12345"},
    ]);
    let with = json!({"ok": true, "exit_code": 0, "sessions": sessions});
    let ran = asked("--list", json!({"do": "list"}), with);
    assert_eq!(
        ran.stdout,
        "PID    NAME  STATE   SINCE      SAVED    IMAGE             PIPELINE  GROUP\n\
         7      a\\tb  held    1 min ago  4.0 KiB  /tmp/pages-7.img  lz4,file  -\n\
         12345  x     queued  -          -        -                 -         tree:12345\n"
    );
    let with = json!({"ok": true, "exit_code": 0, "sessions": []});
    let ran = asked("--list", json!({"do": "list"}), with);
    assert_eq!(ran.stdout, "no sessions\n");
}

#[test]
fn an_abort_says_so() {
    let ran = asked(
        "--abort --tree 7",
        json!({"do": "abort", "tree": 7}),
        done(),
    );
    let want = "abort: process 7 and its descendants: done\n";
    assert_eq!((ran.exit, &*ran.stdout), (0, want));
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let socket = Path::new("/nonexistent");
    for (words, said) in [
        ("", "nothing to do: give -c, -r or both"),
        ("-p 7", "nothing to do"),
        ("-c", "-c needs one of -p, --tree and --cgroup"),
        (
            "-r -p 7 --tree 7",
            "-r needs one of -p, --tree and --cgroup",
        ),
        ("--abort", "--abort needs one of"),
        (
            "-c -p 7 --abort",
            "-c and --abort cannot be done at the same time",
        ),
        (
            "--list --status",
            "--status and --list cannot be done at the same time",
        ),
        ("--list -p 7", "--list is about all processes"),
        (
            "--status --tree 7",
            "--status is about one process (-p) or, without it, the daemon",
        ),
        (
            "--status -d /tmp",
            "-d says how to checkpoint, and means nothing to --status",
        ),
        (
            "-r -p 7 --pipeline x",
            "--pipeline says how to checkpoint, and means nothing to -r",
        ),
        ("-c -p 7 --pipeline x -z lz4", "cannot be used with"),
        (
            "-c -p 7 -v -d /tmp",
            "version 1 of the protocol can say neither a directory (-d) nor",
        ),
        ("-c -p 7 -v -z none", "leave out -v, or say --v2"),
        ("-c -p 7 -v --v2", "cannot be used with"),
        (
            "-c --tree 7 -v",
            "the old protocol (--v1) cannot say --tree",
        ),
        ("--list --v2", "the old protocol (--v2) cannot say --list"),
        (
            "-c -p 7 --v2 --pipeline x",
            "the old protocol (--v2) cannot say --pipeline",
        ),
        (
            "-c -p 7 --v1 --idle",
            "the old protocol (--v1) cannot say --idle",
        ),
        (
            "-r -p 7 --idle",
            "--idle says how to checkpoint, and means nothing to -r",
        ),
        ("-c -p 0", "0 is not in 1..=2147483647"),
        ("-c -p -4", "-4 is not in 1..=2147483647"),
        ("-c -p x", "invalid"),
        ("-c -p 7 -z gzip", "lz4, zstd, none"),
        ("-c -p 7 --timeout 0", "must be more than 0"),
        ("--man", "cannot be used with"),
    ] {
        let ran = run(socket, words);
        assert_eq!((ran.exit, &*ran.stdout), (2, ""), "{words}");
        assert!(ran.stderr.contains(said), "{words}\n{}", ran.stderr);
    }
}

#[test]
fn a_usage_error_is_an_object_too() {
    for (words, said) in [
        ("-c -r --json", "-c needs one of"),
        ("--json --bogus", "unexpected argument"),
    ] {
        let ran = run(Path::new("/no/such.sock"), words);
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        let message = object["error"]["message"].as_str().unwrap();
        assert_eq!((ran.exit, &object["exit_code"]), (2, &json!(2)), "{words}");
        assert!(message.contains(said), "{words}\n{message}");
        assert!(ran.stderr.starts_with("memcr-client: "), "{}", ran.stderr);
    }
    let ran = run(Path::new("/no/such.sock"), "-- --json");
    assert_eq!((ran.exit, &*ran.stdout), (2, ""));
}

#[test]
fn a_location_that_is_none_is_refused() {
    let ran = run(Path::new("70000"), "--list");
    assert_eq!(ran.exit, 2);
    let said = "70000 is not the number of a TCP port";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn a_request_that_no_daemon_takes_is_a_usage_error() {
    // The connection is made, and nothing is sent.
    let daemon = Fake::answering(|stream| assert_eq!(stream.read(&mut [0]).unwrap(), 0));
    let ran = run(&daemon.path(), "--cgroup app -c");
    assert_eq!((ran.exit, &*ran.stdout), (2, ERROR));
    assert!(
        ran.stderr.contains("`cgroup` is an absolute path"),
        "{}",
        ran.stderr
    );
}

#[test]
fn help_version_and_man_page_are_there() {
    let program = |words: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_memcr-client"));
        let output = program.args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let version = concat!("memcr-client ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(program(&["-V"]), version);
    assert!(program(&["-h"]).contains("--pipeline <NAME>"));
    let help = program(&["--help"]);
    assert!(
        help.contains("Exit codes:") && !help.contains("--man"),
        "{help}"
    );
    let man = program(&["--man"]);
    for part in [
        ".TH memcr",
        ".SH \"EXIT STATUS\"",
        ".SH EXAMPLES",
        "\\-\\-cgroup",
    ] {
        assert!(man.contains(part), "{part}\n{man}");
    }
}
