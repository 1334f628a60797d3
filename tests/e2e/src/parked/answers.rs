//! Two commands with nothing between them: `checkpoint`, `restore`, and `recover`, `list`
//! beside them. What they say, and that they touch nothing when they are not meant.

use crate::common::unharmed;
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Memcr, Result, Rig, Snapshot, Victim, ensure, place, proc, require};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "parked",
        &[
            ("nobody_is_left", nobody_is_left),
            ("held_already", held_already),
            ("held_elsewhere", held_elsewhere),
            ("not_held", not_held),
            ("while_memcr_holds", while_memcr_holds),
            ("ended", ended),
            ("continued", continued),
            ("list", list),
            ("recover_leaves_parked", recover_leaves_parked),
            ("recover_holds", recover_holds),
            ("image_away_and_back", image_away_and_back),
            ("other_image", other_image),
            ("corrupt_kills", corrupt_kills),
            ("corrupt_holds", corrupt_holds),
            ("corrupt_in_an_undo", corrupt_in_an_undo),
            ("beside_an_odd_mount", beside_an_odd_mount),
            ("relative_paths", relative_paths),
            ("stopped_before", stopped_before),
        ],
    );
    for pipeline in ["file", "zstd,md5,file", "lz4,encrypt,file", "lz4,tmpfs"] {
        let name = format!("parked::cycle_{}", pipeline.replace(',', "_"));
        trials.push(test(name, move || cycle(pipeline)));
    }
    trials
}

fn victim() -> Result<Victim> {
    Victim::start("memory", &["size=16M", "threads=3"])
}

/// Two cycles: the second must find nothing of the first.
fn cycle(pipeline: &str) -> Result {
    let rig = Rig::with(pipeline)?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..2 {
        rig.checkpoint(victim.pid()).run()?.expect(0)?;
        rig.restore(victim.pid()).run()?.expect(0)?;
        victim.verify()?;
    }
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// Between the two commands no process of ours is there, and the target's own memory
/// is gone.
fn nobody_is_left() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let finished = rig.checkpoint(victim.pid()).run()?;
    finished.expect(0)?;
    let tracer = proc::field(&proc::text(victim.pid(), "status")?, "TracerPid")?;
    ensure(tracer == "0", || format!("traced by {tracer}"))?;
    ensure(proc::state(victim.pid(), victim.pid()) == Some('T'), || {
        "the target is not stopped".into()
    })?;
    crate::common::expect_freed(&before, victim.pid(), 16 << 10)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A second checkpoint, of either kind, touches nothing.
fn held_already() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    let left = rig.left();
    for again in [rig.checkpoint(victim.pid()), rig.memcr(victim.pid())] {
        let finished = again.run()?;
        finished.expect(13)?;
        finished.says("is held already")?;
        finished.says(&format!("memcr restore {}", victim.pid()))?;
    }
    ensure(rig.left() == left, || {
        format!("{left:?} became {:?}", rig.left())
    })?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The same where nobody finds the journal: another state directory.
fn held_elsewhere() -> Result {
    let (rig, elsewhere) = (Rig::new()?, Rig::new()?);
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    let pid = victim.pid();
    for again in [elsewhere.checkpoint(pid), elsewhere.memcr(pid)] {
        let finished = again.run()?;
        finished.expect(13)?;
        finished.says("is held already, by a memcr that has its journal elsewhere")?;
        elsewhere.expect_clean()?;
    }
    rig.restore(pid).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// What is not held runs on.
fn not_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    for command in [rig.restore(victim.pid()), rig.recover(victim.pid())] {
        let finished = command.run()?;
        finished.expect(14)?;
        finished.says("is not held")?;
    }
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    rig.restore(victim.pid()).run()?.expect(14)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Nobody takes a target away from a memcr that holds it.
fn while_memcr_holds() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let held = rig.memcr(victim.pid()).hold()?;
    for command in [
        rig.checkpoint(victim.pid()),
        rig.restore(victim.pid()),
        rig.recover(victim.pid()),
        rig.memcr(victim.pid()),
    ] {
        let finished = command.run()?;
        finished.expect(13)?;
        finished.says(&format!("another memcr (process {})", held.pid()))?;
    }
    rig.recover_all().run()?.says("nothing to recover")?;
    let list = rig.list()?;
    ensure(list["sessions"][0]["owner"] == held.pid(), || {
        list.to_string()
    })?;
    held.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A target that was killed while it was held: said with a code of its own, and what it
/// left goes when somebody says `recover`.
fn ended() -> Result {
    let rig = Rig::with("lz4,encrypt,file")?;
    let mut victim = victim()?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    proc::send(victim.pid(), Signal::KILL)?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(9), || status.to_string())?;
    let left = rig.left();
    ensure(left.len() == 2, || format!("{left:?}"))?;
    let finished = rig.restore(victim.pid()).run()?;
    finished.expect(5)?;
    finished.says("has ended while it was held")?;
    ensure(rig.left() == left, || {
        format!("{left:?} became {:?}", rig.left())
    })?;
    rig.recover(victim.pid()).run()?.expect(5)?;
    rig.expect_clean()
}

/// SIGCONT from anybody: the target waits for its memory, and gets it.
fn continued() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    proc::send(victim.pid(), Signal::CONT)?;
    until("the target to go on", || {
        proc::state(victim.pid(), victim.pid()) != Some('T')
    })?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn list() -> Result {
    let rig = Rig::new()?;
    let mut first = victim()?;
    let mut second = victim()?;
    rig.checkpoint(first.pid()).run()?.expect(0)?;
    rig.checkpoint(second.pid()).run()?.expect(0)?;
    let list = rig.list()?;
    let mut pids = [first.pid(), second.pid()];
    pids.sort_unstable();
    let sessions = list["sessions"].as_array().cloned().unwrap_or_default();
    ensure(sessions.len() == pids.len(), || list.to_string())?;
    for (session, pid) in sessions.iter().zip(pids) {
        let good = session["pid"] == pid
            && session["state"] == "held"
            && session["has_owner"] == false
            && session["name"] == "victim"
            && session["pipeline"] == "lz4,crc32,file"
            && session["rss_saved_bytes"].as_u64() > Some(15 << 20)
            && session["image"]["locator"] == rig.image(pid).display().to_string();
        ensure(good, || list.to_string())?;
    }
    for victim in [&first, &second] {
        rig.restore(victim.pid()).run()?.expect(0)?;
    }
    ensure(
        rig.list()?["sessions"]
            .as_array()
            .is_some_and(Vec::is_empty),
        || "nothing is held any more".into(),
    )?;
    first.verify()?;
    second.verify()?;
    rig.expect_clean()
}

/// `recover` finishes accidents; what was left held on purpose only with `--all`.
fn recover_leaves_parked() -> Result {
    let rig = Rig::new()?;
    let mut parked = victim()?;
    let mut orphan = victim()?;
    rig.checkpoint(parked.pid()).run()?.expect(0)?;
    let held = rig.memcr(orphan.pid()).hold()?;
    held.signal(Signal::KILL)?;
    held.finish()?;
    let states = |rig: &Rig| -> Result<Vec<(u64, String)>> {
        let list = rig.list()?;
        let sessions = list["sessions"].as_array().cloned().unwrap_or_default();
        Ok(sessions
            .iter()
            .map(|session| {
                let word = session["state"].as_str().unwrap_or_default();
                (session["pid"].as_u64().unwrap_or(0), word.to_owned())
            })
            .collect())
    };
    let both = states(&rig)?;
    ensure(
        both.contains(&(parked.pid().into(), "held".into()))
            && both.contains(&(orphan.pid().into(), "interrupted".into())),
        || format!("{both:?}"),
    )?;
    let recover = Memcr::new().arg("recover").state_dir(&rig.state_dir());
    recover.run()?.expect(0)?;
    orphan.verify()?;
    let one = states(&rig)?;
    ensure(one == [(parked.pid().into(), "held".into())], || {
        format!("{one:?}")
    })?;
    rig.recover_all().run()?.expect(0)?;
    parked.verify()?;
    rig.expect_clean()
}

fn recover_holds() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let held = rig.memcr(victim.pid()).hold()?;
    held.signal(Signal::KILL)?;
    held.finish()?;
    rig.recover(victim.pid()).arg("--hold").run()?.expect(0)?;
    ensure(rig.list()?["sessions"][0]["state"] == "held", || {
        "it is to be held".into()
    })?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// An image that is away for a while costs a try and nothing else.
fn image_away_and_back() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    let (image, away) = (rig.image(victim.pid()), rig.dir().join("away"));
    std::fs::rename(&image, &away)?;
    let finished = rig.restore(victim.pid()).run()?;
    finished.expect(12)?;
    finished.says(&format!("`memcr restore {}` tries again", victim.pid()))?;
    std::fs::rename(&away, &image)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The image of another checkpoint in its place is not taken for it.
fn other_image() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let (image, old, own) = (
        rig.image(victim.pid()),
        rig.dir().join("old"),
        rig.dir().join("own"),
    );
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    std::fs::copy(&image, &old)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    std::fs::rename(&image, &own)?;
    std::fs::rename(&old, &image)?;
    let finished = rig.restore(victim.pid()).run()?;
    finished.expect(12)?;
    finished.says("is not the one")?;
    std::fs::rename(&own, &image)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Flips a bit in the middle of the image.
fn damage(rig: &Rig, pid: u32) -> Result {
    let path = rig.image(pid);
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes)?;
    Ok(())
}

fn corrupt_kills() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    damage(&rig, victim.pid())?;
    let finished = rig.restore(victim.pid()).run()?;
    finished.expect(10)?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(9), || status.to_string())?;
    rig.expect_clean()
}

fn corrupt_holds() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    damage(&rig, victim.pid())?;
    let hold = || rig.restore(victim.pid()).args(["--on-corrupt", "hold"]);
    let finished = hold().run()?;
    finished.expect(12)?;
    finished.says("damaged")?;
    // The same bit again: repaired.
    damage(&rig, victim.pid())?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Somebody has mounted something where the path is not UTF-8.
fn beside_an_odd_mount() -> Result {
    require("mount")?;
    let (rig, mut victim) = (Rig::with("lz4,tmpfs")?, victim()?);
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    let point = rig.dir().join(OsStr::from_bytes(b"odd-\xff"));
    std::fs::create_dir(&point)?;
    let mount = format!("mount -t tmpfs x {}/odd-* && exec \"$@\"", rig.dir_text());
    let restore = rig.restore(victim.pid());
    let finished = restore.via(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    finished.run()?.expect(0)?;
    std::fs::remove_dir(&point)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The image is damaged before a checkpoint that fails is undone from it.
fn corrupt_in_an_undo() -> Result {
    require("userfaultfd")?;
    for pipeline in ["lz4,crc32,file", "lz4,crc32,tmpfs"] {
        let (rig, mut victim) = (Rig::with(pipeline)?, victim()?);
        let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
        let checkpoint = rig.checkpoint(pid).args(["--on-corrupt", "hold"]);
        let orders = "checkpoint.dropped=stop;checkpoint.held=fail:EIO";
        let memcr = checkpoint.with_fault(orders).start()?;
        let stopped = || proc::state(memcr.pid(), memcr.pid()) == Some('T');
        until("memcr to stop", stopped)?;
        damage(&rig, pid)?;
        memcr.signal(Signal::CONT)?;
        let finished = memcr.finish()?;
        finished.expect(12)?;
        finished.says("damaged")?;
        damage(&rig, pid)?;
        rig.restore(pid).run()?.expect(0)?;
        unharmed(&rig, &mut victim, &before, Allow::default())?;
    }
    Ok(())
}

/// Paths are those of the checkpoint, wherever the restore is started.
fn relative_paths() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    std::fs::create_dir(rig.dir().join("here"))?;
    let stored = Memcr::checkpoint(victim.pid())
        .args(["--pipeline", "lz4,file", "-d", "here"])
        .state_dir(&rig.state_dir())
        .program(&std::path::absolute(place::memcr()?)?)
        .via(&["env", "-C", &rig.dir_text()]);
    stored.run()?.expect(0)?;
    let image = rig.dir().join(format!("here/pages-{}.img", victim.pid()));
    ensure(image.exists(), || image.display().to_string())?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    ensure(!image.exists(), || "the image stayed".into())?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Who was stopped before is stopped after.
fn stopped_before() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    proc::send(victim.pid(), Signal::STOP)?;
    let stopped = |pid| until("the target to stop", || proc::state(pid, pid) == Some('T'));
    stopped(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    stopped(victim.pid())?;
    proc::send(victim.pid(), Signal::CONT)?;
    victim.verify()?;
    rig.expect_clean()
}
