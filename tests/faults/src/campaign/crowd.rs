//! Twenty targets held at once, and their sessions killed.

use crate::Campaign;
use crate::kill::WELL;
use crate::subject::{Kind, Outcome, Subject};
use memcr_harness::{Finished, Held, Result, Rig, Trouble};
use rustix::process::Signal;
use std::rc::Rc;

const N_TARGETS: usize = 20;

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started or held.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    one_dies(campaign)?;
    all_die(campaign)?;
    nobody_was_there(campaign)
}

fn targets() -> Result<(Rc<Rig>, Vec<Subject>)> {
    let rig = Rc::new(Rig::with("lz4,file")?);
    let kind = Kind {
        args: &["size=1M", "threads=1"],
        ..Kind::usual("lz4,file")
    };
    let start = |_| Subject::beside(Rc::clone(&rig), kind.clone());
    let subjects: Result<Vec<_>> = (0..N_TARGETS).map(start).collect();
    Ok((rig, subjects?))
}

fn hold_all(subjects: &[Subject]) -> Result<Vec<Held>> {
    let hold = |subject: &Subject| subject.rig.memcr(subject.pid()).hold();
    subjects.iter().map(hold).collect()
}

/// SIGKILL of one session: that one is recovered, the others do not notice.
fn one_dies(campaign: &mut Campaign) -> Result {
    let (rig, mut subjects) = targets()?;
    let mut held = hold_all(&subjects)?;
    let (mut first, killed) = (subjects.remove(0), held.remove(0));
    killed.signal(Signal::KILL)?;
    killed.finish()?;
    let said = rig.recover(first.pid()).run()?;
    let outcome = first.judge(&said, &[0]);
    campaign.table.count("one of twenty killed", "it", &outcome);
    for (mut subject, held) in subjects.into_iter().zip(held) {
        let said = held.enter()?;
        let outcome = subject.judge(&said, &[0]);
        let what = "another one";
        campaign.table.count("one of twenty killed", what, &outcome);
    }
    Ok(())
}

/// SIGKILL of all sessions.
fn all_die(campaign: &mut Campaign) -> Result {
    let (rig, subjects) = targets()?;
    for held in hold_all(&subjects)? {
        held.signal(Signal::KILL)?;
        held.finish()?;
    }
    let said = rig.recover_all().run()?;
    judge_all(campaign, subjects, &said, "all of twenty killed");
    Ok(())
}

/// Twenty targets that nobody holds: `recover --all` brings them back as well.
fn nobody_was_there(campaign: &mut Campaign) -> Result {
    let (rig, subjects) = targets()?;
    for subject in &subjects {
        rig.checkpoint(subject.pid()).run()?.expect(0)?;
    }
    let said = rig.recover_all().run()?;
    judge_all(campaign, subjects, &said, "twenty checkpointed");
    Ok(())
}

fn judge_all(campaign: &mut Campaign, subjects: Vec<Subject>, said: &Finished, row: &str) {
    let rig = subjects.first().map(|subject| Rc::clone(&subject.rig));
    for mut subject in subjects {
        let outcome = subject.judge(said, &WELL);
        campaign.table.count(row, "one of them", &outcome);
    }
    let left = rig.map(|rig| rig.left()).unwrap_or_default();
    if !left.is_empty() {
        let what = Trouble::from(format!("left behind: {left:?}")).to_string();
        campaign
            .table
            .count(row, "in the end", &Outcome::Altered(what));
    }
}
