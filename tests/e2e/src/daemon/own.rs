//! Our own protocol: every verb, the shape of every answer, and what is refused.

use super::{Scene, expect_code, small};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::{Result, Rig, Setup, Wire, ensure, proc};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("own_every_verb", every_verb),
            ("own_choices", choices),
            ("own_choices_not_allowed", choices_not_allowed),
            ("own_pipelined", pipelined),
            ("own_half_closed", half_closed),
            ("own_wrong_requests", wrong_requests),
            ("own_longest_line", longest_line),
            ("own_17th_request", seventeenth),
            ("own_restore_in_time", restore_in_time),
        ],
    )
}

/// The keys that an answer must have, whatever else is in it.
fn expect_keys(answer: &Value, keys: &[&str]) -> Result {
    let missing: Vec<_> = keys
        .iter()
        .filter(|key| answer.get(key).is_none())
        .collect();
    ensure(missing.is_empty(), || format!("no {missing:?} in {answer}"))
}

/// Good news: of this version, for this request.
fn expect_done(answer: &Value, id: &Value, keys: &[&str]) -> Result {
    expect_code(answer, 0)?;
    ensure(
        answer["memcr"] == 1 && answer["ok"] == true && answer["id"] == *id,
        || format!("want the answer to {id}: {answer}"),
    )?;
    expect_keys(answer, keys)
}

/// Bad news: with everything that it must say.
fn expect_failed(answer: &Value, code: u8) -> Result {
    expect_code(answer, code)?;
    ensure(answer["memcr"] == 1 && answer["ok"] == false, || {
        answer.to_string()
    })?;
    expect_keys(answer, &["meaning", "error"])?;
    let error = &answer["error"];
    let is_whole = error["message"].is_string()
        && error["causes"]
            .as_array()
            .is_some_and(|causes| !causes.is_empty())
        && error.get("hint").is_some();
    ensure(is_whole, || format!("half an error: {answer}"))
}

fn every_verb() -> Result {
    let mut scene = Scene::new()?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    let mut ask = |id: Value, mut request: Value, keys: &[&str]| -> Result<Value> {
        request["memcr"] = json!(1);
        request["id"] = id.clone();
        let answer = wire.ask(&request)?;
        expect_done(&answer, &id, keys)?;
        Ok(answer)
    };
    let status = ask(
        json!(1),
        json!({ "do": "status" }),
        &[
            "version",
            "pid",
            "uptime_seconds",
            "stopping",
            "sessions",
            "saved_bytes",
            "limits",
            "counters",
        ],
    )?;
    ensure(status["pid"] == scene.daemon.pid(), || status.to_string())?;
    let stages = ask(
        json!(-2.5),
        json!({ "do": "stages" }),
        &["stages", "searched"],
    )?;
    ensure(stages.to_string().contains("lz4"), || stages.to_string())?;
    let list = ask(json!(""), json!({ "do": "list" }), &["sessions"])?;
    ensure(list["sessions"] == json!([]), || list.to_string())?;
    let none = ask(
        json!("x"),
        json!({ "do": "status", "pid": pid }),
        &["pid", "state"],
    )?;
    ensure(none["state"] == "none" && none["ended"].is_null(), || {
        none.to_string()
    })?;
    let request = json!({ "do": "checkpoint", "pid": pid, "timeout": 60.5 });
    let held = ask(json!("c"), request, &["pipeline", "checkpoint"])?;
    ensure(held["checkpoint"]["pid"] == pid, || held.to_string())?;
    scene.expect_held()?;
    let list = ask(json!("l"), json!({ "do": "list" }), &["sessions"])?;
    let row = &list["sessions"][0];
    expect_keys(
        row,
        &[
            "pid",
            "name",
            "state",
            "since",
            "age_seconds",
            "rss_before_bytes",
            "rss_held_bytes",
            "rss_saved_bytes",
            "image",
            "pipeline",
            "group",
            "uid",
        ],
    )?;
    let is_right = row["pid"] == pid
        && row["name"] == "victim"
        && row["state"] == "held"
        && row["pipeline"] == "lz4,crc32,file"
        && row["uid"] == rustix::process::geteuid().as_raw()
        && row["group"].is_null()
        && row["image"] == scene.rig.image(pid).display().to_string();
    ensure(is_right, || row.to_string())?;
    let status = ask(json!("s"), json!({ "do": "status" }), &["saved_bytes"])?;
    let is_right = status["sessions"]["held"] == 1
        && status["saved_bytes"] == row["rss_saved_bytes"]
        && status["counters"]["checkpoints"] == 1;
    ensure(is_right, || status.to_string())?;
    let request = json!({ "do": "restore", "pid": pid, "timeout": 60 });
    let back = ask(json!("r"), request, &["pid", "outcome", "restore"])?;
    ensure(
        back["outcome"] == "restored" && back["restore"]["pid"] == pid,
        || back.to_string(),
    )?;
    let ended = ask(
        json!("e"),
        json!({ "do": "status", "pid": pid }),
        &["ended"],
    )?;
    let ended = &ended["ended"];
    let is_right = ended["how"] == "restored" && ended["exit_code"] == 0 && ended["at"].is_u64();
    ensure(is_right, || ended.to_string())?;
    // Without an id there is none; null is as if it were not there.
    let answer = wire.ask(&json!({ "memcr": 1, "do": "list", "id": null, "pid": null }))?;
    expect_code(&answer, 0)?;
    ensure(answer.get("id").is_none(), || answer.to_string())?;
    drop(wire);
    scene.expect_free()?;
    scene.quit()
}

/// Pipeline, compression and directory, as a client may choose them.
fn choices() -> Result {
    let rig = Rig::new()?;
    let pipelines = "[pipelines]\nsmall = \"zstd,crc32,file\"\n";
    let dir = format!("[stage.file]\ndir = \"{}\"", rig.dir_text());
    let daemon = Setup::new(&rig).config(pipelines).config(&dir).start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    for (choice, pipeline) in [
        (json!({ "pipeline": "small" }), "zstd,crc32,file"),
        (json!({ "compress": "none" }), "crc32,file"),
        (json!({ "compress": "zstd" }), "zstd,crc32,file"),
        (json!({}), "lz4,crc32,file"),
    ] {
        let mut request = json!({ "memcr": 1, "do": "checkpoint", "pid": pid });
        for (key, value) in choice.as_object().into_iter().flatten() {
            request[key] = value.clone();
        }
        expect_code(&wire.ask(&request)?, 0)?;
        let row = &scene.daemon.list()?[0];
        ensure(row["pipeline"] == pipeline, || format!("{choice}: {row}"))?;
        scene.daemon.restore(pid)?;
        scene.expect_free()?;
    }
    drop(wire);
    scene.quit()
}

/// What the operator does not allow.
fn choices_not_allowed() -> Result {
    let rig = Rig::new()?;
    let allowed = rig.dir().join("allowed");
    std::fs::create_dir(&allowed)?;
    let config = format!(
        "dirs = [\"{}\"]\ncompress = false\npipelines = []\n[pipelines]\nsmall = \"zstd,file\"",
        allowed.display()
    );
    let daemon = Setup::new(&rig).config(&config).start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let mut wire = scene.daemon.wire()?;
    let outside = scene.rig.dir_text();
    for choice in [
        json!({ "pipeline": "small" }),
        json!({ "pipeline": "unheard-of" }),
        json!({ "compress": "lz4" }),
        json!({ "dir": outside }),
        json!({ "dir": "/" }),
    ] {
        let mut request = json!({ "memcr": 1, "do": "checkpoint", "pid": scene.pid() });
        for (key, value) in choice.as_object().into_iter().flatten() {
            request[key] = value.clone();
        }
        expect_failed(&wire.ask(&request)?, 6)?;
    }
    drop(wire);
    scene.expect_free()?;
    scene.quit()
}

/// Many at once on one connection: each is answered once, in any order.
fn pipelined() -> Result {
    let mut scene = Scene::new()?;
    let mut other = small()?;
    let requests = [
        json!({ "memcr": 1, "id": 1, "do": "status" }),
        json!({ "memcr": 1, "id": 2, "do": "checkpoint", "pid": scene.pid() }),
        json!({ "memcr": 1, "id": "3", "do": "stages" }),
        json!({ "memcr": 1, "id": 4, "do": "checkpoint", "pid": other.pid() }),
        json!({ "memcr": 1, "id": "five", "do": "list" }),
        json!({ "memcr": 1, "id": 6, "do": "status", "pid": other.pid() }),
        json!({ "memcr": 1, "id": 7, "do": "restore", "pid": i32::MAX }),
    ];
    let lines: String = requests
        .iter()
        .map(|request| format!("{request}\n"))
        .collect();
    let mut wire = scene.daemon.wire()?;
    wire.send(lines.as_bytes())?;
    let mut answers = BTreeMap::new();
    for _ in &requests {
        let answer = wire.line()?.ok_or("closed too early")?;
        let code = answer["exit_code"].as_u64();
        answers.insert(answer["id"].to_string(), code);
    }
    for request in &requests {
        let want = if request["id"] == 7 { 14 } else { 0 };
        let got = answers.get(&request["id"].to_string());
        ensure(got == Some(&Some(want)), || {
            format!("{request}: {answers:?}")
        })?;
    }
    scene.daemon.restore(other.pid())?;
    other.verify()?;
    scene.daemon.restore(scene.pid())?;
    scene.expect_free()?;
    drop(wire);
    scene.quit()
}

/// Who sends nothing more gets all answers, then the end.
fn half_closed() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let mut scene = Scene::with(rig, daemon)?;
    for at in scene.daemon.locations() {
        for verb in ["checkpoint", "restore"] {
            let mut wire = Wire::open(&at)?;
            wire.say(&json!({ "memcr": 1, "do": "stages" }))?;
            wire.say(&json!({ "memcr": 1, "do": verb, "pid": scene.pid() }))?;
            wire.half_close()?;
            for _ in 0..2 {
                let answer = wire.line()?.ok_or("closed too early")?;
                expect_code(&answer, 0)?;
            }
            ensure(wire.line()?.is_none(), || "no end".into())?;
        }
        scene.expect_free()?;
    }
    scene.quit()
}

/// Each is refused, with its id where that can be read, and the next is served.
fn wrong_requests() -> Result {
    let mut scene = Scene::new()?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    for line in [
        "{",
        "{}",
        "{]",
        "{\"memcr\":1}",
        "{\"memcr\":1,\"do\":\"list\"",
        "[1]",
        "",
        "null",
        "\u{feff}{}",
        "{\"memcr\":1,\"do\":\"list\"} {\"memcr\":1,\"do\":\"list\"}",
    ] {
        // The first byte of a connection must be a brace.
        wire.send(format!("{line}\n").as_bytes())?;
        let answer = wire.line()?.ok_or_else(|| format!("closed after {line}"))?;
        expect_failed(&answer, 2)?;
    }
    wire.send(b"{\"memcr\":1,\"do\":\"\xff\"}\n")?;
    expect_failed(&wire.line()?.ok_or("closed")?, 2)?;
    for request in [
        json!({ "memcr": 2, "do": "list" }),
        json!({ "memcr": "1", "do": "list" }),
        json!({ "do": "list" }),
        json!({ "memcr": 1, "do": "reboot" }),
        json!({ "memcr": 1, "do": 100 }),
        json!({ "memcr": 1, "do": "list", "pid": pid }),
        json!({ "memcr": 1, "do": "list", "colour": "red" }),
        json!({ "memcr": 1, "do": "checkpoint" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "tree": pid }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "colour": null }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": "1" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": 1.5 }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": 1u64 << 32 }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "dir": "relative" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "dir": "/a/../b" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "dir": "/a\0b" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "compress": "rar" }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "timeout": 0 }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "timeout": -1 }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "timeout": 1e300 }),
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid, "pipeline": "a", "compress": "lz4" }),
        json!({ "memcr": 1, "do": "checkpoint", "cgroup": "relative" }),
        json!({ "memcr": 1, "do": "restore", "pid": pid, "dir": "/tmp" }),
        json!({ "memcr": 1, "do": "abort", "pid": pid, "timeout": 1 }),
        json!({ "memcr": 1, "do": "status", "tree": pid }),
    ] {
        let mut request = request;
        request["id"] = json!("w");
        let answer = wire.ask(&request)?;
        expect_failed(&answer, 2).map_err(|trouble| format!("{request}: {trouble}"))?;
        ensure(answer["id"] == "w", || format!("{request}: {answer}"))?;
    }
    for id in [json!([1]), json!({}), json!(true), json!("x".repeat(257))] {
        let answer = wire.ask(&json!({ "memcr": 1, "do": "list", "id": id }))?;
        expect_failed(&answer, 2)?;
        ensure(answer.get("id").is_none(), || answer.to_string())?;
    }
    wire.send(b"{\"memcr\":1,\"do\":\"list\",\"do\":\"list\"}\n")?;
    expect_failed(&wire.line()?.ok_or("closed")?, 2)?;
    for (pid, code) in [(0, 5), (-1, 5), (i64::from(i32::MAX), 5)] {
        let answer = wire.ask(&json!({ "memcr": 1, "do": "checkpoint", "pid": pid }))?;
        let got = answer["exit_code"].as_u64();
        ensure(got == Some(code) || got == Some(2), || {
            format!("pid {pid}: {answer}")
        })?;
    }
    expect_code(&wire.ask(&json!({ "memcr": 1, "do": "list" }))?, 0)?;
    drop(wire);
    scene.expect_free()?;
    scene.quit()
}

/// 64 KiB with its end, and not a byte more.
fn longest_line() -> Result {
    const MAX: usize = 64 << 10;
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let line = |len: usize| {
        let request = "{\"memcr\":1,\"id\":1,\"do\":\"list\"}";
        format!("{request}{}\n", " ".repeat(len - 1 - request.len()))
    };
    for at in daemon.locations() {
        let mut wire = Wire::open(&at)?;
        for _ in 0..2 {
            wire.send(line(MAX).as_bytes())?;
            expect_code(&wire.line()?.ok_or("closed")?, 0)?;
        }
        wire.send(line(MAX + 1).as_bytes())?;
        expect_failed(&wire.line()?.ok_or("closed, without an answer")?, 2)?;
        ensure(wire.line()?.is_none(), || "it is not closed".into())?;
        // Refused before it ends, if it ever does, and told so.
        let mut wire = Wire::open(&at)?;
        wire.send(format!("{{{}", " ".repeat(MAX + 30_000)).as_bytes())?;
        expect_failed(&wire.line()?.ok_or("closed, without an answer")?, 2)?;
        ensure(wire.line()?.is_none(), || "it is not closed".into())?;
    }
    daemon.stop().map(drop)
}

/// Sixteen wait, the seventeenth is told so, and the sixteen are served.
fn seventeenth() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault("sink.write@3=stop"));
    let mut scene = Scene::with(rig, setup.start()?)?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    wire.say(&json!({ "memcr": 1, "id": 1, "do": "checkpoint", "pid": pid }))?;
    let session = scene.daemon.stopped_session()?;
    for id in 2..=16 {
        wire.say(&json!({ "memcr": 1, "id": id, "do": "restore", "pid": pid }))?;
    }
    for id in 17..20 {
        let answer = wire.ask(&json!({ "memcr": 1, "id": id, "do": "list" }))?;
        expect_failed(&answer, 15)?;
        ensure(answer["id"] == id, || answer.to_string())?;
    }
    proc::send(session, Signal::CONT)?;
    for _ in 1..=16 {
        let answer = wire.line()?.ok_or("closed too early")?;
        expect_code(&answer, if answer["id"] == 1 { 8 } else { 0 })?;
    }
    expect_code(&wire.ask(&json!({ "memcr": 1, "do": "list" }))?, 0)?;
    drop(wire);
    scene.expect_free()?;
    scene.quit()
}

/// Who does not want to wait for a restore is told so, and it goes on.
fn restore_in_time() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault("restore.populated=stop"));
    let mut scene = Scene::with(rig, setup.start()?)?;
    let pid = scene.pid();
    scene.daemon.checkpoint(pid)?;
    let mut wire = scene.daemon.wire()?;
    let request = json!({ "memcr": 1, "do": "restore", "pid": pid, "timeout": 0.1 });
    expect_failed(&wire.ask(&request)?, 12)?;
    let status = scene.daemon.status_of(pid)?;
    ensure(status["state"] == "restoring", || status.to_string())?;
    let session = scene.daemon.stopped_session()?;
    // One who waits, and one who has no time again.
    wire.say(&json!({ "memcr": 1, "id": 2, "do": "restore", "pid": pid }))?;
    scene.daemon.status()?;
    proc::send(session, Signal::CONT)?;
    expect_code(&wire.line()?.ok_or("closed")?, 0)?;
    drop(wire);
    scene.expect_free()?;
    scene.quit()
}
