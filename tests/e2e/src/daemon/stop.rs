//! The daemon ends, is killed, is replaced: targets are where its operator wants them, and
//! no byte is lost.

use super::{Scene, expect_traced, runs, small};
use crate::common::copy_program;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::daemon::{Setup, await_end, checkpoint_of};
use memcr_harness::{Allow, Daemon, Result, Rig, Snapshot, Victim, ensure, place, proc};
use rustix::process::Signal;
use serde_json::json;
use std::os::unix::process::ExitStatusExt;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("told_to_end_holds", ends_and_holds),
            ("told_to_end_restores", ends_and_restores),
            ("told_to_end_with_its_key", ends_with_its_key),
            ("told_to_end_cannot_restore", ends_and_cannot_restore),
            ("told_to_end_kills", ends_and_kills),
            ("told_to_end_in_a_checkpoint", ends_in_a_checkpoint),
            ("told_to_end_before_a_restore", ends_before_a_restore),
            ("told_to_end_twice", told_twice),
            ("adopts_20_of_one_that_ended", || {
                adopts(|daemon| daemon.stop().map(drop))
            }),
            ("adopts_20_of_one_that_was_killed", || {
                adopts(|daemon| daemon.kill().map(drop))
            }),
            ("adopts_20_when_all_were_killed", || {
                adopts(|daemon| daemon.kill_all().map(drop))
            }),
            ("two_at_one_place", two_at_one_place),
            ("another_program_takes_over", another_program),
        ],
    )
}

fn with(config: &str) -> Result<Scene> {
    let rig = Rig::new()?;
    let daemon = Setup::new(&rig).config(config).start()?;
    Scene::with(rig, daemon)
}

/// `hold`, the default: parked; restored by a shell.
fn ends_and_holds() -> Result {
    let scene = Scene::new()?;
    let (pid, mut victim) = (scene.victim.pid(), scene.victim);
    scene.daemon.checkpoint(pid)?;
    scene.daemon.stop()?;
    expect_traced(pid, false)?;
    ensure(proc::state(pid, pid) == Some('T'), || {
        "it is not stopped".into()
    })?;
    let list = scene.rig.list()?;
    ensure(
        list["sessions"].as_array().is_some_and(|it| it.len() == 1),
        || list.to_string(),
    )?;
    scene.rig.restore(pid).run()?.expect(0)?;
    runs(&scene.rig, &mut victim, &scene.before, &[])?;
    victim.quit()
}

fn ends_and_restores() -> Result {
    let mut scene = with("on_stop = \"restore\"")?;
    let mut others = vec![small()?, small()?, small()?];
    scene.daemon.checkpoint(scene.pid())?;
    for other in &others {
        scene.daemon.checkpoint(other.pid())?;
    }
    scene.daemon.stop()?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    for other in &mut others {
        other.verify()?;
    }
    scene.victim.quit()
}

/// `hold`, of an image whose key ends with it: nobody else could give its memory back.
fn ends_with_its_key() -> Result {
    let rig = Rig::with("lz4,encrypt,file")?;
    let victim = place::victim()?.to_string_lossy().into_owned();
    let setup = Setup::new(&rig).memcr(|memcr| memcr.via(&[&victim, "keyless"]));
    let mut scene = Scene::with(rig, setup.start()?)?;
    scene.daemon.checkpoint(scene.pid())?;
    let ended = scene.daemon.stop()?;
    ended.says("no other memcr could give it its memory back")?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    scene.victim.quit()
}

/// A restore fails whenever it is tried: its target stays held, and keeps nobody waiting.
fn ends_and_cannot_restore() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).config("on_stop = \"restore\"");
    let setup = setup.memcr(|memcr| memcr.with_fault("pages.populate@1+=fail:EIO"));
    let daemon = setup.start()?;
    let scene = Scene::with(rig, daemon)?;
    let (pid, mut victim) = (scene.victim.pid(), scene.victim);
    scene.daemon.checkpoint(pid)?;
    scene.daemon.stop()?;
    expect_traced(pid, false)?;
    scene.rig.restore(pid).run()?.expect(0)?;
    runs(&scene.rig, &mut victim, &scene.before, &[])?;
    victim.quit()
}

fn ends_and_kills() -> Result {
    let mut scene = with("on_stop = \"kill\"")?;
    let mut unharmed = small()?;
    scene.daemon.checkpoint(scene.pid())?;
    scene.daemon.stop()?;
    let status = scene.victim.exit_status()?;
    ensure(status.signal() == Some(Signal::KILL.as_raw()), || {
        format!("the target ended with {status}")
    })?;
    scene.rig.expect_clean()?;
    unharmed.verify().map(drop)
}

/// What is not complete is undone, and its client told.
fn ends_in_a_checkpoint() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let daemon = setup
        .memcr(|memcr| memcr.with_fault("sink.write@3=stop"))
        .start()?;
    let mut scene = Scene::with(rig, daemon)?;
    let pid = scene.pid();
    let mut wire = scene.daemon.wire()?;
    wire.say(&json!({ "memcr": 1, "do": "checkpoint", "pid": pid }))?;
    let session = scene.daemon.stopped_session()?;
    let mut late = scene.daemon.wire()?;
    scene.daemon.status()?;
    scene.daemon.signal(Signal::TERM)?;
    scene.daemon.await_message("ending")?;
    late.say(&json!({ "memcr": 1, "do": "checkpoint", "pid": pid }))?;
    let refused = late.line()?.ok_or("no answer to the late one")?;
    ensure(refused["exit_code"] == 15, || refused.to_string())?;
    proc::send(session, Signal::CONT)?;
    let answer = wire.line()?.ok_or("no answer")?;
    ensure(answer["exit_code"] == 8, || answer.to_string())?;
    drop(late);
    drop(wire);
    scene.daemon.finish()?.expect(0)?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    scene.victim.quit()
}

/// Its session is to park already when a restore is asked for: that is done all the same.
fn ends_before_a_restore() -> Result {
    let mut scene = Scene::new()?;
    let pid = scene.pid();
    scene.daemon.checkpoint(pid)?;
    let session = scene.daemon.session_of(pid)?;
    let mut wire = scene.daemon.wire()?;
    scene.daemon.status()?;
    proc::send(session, Signal::STOP)?;
    scene.daemon.signal(Signal::TERM)?;
    scene.daemon.await_message("ending")?;
    wire.say(&json!({ "memcr": 1, "do": "restore", "pid": pid }))?;
    wire.say(&json!({ "memcr": 1, "do": "status" }))?;
    let heard = wire.line()?.ok_or("no answer")?;
    ensure(heard["sessions"]["restoring"] == 1, || heard.to_string())?;
    proc::send(session, Signal::CONT)?;
    let answer = wire.line()?.ok_or("no answer")?;
    ensure(answer["exit_code"] == 0, || answer.to_string())?;
    drop(wire);
    scene.daemon.finish()?.expect(0)?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    scene.victim.quit()
}

/// The second time it waits for nobody; a session that is left undoes what it has begun.
fn told_twice() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault("sink.write@3=stop"));
    let mut scene = Scene::with(rig, setup.start()?)?;
    let request = json!({ "memcr": 1, "do": "checkpoint", "pid": scene.pid() });
    scene.daemon.wire()?.say(&request)?;
    let session = scene.daemon.stopped_session()?;
    scene.daemon.signal(Signal::TERM)?;
    scene.daemon.await_message("ending")?;
    scene.daemon.signal(Signal::TERM)?;
    await_end(&[scene.daemon.pid()])?;
    proc::send(session, Signal::CONT)?;
    scene.daemon.finish()?.expect(0)?;
    await_end(&[session])?;
    runs(&scene.rig, &mut scene.victim, &scene.before, &[])?;
    scene.victim.quit()
}

/// Twenty targets are held, the daemon goes, the next one gives all of them back.
fn adopts(end: fn(Daemon) -> Result) -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let daemon = setup.clone().start()?;
    let mut targets = Vec::new();
    for seed in 0..20 {
        let victim = Victim::start("memory", &["size=1M", &format!("seed={seed}")])?;
        let before = Snapshot::take(victim.pid())?;
        daemon.checkpoint(victim.pid())?;
        targets.push((victim, before));
    }
    end(daemon)?;
    let daemon = setup.start()?;
    for (victim, _) in &targets {
        daemon.await_state(victim.pid(), "held")?;
        daemon.refused(checkpoint_of(victim.pid()), 13)?;
    }
    let n_held = daemon.list()?.len();
    ensure(n_held == 20, || format!("{n_held} are listed"))?;
    for (victim, before) in &mut targets {
        daemon.restore(victim.pid())?;
        let allow = Allow {
            less_rss: true,
            ..Allow::default()
        };
        before.still(victim.pid(), allow)?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    daemon.stop().map(drop)
}

/// One state directory has one daemon, and one socket, too.
fn two_at_one_place() -> Result {
    let mut scene = Scene::new()?;
    scene.daemon.checkpoint(scene.pid())?;
    let setup = scene.daemon.setup();
    let elsewhere = setup.clone().socket(&scene.rig.dir().join("other"));
    elsewhere.run()?.expect(13)?;
    let other = Rig::new()?;
    let finished = setup.state_dir(&other.state_dir()).run()?;
    finished.says("somebody listens at")?;
    ensure(finished.code != Some(0), || finished.to_string())?;
    scene.expect_held()?;
    scene.daemon.restore(scene.pid())?;
    scene.expect_free()?;
    scene.quit()
}

/// An upgrade: the program is another file, and goes on.
fn another_program() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let mut victim = small()?;
    let before = Snapshot::take(victim.pid())?;
    let first = setup.clone().start()?;
    first.checkpoint(victim.pid())?;
    first.stop()?;
    let copy = rig.dir().join("memcr-next");
    copy_program(&place::memcr()?, &copy)?;
    let stages = stages_of(&place::memcr()?)?;
    let next = setup.memcr(|memcr| memcr.program(&copy).env("MEMCR_STAGE_PATH", stages));
    let daemon = next.start()?;
    daemon.await_state(victim.pid(), "held")?;
    daemon.restore(victim.pid())?;
    runs(&rig, &mut victim, &before, &[])?;
    daemon.stop()?;
    victim.quit()
}

/// The stages of an installation, for a program that is elsewhere.
fn stages_of(memcr: &std::path::Path) -> Result<std::path::PathBuf> {
    Ok(match place::stages()? {
        Some(dir) => dir,
        None => {
            let prefix = memcr.ancestors().nth(2).unwrap_or(memcr);
            prefix.join("lib/memcr/stages")
        }
    })
}
