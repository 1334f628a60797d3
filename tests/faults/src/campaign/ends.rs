//! SIGKILL of the target, at every point of memcr, while it is held, and while nobody is
//! there: memcr says so, and nothing of it is left.

use crate::Campaign;
use crate::phase::{PHASES, Phase};
use crate::subject::{Kind, Subject};
use memcr_harness::wait::until;
use memcr_harness::{Finished, Memcr, Result, proc};
use rustix::process::Signal;

/// How memcr may end when its target has been killed: it is gone (5), it ended meanwhile
/// (9), or memcr was done with it before (0). Killed between the last two steps it may also
/// be told as a failure (1, 12); nothing may be left all the same.
const ENDED: [i32; 5] = [0, 1, 5, 9, 12];

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started, or the points cannot be counted.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let mut subject = Subject::start(Kind::small("lz4,encrypt,file"))?;
    for phase in PHASES {
        for (point, _) in phase.passes(&subject)? {
            let outcome = subject.last_trial(&ENDED, |subject| {
                phase.prepare(subject)?;
                let memcr = phase.command(subject);
                let said = killed_at(subject, memcr, &format!("{point}=stop"))?;
                left_to_others(subject, said)
            })?;
            let row = format!("target killed in {}", phase.name());
            campaign.table.count(&row, &point, &outcome);
        }
    }
    held(campaign, &mut subject)?;
    parked(campaign, &mut subject)
}

/// Lets memcr stop itself at a point, kills the target there, and lets memcr go on.
fn killed_at(subject: &mut Subject, memcr: Memcr, orders: &str) -> Result<Finished> {
    let mut running = memcr.with_fault(orders).start()?;
    running.close_input();
    let memcr_pid = running.pid();
    until("memcr to stop", || {
        matches!(proc::state(memcr_pid, memcr_pid), Some('T' | 'Z') | None)
    })?;
    subject.victim.signal(Signal::KILL)?;
    running.signal(Signal::CONT)?;
    running.finish()
}

/// A checkpoint that was complete before the target died leaves its image to whoever
/// asks next, who then finds out; whoever finds it dead at an odd moment says how to clear
/// up.
fn left_to_others(subject: &Subject, said: Finished) -> Result<Finished> {
    match said.code {
        Some(0 | 1 | 5 | 12) if !subject.rig.left().is_empty() => {
            subject.rig.recover(subject.pid()).run()
        }
        _ => Ok(said),
    }
}

fn held(campaign: &mut Campaign, subject: &mut Subject) -> Result {
    let outcome = subject.last_trial(&[9], |subject| {
        let held = subject.rig.memcr(subject.pid()).hold()?;
        subject.victim.signal(Signal::KILL)?;
        held.finish()
    })?;
    campaign
        .table
        .count("target killed while held", "-p", &outcome);
    Ok(())
}

/// Nobody of ours sees it die: the next command does.
fn parked(campaign: &mut Campaign, subject: &mut Subject) -> Result {
    type Next = (&'static str, fn(&Subject) -> Memcr);
    let next: [Next; 3] = [
        ("restore", |subject| subject.rig.restore(subject.pid())),
        ("recover", |subject| subject.rig.recover(subject.pid())),
        ("recover --all", |subject| subject.rig.recover_all()),
    ];
    for (name, command) in next {
        let outcome = subject.last_trial(&ENDED, |subject| {
            Phase::Restore.prepare(subject)?;
            subject.victim.signal(Signal::KILL)?;
            subject.victim.exit_status()?;
            let said = command(subject).run()?;
            left_to_others(subject, said)
        })?;
        campaign
            .table
            .count("target killed while parked", name, &outcome);
    }
    Ok(())
}
