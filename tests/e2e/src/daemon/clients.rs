//! The clients: memcr-client from a shell, the C library, and the command line of memcr
//! beside a daemon.

use super::{Scene, expect_traced, runs};
use crate::common::expect_private;
use crate::table;
use libtest_mimic::Trial;
use memcr_client::{Location, Subject};
use memcr_harness::daemon::checkpoint_of;
use memcr_harness::{Context, Daemon, Finished, Memcr, Result, Rig, Setup, ensure, place, require};
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("client_procedures", procedures),
            ("client_old_protocols", old_protocols),
            ("client_choices", choices),
            ("client_tells", tells),
            ("client_abort_and_timeout", abort_and_timeout),
            ("client_without_a_daemon", without_a_daemon),
            ("client_usage", usage),
            ("c_library_shared", || c_library(false)),
            ("c_library_static", || c_library(true)),
            ("command_line_beside_a_daemon", command_line),
        ],
    )
}

const OK: &str = "Procedure finished with OK status.";
const ERROR: &str = "Procedure finished with ERROR status.";

fn client(at: &str, args: &[&str]) -> Result<Finished> {
    let memcr = Memcr::new().program(&place::memcr_client()?);
    memcr.args(["-l", at]).args(args).run()
}

/// A location as a command line has it.
fn word(at: &Location) -> String {
    match at {
        Location::Port(port) => port.to_string(),
        Location::Path(path) => path.display().to_string(),
    }
}

/// It prints these lines, and exits with that code.
fn expect(finished: &Finished, lines: &[&str], code: i32) -> Result {
    finished.expect(code)?;
    let printed: Vec<&str> = finished.out.lines().collect();
    ensure(printed == lines, || format!("want {lines:?}\n{finished}"))
}

struct Shell {
    scene: Scene,
    at: String,
    pid: String,
}

impl Shell {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let daemon = Setup::new(&rig).with_port()?.start()?;
        Self::with(Scene::with(rig, daemon)?)
    }

    fn with(scene: Scene) -> Result<Self> {
        Ok(Self {
            at: scene.daemon.socket().display().to_string(),
            pid: scene.pid().to_string(),
            scene,
        })
    }

    fn ask(&self, args: &[&str]) -> Result<Finished> {
        client(&self.at, &[&["-p", &self.pid], args].concat())
    }
}

/// `-c`, `-r`, both; short, long, bundled; over both kinds of sockets.
fn procedures() -> Result {
    let mut shell = Shell::new()?;
    for at in shell.scene.daemon.locations() {
        shell.at = word(&at);
        expect(&shell.ask(&["-r"])?, &[ERROR], 14)?;
        expect(&shell.ask(&["-c"])?, &[OK], 0)?;
        shell.scene.expect_held()?;
        expect(&shell.ask(&["-c"])?, &[ERROR], 13)?;
        expect(&shell.ask(&["-r"])?, &[OK], 0)?;
        shell.scene.expect_free()?;
        for both in [
            &["-c", "-r"][..],
            &["-r", "-c"],
            &["-cr"],
            &["--checkpoint", "--restore"],
        ] {
            expect(&shell.ask(both)?, &[OK, OK], 0)?;
            shell.scene.expect_free()?;
        }
    }
    let long = ["--location", &shell.at, "--pid", &shell.pid, "--checkpoint"];
    let memcr = Memcr::new().program(&place::memcr_client()?);
    expect(&memcr.clone().args(long).run()?, &[OK], 0)?;
    expect(&shell.ask(&["--restore"])?, &[OK], 0)?;
    // A held process: its checkpoint fails, and so it is not restored.
    shell.scene.daemon.checkpoint(shell.scene.pid())?;
    let both = shell.ask(&["-c", "-r"])?;
    both.expect(13)?;
    ensure(both.out.starts_with(ERROR), || both.to_string())?;
    // Whether -r was done all the same is its own business.
    let subject = Subject::Pid(shell.scene.pid().cast_signed());
    let _ = shell.scene.daemon.client()?.restore(subject, None);
    let nobody = client(&shell.at, &["-p", "2147483647", "-c"])?;
    expect(&nobody, &[ERROR], 5)?;
    nobody.says("2147483647")?;
    shell.scene.expect_free()?;
    shell.scene.quit()
}

fn old_protocols() -> Result {
    let mut shell = Shell::new()?;
    for version in ["-v", "--v1", "--v2"] {
        expect(&shell.ask(&[version, "-c"])?, &[OK], 0)?;
        shell.scene.expect_held()?;
        expect(&shell.ask(&[version, "-c"])?, &[ERROR], 1)?;
        expect(&shell.ask(&[version, "-r"])?, &[OK], 0)?;
        expect(&shell.ask(&[version, "-r"])?, &[ERROR], 1)?;
        shell.scene.expect_free()?;
    }
    let json = shell.ask(&["-v", "-c", "--json"])?;
    json.expect(0)?;
    let object = json.json()?;
    ensure(object["code"] == 0 && object["protocol"] == "v1", || {
        json.to_string()
    })?;
    expect(&shell.ask(&["-r"])?, &[OK], 0)?;
    shell.ask(&["-v", "-c", "-z", "lz4"])?.expect(2)?;
    shell.ask(&["-v", "-c", "-d", "/tmp"])?.expect(2)?;
    shell.ask(&["--v2", "--status"])?.expect(2)?;
    shell.scene.expect_free()?;
    shell.scene.quit()
}

/// `-d` and `-z`, in our own protocol and in version 2; `--pipeline`.
fn choices() -> Result {
    let rig = Rig::new()?;
    let elsewhere = rig.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere)?;
    let setup = Setup::new(&rig).config("[pipelines]\nsmall = \"zstd,file\"");
    let mut shell = Shell::with(Scene::with(rig, setup.start()?)?)?;
    let dir = elsewhere.display().to_string();
    for protocol in [&[][..], &["--v2"]] {
        for (word, pipeline) in [
            ("lz4", "lz4,crc32,file"),
            ("zstd", "zstd,crc32,file"),
            ("none", "crc32,file"),
            ("LZ4", "lz4,crc32,file"),
        ] {
            let args = [&["-c", "-z", word, "-d", &dir], protocol].concat();
            expect(&shell.ask(&args)?, &[OK], 0)?;
            let image = elsewhere.join(format!("pages-{}.img", shell.pid));
            expect_private(&image)?;
            let row = &shell.scene.daemon.list()?[0];
            ensure(row["pipeline"] == pipeline, || row.to_string())?;
            let args = [&["-r"], protocol].concat();
            expect(&shell.ask(&args)?, &[OK], 0)?;
            ensure(!image.exists(), || "the image is left".into())?;
        }
    }
    expect(&shell.ask(&["-c", "--pipeline", "small"])?, &[OK], 0)?;
    let row = &shell.scene.daemon.list()?[0];
    ensure(row["pipeline"] == "zstd,file", || row.to_string())?;
    expect(&shell.ask(&["-r"])?, &[OK], 0)?;
    shell.ask(&["-c", "--pipeline", "large"])?.expect(6)?;
    shell.ask(&["-c", "-z", "rar"])?.expect(2)?;
    shell.scene.expect_free()?;
    shell.scene.quit()
}

/// `--status`, `--list`, `--json`.
fn tells() -> Result {
    let mut shell = Shell::new()?;
    let at = shell.at.clone();
    client(&at, &["--list"])?.says("no sessions")?;
    let held = shell.ask(&["-c", "--json"])?;
    held.expect(0)?;
    let object = held.json()?;
    let is_right = object["memcr"] == 1
        && object["ok"] == true
        && object.get("id").is_none()
        && object["checkpoint"]["pid"] == shell.scene.pid();
    ensure(is_right, || held.to_string())?;
    let list = client(&at, &["--list"])?;
    list.expect(0)?;
    for word in [&shell.pid, "victim", "held", "lz4,crc32,file", "SAVED"] {
        list.says(word)?;
    }
    let list = client(&at, &["--list", "--json"])?.json()?;
    ensure(list["sessions"][0]["pid"] == shell.scene.pid(), || {
        list.to_string()
    })?;
    let status = client(&at, &["--status"])?;
    status.expect(0)?;
    status.says("1 held")?;
    let status = client(&at, &["--status", "--json"])?.json()?;
    ensure(status["pid"] == shell.scene.daemon.pid(), || {
        status.to_string()
    })?;
    shell.ask(&["--status"])?.says("held")?;
    let failed = shell.ask(&["-c", "--json"])?;
    failed.expect(13)?;
    let object = failed.json()?;
    ensure(object["ok"] == false && object["exit_code"] == 13, || {
        failed.to_string()
    })?;
    ensure(object["error"]["message"].is_string(), || {
        failed.to_string()
    })?;
    expect(&shell.ask(&["-r"])?, &[OK], 0)?;
    shell.ask(&["--status"])?.says("restored")?;
    let version = Memcr::new().program(&place::memcr_client()?);
    version.clone().arg("-V").run()?.says("memcr-client")?;
    version.clone().arg("-h").run()?.says("--checkpoint")?;
    version.arg("--man").run()?.says(".TH")?;
    shell.scene.expect_free()?;
    shell.scene.quit()
}

fn abort_and_timeout() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault("sink.write@3=delay:1000"));
    let mut shell = Shell::with(Scene::with(rig, setup.start()?)?)?;
    let late = shell.ask(&["-c", "--timeout", "0.1"])?;
    expect(&late, &[ERROR], 8)?;
    shell.scene.expect_free()?;
    shell.ask(&["--abort"])?.expect(14)?;
    shell.scene.quit()
}

fn without_a_daemon() -> Result {
    let rig = Rig::new()?;
    let at = rig.dir().join("socket");
    let at_text = at.display().to_string();
    for args in [
        &["-p", "1", "-c"][..],
        &["-p", "1", "-c", "-v"],
        &["--list"],
        &["--status"],
    ] {
        client(&at_text, args)?.expect(15)?;
    }
    // One that was killed leaves a socket at which nobody is.
    Daemon::start(&rig)?.kill()?;
    ensure(at.exists(), || "its socket is gone".into())?;
    let finished = client(&at_text, &["-p", "1", "-c"])?;
    expect(&finished, &[ERROR], 15)?;
    finished.says("no daemon listens there")?;
    // The next one takes its place.
    Daemon::start(&rig)?.stop().map(drop)
}

fn usage() -> Result {
    for args in [
        &[][..],
        &["-c"],
        &["-p", "1"],
        &["-p", "0", "-c"],
        &["-p", "-1", "-c"],
        &["-p", "x", "-c"],
        &["-p", "1", "-c", "--list"],
        &["-p", "1", "--tree", "1", "-c"],
        &["-p", "1", "-c", "-v", "--v2"],
        &["-p", "1", "-c", "--timeout", "0"],
        &["--list", "-p", "1"],
        &["--list", "-z", "lz4"],
    ] {
        client("/nonexistent/socket", args)?.expect(2)?;
    }
    let nowhere = Memcr::new().program(&place::memcr_client()?);
    nowhere.args(["-p", "1", "-c"]).run()?.expect(2)
}

/// What the C library is used like: says every code that it is answered.
const USE: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <libmemcrclient.h>

static int ask(const char *at, int (*what)(int, unsigned), unsigned pid)
{
    int cd = memcr_client_connect(at);
    if (cd < 0)
        return printf("no daemon\n"), -3;
    int code = what(cd, pid);
    memcr_client_disconnect(cd);
    return code;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    unsigned pid = strtoul(argv[2], NULL, 10);
    printf("%d\n", ask(argv[1], memcr_client_restore, pid));
    printf("%d\n", ask(argv[1], memcr_client_checkpoint, pid));
    printf("%d\n", ask(argv[1], memcr_client_checkpoint, pid));
    printf("%d\n", ask(argv[1], memcr_client_restore, pid));
    printf("%d\n", ask(argv[1], memcr_client_checkpoint, 0));
    printf("%d\n", ask(argv[1], memcr_client_checkpoint, 2147483647u));
    printf("%d\n", ask(argv[1], memcr_client_checkpoint, 1));
    memcr_client_disconnect(-1);
    return memcr_client_connect("/nonexistent/socket") == -1 && errno == ENOENT ? 0 : 1;
}
"#;

fn c_library(is_static: bool) -> Result {
    require("gcc")?;
    let (lib, include) = place::client_library()?;
    let mut shell = Shell::new()?;
    let (source, program) = (
        shell.scene.rig.dir().join("use.c"),
        shell.scene.rig.dir().join("use"),
    );
    std::fs::write(&source, USE)?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(&source);
    gcc.arg("-I").arg(include);
    match is_static {
        true => gcc
            .arg(lib.join("libmemcrclient.a"))
            .args(["-lpthread", "-ldl", "-lm"]),
        false => gcc.arg("-L").arg(&lib).arg("-lmemcrclient"),
    };
    let built = gcc.output().context("run gcc")?;
    ensure(built.status.success(), || {
        String::from_utf8_lossy(&built.stderr).into_owned()
    })?;
    for at in shell.scene.daemon.locations() {
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", &lib);
        let used = command.args([&word(&at), &shell.pid]).output()?;
        let out = String::from_utf8_lossy(&used.stdout).into_owned();
        let want = "-2\n0\n-2\n0\n-2\n-2\n-1\n";
        ensure(used.status.success() && out == want, || {
            format!("{}: {out:?}, want {want:?}", used.status)
        })?;
        shell.scene.expect_free()?;
    }
    shell.scene.quit()
}

/// What the daemon holds is the daemon's; what nobody attends is anybody's.
fn command_line() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let mut scene = Scene::with(rig, setup.clone().start()?)?;
    let pid = scene.pid();
    scene.daemon.checkpoint(pid)?;
    for memcr in [
        scene.rig.restore(pid),
        scene.rig.recover(pid),
        scene.rig.checkpoint(pid),
    ] {
        memcr.run()?.expect(13)?;
    }
    let refused = scene.rig.restore(pid).run()?;
    refused.says(&format!("memcr-client -l PORT|PATH -p {pid} -r"))?;
    scene.expect_held()?;
    scene.daemon.restore(pid)?;
    // Parked by the command line, restored by the daemon …
    scene.rig.checkpoint(pid).run()?.expect(0)?;
    expect_traced(pid, false)?;
    let rows = scene.daemon.list()?;
    ensure(rows.len() == 1 && rows[0]["attended"] == false, || {
        format!("{rows:?}")
    })?;
    scene.daemon.refused(checkpoint_of(pid), 13)?;
    scene.daemon.restore(pid)?;
    scene.expect_free()?;
    // … and the other way round.
    scene.daemon.checkpoint(pid)?;
    scene.daemon.stop()?;
    scene.daemon = setup.start()?;
    scene.daemon.await_state(pid, "held")?;
    scene.rig.restore(pid).run()?.expect(0)?;
    ensure(scene.daemon.list()?.is_empty(), || {
        "it is listed still".into()
    })?;
    scene.daemon.checkpoint(pid)?;
    scene.expect_held()?;
    scene.daemon.restore(pid)?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    scene.quit()
}
