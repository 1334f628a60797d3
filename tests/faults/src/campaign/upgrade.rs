//! What one build of memcr has stored, another one brings back: the plain one and the one
//! with fault points stand for the one before and the one after an upgrade.

use crate::Campaign;
use crate::subject::{Kind, Subject};
use memcr_harness::{Memcr, Result};
use rustix::process::Signal;

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let mut subject = Subject::start(Kind::usual("lz4,encrypt,file"))?;
    let plain: fn(Memcr) -> Memcr = |memcr| memcr;
    // Orders that change nothing: they only choose the build.
    let other: fn(Memcr) -> Memcr = |memcr| memcr.with_fault("count");
    for (what, before, after) in [("to the other", plain, other), ("and back", other, plain)] {
        let outcome = subject.trial(&[0], |subject| {
            let (rig, pid) = (&subject.rig, subject.pid());
            before(rig.checkpoint(pid)).run()?.expect(0)?;
            after(rig.restore(pid)).run()
        })?;
        campaign.table.count("upgrade while parked", what, &outcome);
        let outcome = subject.trial(&[0], |subject| {
            let (rig, pid) = (&subject.rig, subject.pid());
            let held = before(rig.memcr(pid)).hold()?;
            held.signal(Signal::KILL)?;
            held.finish()?;
            after(rig.recover(pid)).run()
        })?;
        campaign
            .table
            .count("upgrade of a killed one", what, &outcome);
    }
    Ok(())
}
