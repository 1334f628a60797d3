//! Rows 1, 2, 3: threads and processes that come and go under our hands.

use crate::common::{Rig, hold};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Result, Snapshot, Trouble, Victim, ensure};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "races",
        &[
            ("clone_storm", || clone_storm(40)),
            ("heavy_clone_storm_200", || clone_storm(200)),
            ("exit_during_the_checkpoint", exit_during_the_checkpoint),
            ("leader_exited", leader_exited),
        ],
    )
}

/// Threads are born and die 1,000 times a second; none is lost, none sees wrong memory.
fn clone_storm(n_cycles: usize) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("clones", &["rate=1000", "spawners=2", "size=4M"])?;
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
        let was_over = finished.code == Some(4) && finished.err.contains("is a zombie");
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
