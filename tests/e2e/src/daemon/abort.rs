//! Checkpoints that are stopped, and the queue: with sessions that stand still in the
//! middle, so that nothing depends on who is faster.

use super::{Scene, runs, small};
use crate::common::heir_of;
use crate::table;
use libtest_mimic::Trial;
use memcr_client::{Ask, Subject};
use memcr_harness::daemon::{abort_of, checkpoint_of, restore_of};
use memcr_harness::{
    Allow, Context, Daemon, Result, Rig, Setup, Snapshot, Wire, ensure, proc, require,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("restore_stops_a_checkpoint", || stopped_by("restore")),
            ("abort_stops_a_checkpoint", || stopped_by("abort")),
            ("v1_restore_stops_a_checkpoint", v1_restore),
            ("timeout_stops_a_checkpoint", timeout),
            ("timeout_in_the_queue", timeout_in_the_queue),
            ("stop_too_late_is_a_restore", too_late),
            ("abort_of_others", abort_of_others),
            ("restore_passes_the_queue", restore_passes_the_queue),
            ("pid_used_again_in_the_queue", pid_used_again),
            ("sessions_limit", sessions_limit),
        ],
    )
}

/// A daemon whose sessions stop themselves at this point.
fn stopping(rig: &Rig, orders: &str, config: &str) -> Result<Daemon> {
    let setup = Setup::new(rig).config(config);
    setup.memcr(|memcr| memcr.with_fault(orders)).start()
}

fn request(verb: &str, pid: u32) -> Value {
    json!({ "memcr": 1, "id": verb, "do": verb, "pid": pid })
}

/// Asks on a connection of its own; the daemon knows of it when this returns.
fn begun(daemon: &Daemon, verb: &str, pid: u32) -> Result<Wire> {
    let mut wire = daemon.wire()?;
    wire.say(&request(verb, pid))?;
    daemon.status()?;
    Ok(wire)
}

fn expect_answer(wire: &mut Wire, code: u8) -> Result<Value> {
    let answer = wire.line()?.ok_or("closed, without an answer")?;
    ensure(answer["exit_code"] == code, || {
        format!("want exit code {code}: {answer}")
    })?;
    Ok(answer)
}

/// Both clients are answered, and the target runs.
fn stopped_by(verb: &str) -> Result {
    for point in [
        "sink.write=stop",
        "sink.write@3=stop",
        "checkpoint.frozen=stop",
    ] {
        let rig = Rig::new()?;
        let daemon = stopping(&rig, point, "")?;
        let mut scene = Scene::with(rig, daemon)?;
        let pid = scene.pid();
        let mut first = begun(&scene.daemon, "checkpoint", pid)?;
        let session = scene.daemon.stopped_session()?;
        let state = scene.daemon.status_of(pid)?;
        ensure(state["state"] == "storing", || state.to_string())?;
        scene.daemon.refused(checkpoint_of(pid), 13)?;
        let mut second = begun(&scene.daemon, verb, pid)?;
        let mut third = begun(&scene.daemon, "abort", pid)?;
        proc::send(session, Signal::CONT)?;
        expect_answer(&mut first, 8)?;
        for wire in [&mut second, &mut third] {
            let answer = expect_answer(wire, 0)?;
            ensure(answer["outcome"] == "undone", || answer.to_string())?;
        }
        let status = scene.daemon.status_of(pid)?;
        ensure(
            status["state"] == "none" && status["ended"]["how"] == "undone",
            || status.to_string(),
        )?;
        scene.expect_free().context(point)?;
        scene.quit()?;
    }
    Ok(())
}

/// The same, for clients that only know numbers.
fn v1_restore() -> Result {
    let rig = Rig::new()?;
    let daemon = stopping(&rig, "sink.write@3=stop", "")?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid();
    let ask = |command: i32| -> Result<Wire> {
        let mut wire = scene.daemon.wire()?;
        wire.send(&[command.to_ne_bytes(), pid.to_ne_bytes()].concat())?;
        scene.daemon.status()?;
        Ok(wire)
    };
    let mut first = ask(100)?;
    let session = scene.daemon.stopped_session()?;
    let mut again = ask(100)?;
    ensure(again.rest()? == (-2i32).to_ne_bytes(), || {
        "a second checkpoint was not refused".into()
    })?;
    let mut second = ask(101)?;
    proc::send(session, Signal::CONT)?;
    ensure(first.rest()? == (-1i32).to_ne_bytes(), || {
        "the checkpoint was not answered -1".into()
    })?;
    ensure(second.rest()? == 0i32.to_ne_bytes(), || {
        "the restore was not answered 0".into()
    })?;
    scene.expect_free()?;
    scene.quit()
}

/// Its own time is up: undone, and told so.
fn timeout() -> Result {
    let rig = Rig::new()?;
    let daemon = stopping(&rig, "sink.write=delay:400", "")?;
    let mut scene = Scene::with(rig, daemon)?;
    scene.daemon.refused(limited(scene.pid()), 8)?;
    scene.expect_free()?;
    scene.quit()
}

/// A checkpoint that has no time.
fn limited(pid: u32) -> Ask {
    Ask::Checkpoint {
        subject: Subject::Pid(pid.cast_signed()),
        choice: Default::default(),
        timeout: Some(Duration::from_millis(100)),
    }
}

/// Its time is up while another one is stored.
fn timeout_in_the_queue() -> Result {
    let rig = Rig::new()?;
    let daemon = stopping(&rig, "sink.write@3=stop", "max_checkpoints = 1")?;
    let mut scene = Scene::with(rig, daemon)?;
    let mut other = small()?;
    let mut storing = begun(&scene.daemon, "checkpoint", scene.pid())?;
    let session = scene.daemon.stopped_session()?;
    scene.daemon.refused(limited(other.pid()), 8)?;
    other.verify()?;
    proc::send(session, Signal::CONT)?;
    expect_answer(&mut storing, 0)?;
    scene.daemon.restore(scene.pid())?;
    scene.expect_free()?;
    scene.quit()
}

/// Everything is dropped already: it becomes held, and is restored at once.
fn too_late() -> Result {
    for verb in ["restore", "abort"] {
        let rig = Rig::new()?;
        let daemon = stopping(&rig, "checkpoint.held=stop", "")?;
        let mut scene = Scene::with(rig, daemon)?;
        let pid = scene.pid();
        let mut first = begun(&scene.daemon, "checkpoint", pid)?;
        let session = scene.daemon.stopped_session()?;
        let mut second = begun(&scene.daemon, verb, pid)?;
        proc::send(session, Signal::CONT)?;
        let first = first.line()?.ok_or("no answer to the checkpoint")?;
        ensure(first["exit_code"] == 0 || first["exit_code"] == 8, || {
            first.to_string()
        })?;
        expect_answer(&mut second, 0)?;
        scene.expect_free().context(verb)?;
        scene.quit()?;
    }
    Ok(())
}

/// An abort leaves alone what is held, and what there is not.
fn abort_of_others() -> Result {
    let mut scene = Scene::new()?;
    let pid = scene.pid();
    scene.daemon.refused(abort_of(pid), 14)?;
    scene.daemon.checkpoint(pid)?;
    scene.daemon.refused(abort_of(pid), 13)?;
    scene.expect_held()?;
    scene.daemon.restore(pid)?;
    scene.expect_free()?;
    scene.quit()
}

/// One checkpoint at a time: others wait, restores do not, and what waits can be stopped.
fn restore_passes_the_queue() -> Result {
    let rig = Rig::new()?;
    let daemon = stopping(&rig, "sink.write@3=stop", "max_checkpoints = 1")?;
    let (mut a, mut b, mut c, mut d) = (small()?, small()?, small()?, small()?);
    let mut before = Vec::new();
    for victim in [&a, &b, &c, &d] {
        before.push(Snapshot::take(victim.pid())?);
    }
    let mut held = begun(&daemon, "checkpoint", b.pid())?;
    proc::send(daemon.stopped_session()?, Signal::CONT)?;
    expect_answer(&mut held, 0)?;
    // While A is stored …
    let mut storing = begun(&daemon, "checkpoint", a.pid())?;
    let session = daemon.stopped_session()?;
    let (mut queued, mut aborted) = (
        begun(&daemon, "checkpoint", c.pid())?,
        begun(&daemon, "checkpoint", d.pid())?,
    );
    for pid in [c.pid(), d.pid()] {
        let status = daemon.status_of(pid)?;
        ensure(status["state"] == "queued", || status.to_string())?;
    }
    let status = daemon.status()?;
    let want = json!({ "queued": 2, "storing": 1, "held": 1, "restoring": 0 });
    ensure(status["sessions"] == want, || status.to_string())?;
    // … B comes back, and D is taken out, which has not been touched.
    daemon.ask(restore_of(b.pid()))?;
    b.verify()?;
    daemon.ask(abort_of(d.pid()))?;
    expect_answer(&mut aborted, 8)?;
    d.verify()?;
    c.verify()?;
    proc::send(session, Signal::CONT)?;
    expect_answer(&mut storing, 0)?;
    proc::send(daemon.stopped_session()?, Signal::CONT)?;
    expect_answer(&mut queued, 0)?;
    for victim in [&a, &c] {
        daemon.restore(victim.pid())?;
    }
    for (victim, before) in [&mut a, &mut b, &mut c, &mut d].into_iter().zip(&before) {
        runs(&rig, victim, before, &[])?;
    }
    daemon.stop().map(drop)
}

/// While its checkpoint waits, a process ends, and another one has its number: that one is
/// not what was meant.
fn pid_used_again() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let daemon = stopping(&rig, "sink.write@3=stop", "max_checkpoints = 1")?;
    let mut meant = small()?;
    let mut scene = Scene::with(rig, daemon)?;
    let mut storing = begun(&scene.daemon, "checkpoint", scene.pid())?;
    let session = scene.daemon.stopped_session()?;
    let pid = meant.pid();
    let mut queued = begun(&scene.daemon, "checkpoint", pid)?;
    meant.signal(Signal::KILL)?;
    meant.exit_status()?;
    let mut heir = heir_of(pid)?;
    let before = Snapshot::take(pid)?;
    proc::send(session, Signal::CONT)?;
    expect_answer(&mut storing, 0)?;
    expect_answer(&mut queued, 5)?;
    before.still(pid, Allow::default())?;
    heir.verify()?;
    scene.daemon.restore(scene.pid())?;
    scene.expect_free()?;
    scene.quit()?;
    heir.quit()
}

/// There is a limit, which what is held counts for.
fn sessions_limit() -> Result {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).config("max_sessions = 1").start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let mut other = small()?;
    scene.daemon.checkpoint(scene.pid())?;
    let answer = scene.daemon.refused(checkpoint_of(other.pid()), 15)?;
    let hint = answer.error.and_then(|error| error.hint);
    ensure(hint.is_some(), || "no hint".into())?;
    other.verify()?;
    scene.daemon.restore(scene.pid())?;
    scene.daemon.checkpoint(other.pid())?;
    scene.daemon.restore(other.pid())?;
    other.verify()?;
    scene.expect_free()?;
    scene.quit()
}
