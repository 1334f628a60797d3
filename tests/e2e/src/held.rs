//! What happens while the target is held: to memcr, and to the image.

use crate::common::{Rig, expect_freed, hold, unharmed};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Context, Held, Result, Snapshot, Victim, ensure, proc, require};
use rustix::process::Signal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "held",
        &[
            ("interrupt", || ended_by(Signal::INT)),
            ("terminate", || ended_by(Signal::TERM)),
            ("hang_up", || ended_by(Signal::HUP)),
            ("kill", kill),
            ("kill_is_never_late", || kill_is_never_late(&["threads=64"])),
            // So many are armed in another way.
            ("kill_is_never_late_for_many", || {
                kill_is_never_late(&["threads=8", "sleepers=600"])
            }),
            ("suspend_and_continue", suspend_and_continue),
            ("image_deleted", image_deleted),
            ("image_truncated", image_truncated),
            ("image_replaced", image_replaced),
            ("two_targets", two_targets),
            ("thirty_targets", thirty_targets),
            ("file_truncated", file_truncated),
            ("directory_removed", directory_removed),
        ],
    );
    for pipeline in ["file", "lz4,file", "zstd,md5,file", "lz4,encrypt,file"] {
        let name = pipeline.replace(',', "_");
        trials.push(test(format!("held::image_flipped_{name}"), move || {
            image_flipped(pipeline)
        }));
    }
    trials
}

/// Somebody ends memcr while it waits: it gives everything back first.
fn ended_by(signal: Signal) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    held.signal(signal)?;
    let finished = held.finish()?;
    ensure(matches!(finished.code, Some(0 | 8)), || {
        finished.to_string()
    })?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// memcr dies: the target stands still without its memory, and another memcr brings it
/// back.
fn kill() -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let held = hold(&rig, &victim, rig.memcr(pid))?;
    held.signal(Signal::KILL)?;
    held.finish()?;
    expect_freed(&before, pid, 16 << 10)?;
    rig.recover(pid).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Between the death of memcr and the recovery no thread may run, much less see what is
/// not there: the kernel lets go of one after the other.
fn kill_is_never_late(threads: &[&str]) -> Result {
    for _ in 0..4 {
        let rig = Rig::new()?;
        let dir = format!("dir={}", rig.dir_text());
        let mut victim = Victim::start("witness", &[threads, &[&dir]].concat())?;
        let pid = victim.pid();
        let held = hold(&rig, &victim, rig.memcr(pid))?;
        let seen = || std::fs::read(rig.dir().join("seen")).context("what was seen");
        let at_hold = seen()?;
        held.signal(Signal::KILL)?;
        held.finish()?;
        until("the target to stop", || proc::state(pid, pid) == Some('T'))?;
        ensure(seen()?[..16] == at_hold[..16], || "a thread ran".into())?;
        rig.recover(pid).run()?.expect(0)?;
        victim.verify()?;
        ensure(seen()?[..8] == [0; 8], || {
            "it ran without its memory".into()
        })?;
        until("the target to run", || {
            seen().is_ok_and(|now| now[8..16] != at_hold[8..16])
        })?;
    }
    Ok(())
}

/// Ctrl-Z and `fg`.
fn suspend_and_continue() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    held.signal(Signal::STOP)?;
    until("memcr to stop", || {
        proc::state(held.pid(), held.pid()) == Some('T')
    })?;
    held.signal(Signal::CONT)?;
    held.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The outcome of a restore whose image somebody has touched: right bytes and code 0,
/// or code 10 and a dead target; nothing between.
fn right_or_killed(rig: &Rig, victim: &mut Victim, held: Held) -> Result<bool> {
    let finished = held.enter()?;
    if finished.code == Some(0) {
        victim.verify()?;
        return Ok(true);
    }
    finished.expect(10)?;
    finished.says("killed")?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(Signal::KILL.as_raw()), || {
        format!("the target ended with {status}")
    })?;
    rig.expect_clean()?;
    Ok(false)
}

/// One byte, at places spread over the image.
fn image_flipped(pipeline: &str) -> Result {
    let mut n_killed = 0;
    for i in 0..6u64 {
        let rig = Rig::with(pipeline)?;
        let mut victim = Victim::start("memory", &["size=4M"])?;
        let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
        let image = File::options()
            .read(true)
            .write(true)
            .open(rig.image(victim.pid()))?;
        let at = image.metadata()?.len() * i / 6 + i * 13;
        let mut byte = [0];
        image.read_exact_at(&mut byte, at)?;
        image.write_all_at(&[byte[0] ^ (1 << i)], at)?;
        n_killed += u32::from(!right_or_killed(&rig, &mut victim, held)?);
    }
    ensure(n_killed >= 4, || {
        format!("only {n_killed} of 6 flipped bytes were noticed")
    })
}

/// The name is gone, the file is not: memcr has it open.
fn image_deleted() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    std::fs::remove_file(rig.image(victim.pid()))?;
    right_or_killed(&rig, &mut victim, held).map(drop)
}

fn image_truncated() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    let image = File::options().write(true).open(rig.image(victim.pid()))?;
    image.set_len(image.metadata()?.len() / 2)?;
    let right = right_or_killed(&rig, &mut victim, held)?;
    ensure(!right, || "half an image was enough".into())
}

/// Another target's image under this one's name: whole, and still not ours. Ours may come
/// back.
fn image_replaced() -> Result {
    let (rig, other_rig) = (Rig::new()?, Rig::new()?);
    let mut victim = Victim::start("memory", &["size=4M", "seed=1"])?;
    let mut other = Victim::start("memory", &["size=4M", "seed=2"])?;
    let mut held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    let other_held = hold(&other_rig, &other, other_rig.memcr(other.pid()))?;
    let (from, to) = (other_rig.image(other.pid()), rig.image(victim.pid()));
    let own = std::fs::read(&to)?;
    // In place, so that a descriptor that memcr has open sees it too.
    std::fs::copy(from, &to)?;
    held.enter_and_await("next try in")?;
    ensure(proc::state(victim.pid(), victim.pid()) == Some('t'), || {
        "the target is not held any more".into()
    })?;
    // The next try finds the right one again.
    std::fs::write(&to, own)?;
    held.release()?.says("lies where")?;
    victim.verify()?;
    rig.expect_clean()?;
    victim.quit()?;
    other_held.release()?;
    other.verify()?;
    other.quit()
}

fn two_targets() -> Result {
    let rig = Rig::new()?;
    let mut first = Victim::start("memory", &["size=8M", "seed=1"])?;
    let mut second = Victim::start("memory", &["size=8M", "seed=2"])?;
    let held_first = hold(&rig, &first, rig.memcr(first.pid()))?;
    let held_second = hold(&rig, &second, rig.memcr(second.pid()))?;
    held_first.release()?;
    first.verify()?;
    held_second.release()?;
    second.verify()?;
    rig.expect_clean()?;
    first.quit()?;
    second.quit()
}

/// Somebody shortens a file that the target has mapped privately. Pages behind its end
/// are lost to any process then, also those it had written; the rest must come back.
fn file_truncated() -> Result {
    let rig = Rig::new()?;
    let dir = format!("dir={}", rig.dir_text());
    let mut victim = Victim::start("maps", &["parts=anon,file_cow", &dir])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()).arg("-f"))?;
    let file = File::options()
        .write(true)
        .open(rig.dir().join(format!("cow-{}", victim.pid())))?;
    file.set_len(file.metadata()?.len() / 2)?;
    held.release()?;
    ensure(victim.ask("part anon")?.starts_with("ok"), || {
        "the rest is wrong".into()
    })?;
    rig.expect_clean()
}

/// The directory with the image goes, and with it the name that would be removed.
fn directory_removed() -> Result {
    let (rig, elsewhere) = (Rig::new()?, Rig::new()?);
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    // The journal is not in it.
    let memcr = rig.memcr(victim.pid()).state_dir(&elsewhere.state_dir());
    let held = hold(&rig, &victim, memcr)?;
    std::fs::remove_dir_all(rig.dir())?;
    held.release()?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    std::fs::create_dir(rig.dir())?;
    victim.quit()
}

/// As many sessions as a set-top box has applications.
fn thirty_targets() -> Result {
    let rig = Rig::new()?;
    let mut all = Vec::new();
    for i in 0..30 {
        let victim = Victim::start("memory", &["size=1M", &format!("seed={i}")])?;
        let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
        all.push((victim, held));
    }
    for (mut victim, held) in all {
        held.release()?;
        victim.verify()?;
        victim.quit()?;
    }
    rig.expect_clean()
}
