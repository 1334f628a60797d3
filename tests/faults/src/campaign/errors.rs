//! Errors where a disk, a kernel or a target can have some: what was begun is undone,
//! what is held stays held.

use crate::Campaign;
use crate::phase::Phase;
use crate::subject::{Kind, Subject};
use memcr_harness::Result;

/// The full disk stays full, the bad sector is bad once.
const SINK_ERRORS: [(&str, &str); 2] = [("+", "fail:ENOSPC"), ("", "fail:EIO")];

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started, or the points cannot be counted.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let (full, quick) = (Kind::usual("lz4,file"), Kind::small("lz4,file"));
    let mut subject = Subject::start(campaign.args.choose(full, quick))?;
    every_write(campaign, &mut subject, Phase::Checkpoint)?;
    every_write(campaign, &mut subject, Phase::Whole)?;
    on_the_way_out(campaign, &mut subject)?;
    on_the_way_back(campaign, &mut subject)
}

/// ENOSPC and EIO at every write into the image: undone, and told by exit code 7; or by 3,
/// if it was the head of the image, which is written before the freeze.
fn every_write(campaign: &mut Campaign, subject: &mut Subject, phase: Phase) -> Result {
    let passes = phase.passes(subject)?;
    let n_writes = passes.iter().find(|(name, _)| name == "sink.write");
    for n in 1..=n_writes.map_or(0, |(_, n)| *n) {
        for (ever_after, action) in SINK_ERRORS {
            let orders = format!("sink.write@{n}{ever_after}={action}");
            let outcome = subject.trial(&[3, 7], |subject| {
                phase.command(subject).with_fault(&orders).run()
            })?;
            let row = format!("{} with a failing write", phase.name());
            campaign.table.count(&row, &orders, &outcome);
        }
    }
    Ok(())
}

/// Any step of a checkpoint fails: it is undone (before the freeze that is code 3, or 1
/// for a journal that cannot be begun), or it does not matter.
fn on_the_way_out(campaign: &mut Campaign, subject: &mut Subject) -> Result {
    for (point, n) in Phase::Checkpoint.passes(subject)? {
        for orders in [
            format!("{point}=fail:EIO"),
            format!("{point}@{n}=fail:ENOMEM"),
        ] {
            let outcome = subject.trial(&[0, 1, 3, 7], |subject| {
                let said = Phase::Checkpoint.command(subject).with_fault(&orders);
                let said = said.run()?;
                match said.code {
                    Some(0) => subject.rig.restore(subject.pid()).run(),
                    // It is held, but the journal does not say that this is on purpose.
                    Some(1) if !subject.rig.left().is_empty() => {
                        said.says("memcr recover")?;
                        subject.rig.recover(subject.pid()).run()
                    }
                    _ => Ok(said),
                }
            })?;
            let row = "checkpoint with a failing step";
            campaign.table.count(row, &orders, &outcome);
        }
    }
    Ok(())
}

/// Any step of a restore fails: the target stays held, and the next try works. An image
/// or journal that cannot be removed stays, and that is told.
fn on_the_way_back(campaign: &mut Campaign, subject: &mut Subject) -> Result {
    for (point, n) in Phase::Restore.passes(subject)? {
        for orders in [
            format!("{point}=fail:EIO"),
            format!("{point}@{n}=fail:ENOMEM"),
        ] {
            let outcome = subject.trial(&[0], |subject| {
                Phase::Restore.prepare(subject)?;
                let said = Phase::Restore.command(subject).with_fault(&orders);
                let said = said.run()?;
                if point.ends_with(".remove") {
                    said.says("stays behind")?;
                    subject.rig.wipe()?;
                }
                match said.code {
                    Some(12) => subject.rig.restore(subject.pid()).run(),
                    _ => Ok(said),
                }
            })?;
            let row = "restore with a failing step";
            campaign.table.count(row, &orders, &outcome);
        }
    }
    Ok(())
}
