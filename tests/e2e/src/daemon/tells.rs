//! What the daemon tells without being asked: the service manager (sd_notify(3),
//! sd_watchdog_enabled(3)), the log, and the file for Prometheus.

use super::family::command_line;
use super::{Scene, expect_code, small};
use crate::table;
use libtest_mimic::Trial;
use memcr_client::Location;
use memcr_harness::daemon::Setup;
use memcr_harness::wait::{DEADLINE, until_some};
use memcr_harness::{Context, Daemon, Memcr, Result, Rig, Victim, Wire, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("tells_its_service_manager", tells_its_service_manager),
            ("is_no_service", is_no_service),
            (
                "logs_one_object_for_each_event",
                logs_one_object_for_each_event,
            ),
            ("log_that_cannot_be_written", log_that_cannot_be_written),
            ("counts_for_prometheus", counts_for_prometheus),
        ],
    )
}

/// A checkpoint and a restore, and everything said on the way.
fn session_of(setup: Setup, rig: Rig) -> Result<(Rig, String, u32)> {
    let daemon: Daemon = setup.start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid();
    scene.daemon.checkpoint(pid)?;
    scene.daemon.restore(pid)?;
    scene.expect_free()?;
    let Scene {
        daemon,
        victim,
        rig,
        ..
    } = scene;
    let finished = daemon.stop()?;
    victim.quit()?;
    Ok((rig, finished.err, pid))
}

fn logs_one_object_for_each_event() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.args(["--log-format", "json"]));
    let (rig, said, pid) = session_of(setup, rig)?;
    rig.expect_clean()?;
    let mut of_target = Vec::new();
    for line in said.lines() {
        let event: Value = serde_json::from_str(line).context(format!("`{line}` is no object"))?;
        let is_whole = event["time"].is_f64() && event["level"].is_string();
        ensure(is_whole && event["message"].is_string(), || {
            format!("time, level or message is missing: {event}")
        })?;
        if event["pid"] == pid {
            of_target.push(event);
        }
    }
    let words = [" is held", " is restored"];
    let said = |event: &Value, word: &str| {
        let message = event["message"].as_str();
        message.is_some_and(|message| message.ends_with(word))
    };
    ensure(of_target.len() == 2, || format!("events: {of_target:?}"))?;
    ensure(
        of_target
            .iter()
            .zip(words)
            .all(|(event, word)| said(event, word)),
        || format!("want {words:?}: {of_target:?}"),
    )?;
    ensure(
        of_target[0]["rss_before_bytes"].as_u64() > Some(4 << 20),
        || format!("no number: {}", of_target[0]),
    )
}

/// The disk that the log is on is full: what cannot be said is done all the same.
fn log_that_cannot_be_written() -> Result {
    let rig = Rig::new()?;
    let mut victim = small()?;
    let pid = victim.pid();
    let mute = |memcr: Memcr| memcr.via(&["sh", "-c", "exec \"$@\" 2> /dev/full", "sh"]);
    mute(rig.memcr(pid)).args(["-n", "-vv"]).run()?.expect(0)?;
    rig.expect_clean()?;
    victim.verify()?;
    let at = Location::Path(rig.dir().join("socket"));
    let set = format!("file.dir={}", rig.dir_text());
    let memcr = Memcr::new().args(["daemon", "--pipeline", rig.pipeline(), "--set", &set]);
    let memcr = memcr.args(["--listen", &at.to_string(), "--state-dir"]);
    let running = mute(memcr.arg(rig.state_dir())).start()?;
    let mut wire = until_some("the daemon to listen", || Wire::open(&at).ok())?;
    for verb in ["checkpoint", "restore"] {
        let answer = wire.ask(&json!({ "memcr": 1, "do": verb, "pid": pid }))?;
        expect_code(&answer, 0)?;
    }
    running.signal(Signal::TERM)?;
    running.finish()?.expect(0)?;
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// The file is written at the end at the latest, as a whole.
fn counts_for_prometheus() -> Result {
    let rig = Rig::new()?;
    let path = rig.dir().join("memcr.prom");
    let setup = Setup::new(&rig).config(&format!("metrics = {path:?}"));
    let (_rig, _, _) = session_of(setup, rig)?;
    let text = std::fs::read_to_string(&path).context(path.display())?;
    let number = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<f64>().ok())
    };
    for (name, least) in [
        ("memcr_checkpoints_total", 1.0),
        ("memcr_restores_total", 1.0),
        ("memcr_stored_bytes_total", 1e6),
        ("memcr_restored_bytes_total", 1e6),
        ("memcr_checkpoint_seconds_total", 1e-5),
        ("memcr_restore_seconds_total", 1e-5),
    ] {
        ensure(number(name).is_some_and(|number| number >= least), || {
            format!(
                "{name} is {:?}, at least {least} is right:\n{text}",
                number(name)
            )
        })?;
    }
    ensure(
        number("memcr_sessions{state=\"held\"}") == Some(0.0),
        || text.clone(),
    )
}

/// Ready when clients can connect, and not before; alive again and again, with a session
/// under way too; ending when it is told to end, and alive up to there.
fn tells_its_service_manager() -> Result {
    let rig = Rig::new()?;
    let path = rig.dir().join("notify");
    let said = manager(&path)?;
    let setup = Setup::new(&rig).memcr(|memcr| {
        let memcr = memcr.env("NOTIFY_SOCKET", &path);
        memcr.env("WATCHDOG_USEC", "1000000")
    });
    let daemon = setup.start()?;
    let first = hear(&said)?;
    ensure(first == "READY=1", || {
        format!("the first word is `{first}`")
    })?;
    daemon.status()?;
    await_words(&said, &["WATCHDOG=1"; 3])?;

    let mut victim: Victim = small()?;
    daemon.checkpoint(victim.pid())?;
    await_words(&said, &["WATCHDOG=1"; 3])?;
    daemon.restore(victim.pid())?;

    daemon.signal(Signal::TERM)?;
    await_words(&said, &["STOPPING=1"])?;
    daemon.finish()?.expect(0)?;
    std::fs::remove_file(&path).context(path.display())?;
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// `memcr checkpoint --tree`, started by a service, does not speak for that.
fn is_no_service() -> Result {
    let rig = Rig::new()?;
    let path = rig.dir().join("notify");
    let manager = UnixDatagram::bind(&path).context(path.display())?;
    manager.set_nonblocking(true)?;
    let mut victim = small()?;
    let which = ["--tree", &victim.pid().to_string()];
    for verb in ["checkpoint", "restore"] {
        let memcr = command_line(&rig, verb, &which).env("NOTIFY_SOCKET", &path);
        memcr.env("WATCHDOG_USEC", "1000000").run()?.expect(0)?;
        let mut word = [0; 64];
        let heard = manager.recv(&mut word);
        ensure(heard.is_err(), || {
            format!("{verb}: {}", String::from_utf8_lossy(&word))
        })?;
    }
    std::fs::remove_file(&path).context(path.display())?;
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// A service manager that listens at `path`, and never lets anybody wait.
fn manager(path: &std::path::Path) -> Result<Receiver<String>> {
    let socket = UnixDatagram::bind(path).context(path.display())?;
    let (say, said) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        // Until the test is over and nobody hears any more.
        while let Ok(n) = socket.recv(&mut bytes) {
            let words = String::from_utf8_lossy(&bytes[..n]).trim_end().to_owned();
            if say.send(words).is_err() {
                return;
            }
        }
    });
    Ok(said)
}

fn hear(said: &Receiver<String>) -> Result<String> {
    said.recv_timeout(DEADLINE).context("hear of the daemon")
}

/// Waits for these, among others in any number.
fn await_words(said: &Receiver<String>, words: &[&str]) -> Result {
    for word in words {
        while hear(said)? != *word {}
    }
    Ok(())
}
