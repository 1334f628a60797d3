//! Two commands with nothing in between: `memcr checkpoint`, then `memcr restore`.
//!
//! A target between them is *parked*: stopped, its memory missing, and no process of ours
//! anywhere near.

mod abort;
mod answers;
mod commands;
mod image;
mod places;
mod signals;

use crate::common::{expect_freed, expect_private};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Finished, Result, Rig, Snapshot, Victim, ensure, proc};

pub(crate) fn tests() -> Vec<Trial> {
    let all = [
        answers::tests(),
        commands::tests(),
        signals::tests(),
        image::tests(),
        places::tests(),
        abort::tests(),
    ];
    all.into_iter().flatten().collect()
}

/// Parks a target, and checks what that promises: it stands still, nobody traces it, its
/// image is private.
fn park(rig: &Rig, pid: u32) -> Result<Finished> {
    let finished = rig.checkpoint(pid).run()?;
    finished.expect(0)?;
    expect_parked(pid)?;
    expect_private(&rig.image(pid))?;
    Ok(finished)
}

fn expect_parked(pid: u32) -> Result {
    // Each finds its stop before any code of its own, but has to come to it first.
    for tid in proc::threads(pid) {
        let what = format!("thread {tid} of process {pid} to be stopped");
        until(&what, || proc::state(pid, tid) == Some('T'))?;
    }
    let tracer = proc::field(&proc::text(pid, "status")?, "TracerPid")?;
    ensure(tracer == "0", || format!("process {tracer} traces it"))
}

/// Brings it back; nothing is left.
fn bring_back(rig: &Rig, pid: u32) -> Result<Finished> {
    let finished = rig.restore(pid).run()?;
    finished.expect(0)?;
    rig.expect_clean()?;
    Ok(finished)
}

/// Parked, its memory gone, brought back, everything as it was.
fn round_trip(rig: &Rig, victim: &mut Victim, pid: u32, freeable_kib: u64) -> Result {
    let before = Snapshot::take(pid)?;
    park(rig, pid)?;
    expect_freed(&before, pid, freeable_kib)?;
    bring_back(rig, pid)?;
    before.still(pid, memcr_harness::Allow::default())?;
    victim.verify().map(drop)
}
