//! Targets under a seccomp filter: it lets our calls pass, and is there for all others.

use crate::common::Rig;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Result, Snapshot, Victim, ensure, require};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "filters",
        &[
            ("no_call_gets_past", no_call_gets_past),
            ("its_risk_is_told", its_risk_is_told),
        ],
    )
}

/// Threads that do nothing but make a call that the filter answers; each time they are stopped
/// in the middle of it.
fn no_call_gets_past() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("answers", &["threads=4", "size=4M"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for _ in 0..5 {
        rig.memcr(pid).cycle()?;
        victim.verify()?;
        rig.checkpoint(pid).run()?.expect(0)?;
        rig.restore(pid).run()?.expect(0)?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// With memcr ends what keeps the filter off its calls.
fn its_risk_is_told() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    for (mode, is_told) in [("filter", true), ("memory", false)] {
        let mut victim = Victim::start(mode, &["size=4M"])?;
        let finished = rig.memcr(victim.pid()).arg("-v").cycle()?;
        let told = finished
            .err
            .contains("has a seccomp filter, which may end it");
        ensure(told == is_told, || format!("{mode}: {finished}"))?;
        victim.verify()?;
        victim.quit()?;
    }
    rig.expect_clean()
}
