//! Targets that end while they are held: nothing of them is left, and the daemon can say
//! what happened.

use super::{Scene, expect_traced, small};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::daemon::{checkpoint_of, restore_of};
use memcr_harness::wait::until;
use memcr_harness::{Daemon, Result, Rig, Setup, Snapshot, Victim, ensure};
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("held_target_is_killed", || held(Signal::KILL)),
            ("held_target_is_told_to_end", || held(Signal::TERM)),
            ("held_target_handles_a_signal", held_handler),
            ("parked_target_is_killed", || parked(Signal::KILL)),
            ("parked_target_is_told_to_end", || parked(Signal::TERM)),
            ("parked_target_leaves_something", parked_leaves_something),
            ("target_dies_while_nobody_looks", nobody_looks),
            ("target_dies_while_it_is_stored", while_stored),
        ],
    )
}

/// It ends by that signal, and the daemon notices by itself.
fn ends(daemon: &Daemon, rig: &Rig, victim: &mut Victim, signal: Signal) -> Result {
    let pid = victim.pid();
    victim.signal(signal)?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(signal.as_raw()), || {
        format!("sent {signal:?}, the target ended with {status}")
    })?;
    is_settled(daemon, rig, pid)
}

/// The session is over, nothing is left, and the daemon says why.
fn is_settled(daemon: &Daemon, rig: &Rig, pid: u32) -> Result {
    let status = daemon.await_state(pid, "none")?;
    let how = &status["ended"]["how"];
    ensure(how == "exited" || how == "restored", || {
        format!("ended how? {status}")
    })?;
    rig.expect_clean()?;
    ensure(daemon.list()?.is_empty(), || {
        "it is still in the list".into()
    })?;
    daemon.refused(restore_of(pid), 14)?;
    daemon.refused(checkpoint_of(pid), 5).map(drop)
}

fn held(signal: Signal) -> Result {
    let mut scene = Scene::new()?;
    scene.daemon.checkpoint(scene.pid())?;
    ends(&scene.daemon, &scene.rig, &mut scene.victim, signal)?;
    let status = scene.daemon.status_of(scene.pid())?;
    if signal == Signal::KILL {
        ensure(status["ended"]["how"] == "exited", || status.to_string())?;
    }
    scene.daemon.stop().map(drop)
}

/// One that it handles is no reason to wake it: it handles it when it is restored.
fn held_handler() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = Victim::start("handlers", &["signals=15", "size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    daemon.checkpoint(victim.pid())?;
    victim.signal(Signal::TERM)?;
    daemon.restore(victim.pid())?;
    let stat = victim.ask("stat")?;
    ensure(stat == "15=1", || format!("handled: {stat}"))?;
    super::runs(&rig, &mut victim, &before, &[])?;
    daemon.stop()?;
    victim.quit()
}

/// A daemon that has taken over what another one has left.
fn parked_scene() -> Result<Scene> {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let victim = small()?;
    let before = Snapshot::take(victim.pid())?;
    let first = setup.clone().start()?;
    first.checkpoint(victim.pid())?;
    first.stop()?;
    expect_traced(victim.pid(), false)?;
    let daemon = setup.start()?;
    Ok(Scene {
        daemon,
        victim,
        before,
        rig,
    })
}

fn parked(signal: Signal) -> Result {
    let mut scene = parked_scene()?;
    scene.expect_held()?;
    ends(&scene.daemon, &scene.rig, &mut scene.victim, signal)?;
    scene.daemon.stop().map(drop)
}

/// What is at the place of its image is none: that stays, and so does its journal, for
/// `recover`. The daemon is done with it.
fn parked_leaves_something() -> Result {
    let mut scene = parked_scene()?;
    let pid = scene.pid();
    let image = scene.rig.image(pid);
    std::fs::write(&image, "")?;
    scene.victim.signal(Signal::KILL)?;
    scene.victim.exit_status()?;
    let status = scene.daemon.await_state(pid, "none")?;
    ensure(status["ended"]["how"] == "exited", || status.to_string())?;
    // Each of them finds the journal.
    for _ in 0..50 {
        scene.daemon.list()?;
    }
    let Scene { daemon, rig, .. } = scene;
    let finished = daemon.stop()?;
    let n_tried = finished.err.matches("is taken over").count();
    ensure(n_tried < 10, || {
        format!("tried {n_tried} times\n{finished}")
    })?;
    finished.says(&format!("`memcr recover {pid}`"))?;
    ensure(rig.left().len() == 2, || format!("left: {:?}", rig.left()))?;
    std::fs::remove_file(&image)?;
    rig.recover(pid).run()?.expect(5)?;
    rig.expect_clean()
}

/// It ends between two daemons.
fn nobody_looks() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let mut victim = small()?;
    let first = setup.clone().start()?;
    first.checkpoint(victim.pid())?;
    first.stop()?;
    victim.signal(Signal::KILL)?;
    victim.exit_status()?;
    let daemon = setup.start()?;
    until("the session to go", || {
        let status = daemon.status();
        status.is_ok_and(|status| status["sessions"]["held"] == 0)
    })?;
    rig.expect_clean()?;
    daemon.stop().map(drop)
}

/// It is killed in the middle of its checkpoint: the client is told, nothing is left.
fn while_stored() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let daemon = setup
        .memcr(|memcr| memcr.with_fault("sink.write@3=stop"))
        .start()?;
    let mut victim = small()?;
    let pid = victim.pid();
    let mut wire = daemon.wire()?;
    wire.say(&serde_json::json!({ "memcr": 1, "do": "checkpoint", "pid": pid }))?;
    let session = daemon.stopped_session()?;
    victim.signal(Signal::KILL)?;
    memcr_harness::proc::send(session, Signal::CONT)?;
    let answer = wire.line()?.ok_or("no answer")?;
    ensure(answer["exit_code"] == 9 || answer["exit_code"] == 5, || {
        answer.to_string()
    })?;
    victim.exit_status()?;
    is_settled(&daemon, &rig, pid)?;
    daemon.stop().map(drop)
}
