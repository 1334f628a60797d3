//! SIGKILL of memcr: at every fault point, and at random moments.

use crate::Campaign;
use crate::phase::{PHASES, Phase};
use crate::subject::{Kind, Outcome, Subject};
use memcr_harness::{Memcr, Result, Trouble};
use rustix::process::Signal;
use std::time::Duration;

/// What `recover` may answer when the target is well: it was brought back, or there was
/// nothing to bring back.
pub(crate) const WELL: [i32; 2] = [0, 14];

/// Tries to meet a point as often as it was passed before.
const N_TRIES: usize = 5;

/// SIGKILL at every fault point of every command.
///
/// # Errors
/// When a target cannot be started, or the points cannot be counted.
pub(crate) fn points(campaign: &mut Campaign) -> Result {
    for pipeline in pipelines(campaign) {
        let mut subject = Subject::start(Kind::usual(&pipeline))?;
        for phase in PHASES {
            for (point, n_passes) in phase.passes(&subject)? {
                for n in chosen(n_passes, campaign.args.quick) {
                    let outcome = subject.trial(&WELL, |subject| {
                        strike(subject, phase, &point, n)?;
                        subject.rig.recover(subject.pid()).run()
                    })?;
                    let row = format!("{} killed at a point", phase.name());
                    let what = format!("{point}@{n}=kill");
                    campaign.table.count(&row, &what, &outcome);
                }
            }
        }
    }
    Ok(())
}

/// SIGKILL at random moments of every command, and while held; now and then of the
/// `recover` after that too.
///
/// # Errors
/// When a target cannot be started, or a command does not work.
pub(crate) fn moments(campaign: &mut Campaign) -> Result {
    let pipelines = campaign.args.pipelines.clone();
    let n = campaign
        .args
        .n_moments(pipelines.len() * (PHASES.len() + 1));
    for pipeline in pipelines {
        let mut subject = Subject::start(Kind::usual(&pipeline))?;
        for phase in PHASES {
            let whole = phase.duration(&subject)?;
            let recovery = Phase::Recover.duration(&subject)?;
            for i in 0..n {
                let at = campaign.random.moment(whole);
                let again = (i % 4 == 3).then(|| campaign.random.moment(recovery));
                let outcome = killed(&mut subject, phase, at, again)?;
                let row = format!("{} killed at random", phase.name());
                let what = format!("after {at:?} of {whole:?}, recover after {again:?}");
                campaign.table.count(&row, &what, &outcome);
            }
        }
        for i in 0..n {
            let outcome = killed_while_held(&mut subject)?;
            let what = format!("round {i}");
            campaign
                .table
                .count("-p killed while held", &what, &outcome);
        }
    }
    Ok(())
}

fn killed(
    subject: &mut Subject,
    phase: Phase,
    at: Duration,
    again: Option<Duration>,
) -> Result<Outcome> {
    subject.trial(&WELL, |subject| {
        phase.prepare(subject)?;
        kill_after(phase.command(subject), at)?;
        if let Some(at) = again {
            kill_after(subject.rig.recover(subject.pid()), at)?;
        }
        subject.rig.recover(subject.pid()).run()
    })
}

fn killed_while_held(subject: &mut Subject) -> Result<Outcome> {
    subject.trial(&[0], |subject| {
        let held = subject.rig.memcr(subject.pid()).hold()?;
        held.signal(Signal::KILL)?;
        held.finish()?;
        subject.rig.recover(subject.pid()).run()
    })
}

/// Starts memcr and kills it at that moment, unless it has ended by then.
fn kill_after(memcr: Memcr, at: Duration) -> Result {
    let mut running = memcr.start()?;
    running.close_input();
    // Not synchronisation: any moment will do.
    std::thread::sleep(at);
    let _ = running.signal(Signal::KILL);
    running.finish().map(drop)
}

/// The pipelines that every point is tried with: one, if it has to be quick.
fn pipelines(campaign: &Campaign) -> Vec<String> {
    let all = &campaign.args.pipelines;
    let n = campaign.args.choose(all.len(), 1);
    all.iter().take(n).cloned().collect()
}

/// Which passes of a point are worth a trial: the first one, one in the middle, the last.
fn chosen(n_passes: u64, quick: bool) -> Vec<u64> {
    let mut all = match quick {
        true => vec![n_passes.div_ceil(2)],
        false => vec![1, 2, n_passes / 2, n_passes - 1, n_passes],
    };
    all.retain(|n| (1..=n_passes).contains(n));
    all.dedup();
    all
}

/// Kills the command where it passes `point` for the `n`th time. How often it does depends on
/// how threads meet: where it was passed less often than when it was counted, it is tried again
/// with less. A fault that does not strike proves nothing.
fn strike(subject: &mut Subject, phase: Phase, point: &str, n: u64) -> Result {
    let mut finished = None;
    for n in (1..=n).rev().take(N_TRIES) {
        phase.prepare(subject)?;
        let orders = format!("{point}@{n}=kill");
        let ended = phase.command(subject).with_fault(&orders).run()?;
        if ended.signal == Some(Signal::KILL.as_raw()) {
            return Ok(());
        }
        ended.expect(0)?;
        phase.tidy(subject)?;
        finished = Some(ended);
    }
    let last = finished.map(|it| it.to_string()).unwrap_or_default();
    Err(Trouble::from(format!("the fault did not strike\n{last}")))
}
