//! Rows 1, 2, 3: threads and processes that come and go under our hands.

use crate::common::{Rig, heir_of, hold};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Result, Snapshot, Trouble, Victim, ensure, proc, require};
use rustix::process::Signal;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "races",
        &[
            ("clone_storm", || clone_storm(30, &[])),
            ("clone_storm_first_thread", || {
                clone_storm(15, &["leader=1"])
            }),
            ("heavy_clone_storm_200", || clone_storm(200, &[])),
            ("fork_storm", || child_storm("fork", 1, &[0])),
            ("spawn_storm", || child_storm("spawn", 1, &[0, 4])),
            // Children and pauses as long as a checkpoint needs to begin: some are born
            // between the first look and the last stop.
            ("sharing_storm", || child_storm("sharing", 15, &[0, 4])),
            ("exec_storm", || exec_storm("thread=0")),
            ("exec_storm_by_a_thread", || exec_storm("thread=1")),
            ("two_at_once", two_at_once),
            ("exit_during_the_checkpoint", exit_during_the_checkpoint),
            ("leader_exited", leader_exited),
            ("number_used_again", number_used_again),
        ],
    )
}

/// Threads are born and die 1,000 times a second; none is lost, none sees wrong memory.
fn clone_storm(n_cycles: usize, args: &[&str]) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start(
        "clones",
        &[&["rate=1000", "spawners=2", "size=4M"], args].concat(),
    )?;
    let before = Snapshot::take(victim.pid())?;
    for i in 0..n_cycles {
        rig.memcr(victim.pid())
            .cycle()
            .map_err(|trouble| Trouble::Failed(format!("cycle {i}: {trouble}")))?;
        // A hold in between: threads caught while being born wait a while.
        if i % 10 == 0 {
            hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
        }
    }
    victim.verify()?;
    let settled = victim.ask("settle")?;
    ensure(settled.starts_with("settled"), || settled.clone())?;
    // Stacks of threads that lived meanwhile are kept by the C library.
    let facts = &["maps ", "smaps "];
    let _ = before.differences(
        &Snapshot::take(victim.pid())?,
        Allow {
            threads: true,
            facts,
            less_rss: true,
            ..Allow::default()
        },
    );
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// The whole process exits while memcr is at it: exit code 9 (or 4 or 5,
/// if it was over before memcr looked), its own exit status, nothing left. Or it was quicker: 0.
fn exit_during_the_checkpoint() -> Result {
    for i in 0..40 {
        let rig = Rig::new()?;
        let mut victim = Victim::start(
            "exits",
            &["threads=8", &format!("after={}", i * 400), "status=3"],
        )?;
        let memcr = rig.memcr(victim.pid()).arg("-n").start()?;
        victim.tell("go")?;
        let finished = memcr.finish()?;
        let was_over = finished.code == Some(4)
            && ["is a zombie", "first thread"]
                .iter()
                .any(|why| finished.err.contains(why));
        ensure(was_over || matches!(finished.code, Some(0 | 5 | 9)), || {
            format!("round {i}: {finished}")
        })?;
        let status = victim.exit_status()?;
        ensure(status.code() == Some(3), || {
            format!("round {i}: the target ended with {status}\n{finished}")
        })?;
        rig.expect_clean()?;
    }
    Ok(())
}

/// Either it works through another thread, or it is refused: never a hang or a crash.
fn leader_exited() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("leader", &[])?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    if finished.code != Some(0) {
        finished.expect(4)?;
        finished.says("first thread")?;
    }
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// The target has ended between the first look and the freeze, and another process has its
/// number, whose memory is nobody's to take.
fn number_used_again() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut meant = Victim::start("memory", &["size=4M"])?;
    let pid = meant.pid();
    let memcr = rig.memcr(pid).arg("-n").with_fault("sink.open=stop");
    let memcr = memcr.start()?;
    until("memcr to stop", || {
        proc::state(memcr.pid(), memcr.pid()) == Some('T')
    })?;
    meant.signal(Signal::KILL)?;
    meant.exit_status()?;
    let mut heir = heir_of(pid)?;
    let before = Snapshot::take(pid)?;
    memcr.signal(Signal::CONT)?;
    memcr.finish()?.expect(9)?;
    before.still(pid, Allow::default())?;
    heir.verify()?;
    rig.expect_clean()?;
    heir.quit()
}

/// Children all the time, each of which looks at the memory it shares or has copied.
/// A refusal may be right: a process that shares the memory would run on.
fn child_storm(how: &str, pause_ms: u32, codes: &[i32]) -> Result {
    let rig = Rig::new()?;
    let (how_arg, pause) = (format!("how={how}"), format!("pause={}", pause_ms * 1000));
    let mut victim = Victim::start("forks", &[&how_arg, &pause, "size=16M"])?;
    let mut n_done = 0;
    for i in 0..40 {
        let finished = rig.memcr(victim.pid()).arg("-n").run()?;
        ensure(
            finished.code.is_some_and(|code| codes.contains(&code)),
            || format!("cycle {i}: {finished}"),
        )?;
        n_done += u32::from(finished.code == Some(0));
        victim.verify()?;
        rig.expect_clean()?;
    }
    ensure(n_done > 0 || how == "sharing", || {
        "every cycle was refused".into()
    })?;
    victim.quit()
}

/// The target becomes another program again and again. Whatever memcr says (in the
/// middle of an exec a process looks as if it were gone), it does not hang, and each generation finds its memory right.
fn exec_storm(by: &str) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("execs", &["pause=2", by])?;
    let mut n_done = 0;
    for i in 0..25 {
        let finished = rig.memcr(victim.pid()).arg("-n").run()?;
        ensure(matches!(finished.code, Some(0 | 4 | 5 | 7 | 9)), || {
            format!("cycle {i}: {finished}")
        })?;
        n_done += u32::from(finished.code == Some(0));
        victim.verify()?;
        rig.expect_clean()?;
    }
    ensure(n_done > 0, || "no cycle ever succeeded".into())?;
    victim.quit()
}

/// Two memcr on one target at the same moment: one may win, both may not.
fn two_at_once() -> Result {
    let (rig, other_rig) = (Rig::new()?, Rig::new()?);
    let mut victim = Victim::start("memory", &["size=16M", "threads=8"])?;
    let before = Snapshot::take(victim.pid())?;
    for i in 0..15 {
        let one = rig.memcr(victim.pid()).arg("-n").start()?;
        let other = other_rig.memcr(victim.pid()).arg("-n").start()?;
        let (one, other) = (one.finish()?, other.finish()?);
        // Each either worked (one behind the other), or was refused.
        let right = [&one, &other].iter().all(|f| matches!(f.code, Some(0 | 4)));
        ensure(right, || format!("round {i}:\n{one}\n{other}"))?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    other_rig.expect_clean()?;
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}
