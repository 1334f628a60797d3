//! Clients that are slow, rude or gone: nobody else notices, and what they have asked for
//! is done.

use super::{As, Public, Scene, expect_code};
use crate::common::NOBODY;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::{DEADLINE, until};
use memcr_harness::{Context, Daemon, Result, Rig, Setup, Victim, Wire, ensure, proc, require};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("slow_clients", slow_clients),
            ("hangs_up_after_a_checkpoint", hangs_up),
            ("hangs_up_behind_many_requests", hangs_up_behind_many),
            (
                "hangs_up_behind_too_many_requests",
                hangs_up_behind_too_many,
            ),
            ("hangs_up_in_a_restore", hangs_up_in_a_restore),
            ("connections_of_one_user", connections_of_one_user),
            ("comes_and_goes", comes_and_goes),
            ("many_requests_of_one_user", many_requests_of_one_user),
            ("no_descriptors_are_left", no_descriptors_are_left),
        ],
    )
}

/// How long an answer may take while others misbehave.
const QUICK: Duration = Duration::from_secs(1);

fn expect_quick(daemon: &Daemon) -> Result {
    let begin = Instant::now();
    daemon.status()?;
    ensure(begin.elapsed() < QUICK, || {
        format!("an answer took {:?}", begin.elapsed())
    })
}

/// Ten seconds for each of them, at the same time; the only test that waits so long.
fn slow_clients() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let scene = Scene::with(rig, daemon)?;
    let (daemon, pid) = (&scene.daemon, scene.pid());
    daemon.status()?;
    let n_fds = daemon.n_fds();
    let v1 = [100i32.to_ne_bytes(), pid.to_ne_bytes()].concat();
    let mut clients = Vec::new();
    for at in daemon.locations() {
        for begin in [
            &b""[..],
            b"{",
            b"{\"memcr\":1,\"do\":\"status\"",
            &v1[..1],
            &v1[..7],
        ] {
            let mut wire = Wire::open(&at)?;
            wire.send(begin)?;
            clients.push(wire);
        }
        clients.push(flooded(Wire::open(&at)?, daemon)?);
    }
    expect_quick(daemon)?;
    let begin = Instant::now();
    for wire in &mut clients {
        wire.end()?;
        expect_quick(daemon)?;
    }
    let took = begin.elapsed();
    ensure(
        took > Duration::from_secs(8) && took < Duration::from_secs(25),
        || format!("they were closed after {took:?}"),
    )?;
    drop(clients);
    until("the descriptors to be closed", || {
        daemon.status().is_ok() && daemon.n_fds() <= n_fds
    })?;
    scene.quit()
}

/// One that asks and asks, and reads no answer.
fn flooded(mut wire: Wire, daemon: &Daemon) -> Result<Wire> {
    let requests = "{\"memcr\":1,\"do\":\"list\"}\n".repeat(100);
    let is_full = wire.flood(requests.as_bytes(), 100_000, daemon)?;
    ensure(is_full, || "the daemon reads for ever".into())?;
    Ok(wire)
}

/// The request has arrived, so it counts.
fn hangs_up() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).with_port()?.start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid();
    let v1 = [100i32.to_ne_bytes(), pid.to_ne_bytes()].concat();
    let own = format!(
        "{}\n",
        json!({ "memcr": 1, "do": "checkpoint", "pid": pid })
    );
    for at in scene.daemon.locations() {
        for request in [&v1[..], own.as_bytes()] {
            // Over TCP nobody knows whose socket it was once it is closed: the daemon has
            // it before.
            let mut wire = Wire::open(&at)?;
            scene.daemon.status()?;
            wire.send(request)?;
            drop(wire);
            scene.daemon.await_state(pid, "held")?;
            scene.expect_held()?;
            scene.daemon.restore(pid)?;
            scene.expect_free()?;
        }
    }
    scene.quit()
}

/// More than is read at once lies before the request that counts.
fn hangs_up_behind_many() -> Result {
    let mut scene = Scene::new()?;
    let pid = scene.pid();
    let filler = "{\"memcr\":1,\"do\":\"status\"}".to_owned() + &" ".repeat(1000) + "\n";
    let request = json!({ "memcr": 1, "do": "checkpoint", "pid": pid });
    let mut wire = scene.daemon.wire()?;
    scene.daemon.status()?;
    wire.send(format!("{}{request}\n", filler.repeat(40)).as_bytes())?;
    drop(wire);
    scene.daemon.await_state(pid, "held")?;
    scene.daemon.restore(pid)?;
    scene.expect_free()?;
    scene.quit()
}

/// Gone before the first answer, it has no more under way than one that stays.
fn hangs_up_behind_too_many() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).config("max_checkpoints = 1");
    let daemon = setup
        .memcr(|memcr| memcr.with_fault("sink.write=stop"))
        .start()?;
    let victims = (0..20).map(|_| Victim::start("memory", &["size=1M"]));
    let mut victims = victims.collect::<Result<Vec<_>>>()?;
    let mut lines = "{\"memcr\":1,\"do\":\"status\"}\n".to_owned();
    for victim in &victims {
        let request = json!({ "memcr": 1, "do": "checkpoint", "pid": victim.pid() });
        lines += &format!("{request}\n");
    }
    let mut wire = daemon.wire()?;
    daemon.status()?;
    daemon.signal(Signal::STOP)?;
    wire.send(lines.as_bytes())?;
    drop(wire);
    daemon.signal(Signal::CONT)?;
    let session = daemon.stopped_session()?;
    let sessions = daemon.status()?["sessions"].clone();
    let want = json!({ "queued": 15, "storing": 1, "held": 0, "restoring": 0 });
    ensure(sessions == want, || sessions.to_string())?;
    daemon.signal(Signal::TERM)?;
    proc::send(session, Signal::CONT)?;
    daemon.finish()?.expect(0)?;
    rig.expect_clean()?;
    victims.iter_mut().try_for_each(|it| it.verify().map(drop))
}

fn hangs_up_in_a_restore() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault("restore.populated=stop"));
    let mut scene = Scene::with(rig, setup.start()?)?;
    let pid = scene.pid();
    scene.daemon.checkpoint(pid)?;
    let mut wire = scene.daemon.wire()?;
    wire.say(&json!({ "memcr": 1, "do": "restore", "pid": pid }))?;
    let session = scene.daemon.stopped_session()?;
    drop(wire);
    scene.daemon.status()?;
    proc::send(session, Signal::CONT)?;
    scene.daemon.await_state(pid, "none")?;
    scene.expect_free()?;
    scene.quit()
}

/// 64 of one user, no more; others, and root, are served all the same.
fn connections_of_one_user() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let public = Public::new()?;
    let setup = Setup::new(&rig).socket(&public.socket());
    let daemon = setup.config("others = true").start()?;
    daemon.status()?;
    let n_fds = daemon.n_fds();
    let at = daemon.location();
    let wires = As::user(NOBODY).run(move || {
        let mut wires = Vec::new();
        for _ in 0..70 {
            let mut wire = Wire::open(&at)?;
            let asked = wire.ask(&json!({ "memcr": 1, "do": "list" }));
            wires.push((wire, asked.is_ok()));
        }
        Ok(wires)
    })?;
    let served: Vec<bool> = wires.iter().map(|(_, is_served)| *is_served).collect();
    let want = [vec![true; 64], vec![false; 6]].concat();
    ensure(served == want, || format!("served: {served:?}"))?;
    expect_quick(&daemon)?;
    let status = daemon.status()?;
    ensure(status["counters"]["connections_refused"] == 6, || {
        status.to_string()
    })?;
    drop(wires);
    until("the descriptors to be closed", || {
        daemon.status().is_ok() && daemon.n_fds() <= n_fds
    })?;
    daemon.stop().map(drop)
}

/// Whoever comes meanwhile waits, and the log is not filled.
fn no_descriptors_are_left() -> Result {
    let rig = Rig::new()?;
    let mut daemon = Daemon::start(&rig)?;
    let request = json!({ "memcr": 1, "do": "status" });
    let mut early = daemon.wire()?;
    expect_code(&early.ask(&request)?, 0)?;
    let pid = Pid::from_raw(daemon.pid().cast_signed());
    let limit = |current| Rlimit {
        current: Some(current),
        maximum: Some(1024),
    };
    prlimit(pid, Resource::Nofile, limit(3)).context("prlimit")?;
    let mut wire = daemon.wire()?;
    daemon.await_message("cannot take a connection")?;
    for _ in 0..20 {
        expect_code(&early.ask(&request)?, 0)?;
    }
    prlimit(pid, Resource::Nofile, limit(1024)).context("prlimit")?;
    expect_code(&wire.ask(&request)?, 0)?;
    drop((early, wire));
    let said = daemon.stop()?.err;
    let n_said = said.matches("cannot take a connection").count();
    ensure(n_said == 1, || format!("said {n_said} times"))
}

/// A thousand clients that connect and go, with a word or without.
fn comes_and_goes() -> Result {
    let mut scene = Scene::new()?;
    scene.daemon.checkpoint(scene.pid())?;
    let n_fds = scene.daemon.n_fds();
    for n in 0..1000 {
        let mut wire = scene.daemon.wire()?;
        match n % 4 {
            0 => {}
            1 => wire.send(b"{")?,
            2 => wire.send(&[100, 0, 0, 0, 1])?,
            _ => expect_code(&wire.ask(&json!({ "memcr": 1, "do": "list" }))?, 0)?,
        }
    }
    until("the descriptors to be closed", || {
        scene.daemon.status().is_ok() && scene.daemon.n_fds() <= n_fds + 1
    })?;
    expect_quick(&scene.daemon)?;
    scene.daemon.restore(scene.pid())?;
    scene
        .expect_free()
        .context(format!("within {DEADLINE:?}"))?;
    scene.quit()
}

/// A thousand that are denied, each after a look at all processes, of one who has hung up:
/// others are served in between, and the log is not filled.
fn many_requests_of_one_user() -> Result {
    require("root")?;
    const N: usize = 1000;
    let rig = Rig::new()?;
    let public = Public::new()?;
    let setup = Setup::new(&rig).socket(&public.socket());
    let daemon = setup.config("others = true").start()?;
    let at = daemon.location();
    let mut wire = As::user(NOBODY).run(move || Wire::open(&at))?;
    daemon.status()?;
    daemon.signal(Signal::STOP)?;
    let line = "{\"memcr\":1,\"do\":\"checkpoint\",\"tree\":1}\n";
    wire.send(line.repeat(N).as_bytes())?;
    drop(wire);
    let mut other = daemon.wire()?;
    other.say(&json!({ "memcr": 1, "do": "status" }))?;
    daemon.signal(Signal::CONT)?;
    let status = other.line()?.ok_or("no answer")?;
    let n_before = status["counters"]["requests"].as_u64();
    ensure(n_before < Some(N as u64 / 2), || {
        format!("{n_before:?} requests went before: {status}")
    })?;
    // Those of the status are counted too.
    let mut n_asked = 2;
    until("all requests to be served", || {
        n_asked += 1;
        let status = daemon.status();
        status.is_ok_and(|it| it["counters"]["requests"] == N + n_asked)
    })?;
    let finished = daemon.stop()?;
    let n_told = finished.err.matches("is denied").count();
    ensure(0 < n_told && n_told < N / 10, || {
        format!("told {n_told} times")
    })
}
