//! Checkpoint and restore again and again: descriptors, mappings, registrations and
//! threads of the target stay as they were, and keys do not pile up.

use crate::Campaign;
use crate::subject::{Kind, Outcome, Subject};
use memcr_harness::{Context, Result};

/// Every so many cycles everything is looked at.
const LOOK_EVERY: usize = 20;

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let n_cycles = campaign.args.choose(1000, 40);
    let mut subject = Subject::start(Kind {
        args: &["size=4M", "threads=3"],
        ..Kind::usual("lz4,encrypt,file")
    })?;
    let n_keys = n_keys()?;
    for i in 0..n_cycles / LOOK_EVERY {
        let outcome = subject.trial(&[0], |subject| {
            let (rig, pid) = (&subject.rig, subject.pid());
            for _ in 1..LOOK_EVERY {
                rig.checkpoint(pid).run()?.expect(0)?;
                rig.restore(pid).run()?.expect(0)?;
            }
            rig.checkpoint(pid).run()?.expect(0)?;
            rig.restore(pid).run()
        })?;
        let what = format!("to cycle {}", (i + 1) * LOOK_EVERY);
        campaign
            .table
            .count("cycles, twenty at a time", &what, &outcome);
    }
    let more = self::n_keys()?.saturating_sub(n_keys);
    if more >= n_cycles / 2 {
        let what = format!("{more} more keys after {n_cycles} cycles");
        campaign
            .table
            .count("cycles, twenty at a time", "keys", &Outcome::Altered(what));
    }
    Ok(())
}

/// Keys in the kernel's keyrings that we can see. Others may have made some meanwhile.
fn n_keys() -> Result<usize> {
    const FILE: &str = "/proc/keys";
    Ok(std::fs::read_to_string(FILE).context(FILE)?.lines().count())
}
