//! The process of a session crashes: one client is told, everybody else is served, and the
//! target comes back.

use super::{Scene, expect_code, runs, small};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Context, Result, Rig, Setup, Snapshot, ensure, proc};
use rustix::process::Signal;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "daemon",
        &[
            ("session_killed_while_held", killed_while_held),
            ("session_killed_again_and_again", killed_again_and_again),
            ("crash_of_one_that_is_stopped", crash_of_one_that_is_stopped),
        ],
    );
    for point in CHECKPOINT {
        let name = format!("daemon::crash_at_{}", point.replace(['.', '@'], "_"));
        trials.push(test(name, move || crashes(point, "checkpoint")));
    }
    for point in RESTORE {
        let name = format!("daemon::crash_at_{}", point.replace(['.', '@'], "_"));
        trials.push(test(name, move || crashes(point, "restore")));
    }
    trials
}

const CHECKPOINT: [&str; 16] = [
    "sink.open",
    "sink.write@1",
    "sink.write@4",
    "sink.commit",
    "pages.fetch",
    "journal.write@1",
    "journal.replace@1",
    "checkpoint.frozen",
    "checkpoint.stored",
    "checkpoint.committed",
    "inject.infected",
    "checkpoint.guard_made",
    "checkpoint.registered",
    "checkpoint.drop",
    "checkpoint.dropped",
    "checkpoint.held",
];

const RESTORE: [&str; 8] = [
    "sink.read",
    "pages.populate",
    "restore.populated",
    "restore.disarmed",
    "restore.unguarded",
    "restore.released",
    "sink.remove",
    "journal.remove",
];

/// Nobody else is harmed, and its target stays held.
fn killed_while_held() -> Result {
    let mut scene = Scene::new()?;
    let mut other = small()?;
    scene.daemon.checkpoint(scene.pid())?;
    scene.daemon.checkpoint(other.pid())?;
    proc::send(scene.daemon.session_of(scene.pid())?, Signal::KILL)?;
    until("the daemon to notice", || {
        let row = scene.daemon.status_of(scene.pid());
        row.is_ok_and(|row| row["state"] == "held" && row["attended"] == false)
    })?;
    scene.expect_held()?;
    scene.daemon.restore(other.pid())?;
    other.verify()?;
    scene.daemon.restore(scene.pid())?;
    scene.expect_free()?;
    let status = scene.daemon.status()?;
    ensure(status["counters"]["crashes"] == 1, || status.to_string())?;
    scene.quit()
}

/// Checkpoints, kills and restores in turn.
fn killed_again_and_again() -> Result {
    let mut scene = Scene::new()?;
    for _ in 0..5 {
        scene.daemon.checkpoint(scene.pid())?;
        proc::send(scene.daemon.session_of(scene.pid())?, Signal::KILL)?;
        // At once: the daemon may not have noticed yet.
        scene.daemon.restore(scene.pid())?;
        scene.expect_free()?;
    }
    scene.quit()
}

/// A checkpoint that somebody wants stopped crashes: both are answered.
fn crash_of_one_that_is_stopped() -> Result {
    for point in ["sink.write@3", "checkpoint.registered", "checkpoint.held"] {
        for verb in ["abort", "restore"] {
            let rig = Rig::new()?;
            let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault(&format!("{point}=stop")));
            let mut scene = Scene::with(rig, setup.start()?)?;
            let pid = scene.pid();
            let (mut first, mut second) = (scene.daemon.wire()?, scene.daemon.wire()?);
            first.say(&json!({ "memcr": 1, "do": "checkpoint", "pid": pid }))?;
            let session = scene.daemon.stopped_session()?;
            second.say(&json!({ "memcr": 1, "do": verb, "pid": pid }))?;
            scene.daemon.status()?;
            proc::send(session, Signal::KILL)?;
            let what = format!("{verb} at {point}");
            let answer = first.line()?.ok_or("the checkpoint was not answered")?;
            ensure(answer["ok"] == false, || format!("{what}: {answer}"))?;
            let answer = second
                .line()?
                .ok_or_else(|| format!("{what} was not answered"))?;
            expect_code(&answer, 0).context(&what)?;
            scene.daemon.await_state(pid, "none")?;
            scene.expect_free().context(&what)?;
            scene.quit()?;
        }
    }
    Ok(())
}

/// The session aborts itself at `point`; another target is held by the same daemon.
fn crashes(point: &'static str, verb: &str) -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let mut bystander = small()?;
    let calm = Snapshot::take(bystander.pid())?;
    rig.checkpoint(bystander.pid()).run()?.expect(0)?;
    let faulty = setup
        .clone()
        .memcr(|memcr| memcr.with_fault(&format!("{point}=abort")));
    let mut scene = Scene::with(rig, faulty.start()?)?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    if verb == "restore" {
        scene.daemon.checkpoint(pid)?;
    }
    let answer = wire.ask(&json!({ "memcr": 1, "do": verb, "pid": pid }))?;
    drop(wire);
    let status = settled(&scene, pid)?;
    let crashes = scene.daemon.status()?["counters"]["crashes"].clone();
    ensure(crashes != 0, || format!("nothing has crashed: {answer}"))?;
    ensure(proc::lives(pid), || {
        format!("the target died: {answer} {status}")
    })?;
    if verb == "checkpoint" {
        expect_code(&answer, 1)?;
    }
    // The next daemon has no fault, and finishes everything.
    scene.daemon.stop()?;
    scene.daemon = setup.start()?;
    let status = settled(&scene, pid)?;
    if status["state"] == "held" {
        scene.daemon.restore(pid)?;
    }
    scene.daemon.restore(bystander.pid())?;
    runs(&scene.rig, &mut bystander, &calm, &[])?;
    scene.expect_free()?;
    scene.quit()
}

/// Waits until the daemon has found out what has become of it.
fn settled(scene: &Scene, pid: u32) -> Result<Value> {
    let mut last = Value::Null;
    until("the session to be settled", || {
        let Ok(status) = scene.daemon.status_of(pid) else {
            return false;
        };
        let is_parked = status["state"] == "held" && status["attended"] == false;
        let is_settled =
            status["state"] == "none" || is_parked && scene.daemon.children().is_empty();
        last = status;
        is_settled
    })?;
    Ok(last)
}
