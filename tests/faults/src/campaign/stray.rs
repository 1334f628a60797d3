//! SIGCONT from somebody who does not know: a parked target, or one whose memcr has died in
//! the middle of the drop, goes on and has to wait at the first missing page, whatever it was
//! about to do with its memory.

use crate::Campaign;
use crate::phase::Phase;
use crate::subject::{Kind, Subject};
use memcr_harness::{Finished, Result};
use rustix::process::Signal;
use std::time::Duration;

/// What targets do when they go on.
const HABITS: [(&str, Habit); 7] = [
    ("patrol", ("patrol", &["size=32M"], &[])),
    (
        "mremap",
        ("patrol", &["size=8M", "habit=mremap"], &["maps", "smaps"]),
    ),
    (
        "onto",
        ("patrol", &["size=8M", "habit=onto"], &["maps", "smaps"]),
    ),
    ("dontneed", ("patrol", &["size=8M", "habit=dontneed"], &[])),
    (
        "pieces",
        ("patrol", &["size=8M", "habit=dontneed", "vmas=64"], &[]),
    ),
    (
        "unmapped",
        (
            "patrol",
            &["size=8M", "habit=munmap", "vmas=64"],
            &["maps", "smaps"],
        ),
    ),
    ("fork", ("forks", &["how=fork", "pause=200"], &[])),
];
/// Mode, options, what changes without memcr.
type Habit = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);
/// How long it may go on before it is restored: long enough to come to missing pages.
const LONGEST: Duration = Duration::from_millis(60);

/// At the latest with which of its events memcr dies in the drop.
const EVENTS: [usize; 6] = [1, 2, 3, 4, 40, 90];

/// Everything of this kind.
///
/// # Errors
/// When a target cannot be started.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let n_rounds = campaign.args.choose(40, 4);
    for (name, (mode, args, changing)) in HABITS {
        let mut subject = Subject::start(Kind {
            pipeline: "lz4,file".into(),
            mode,
            args,
            changing,
            rss_changes: name != "patrol",
        })?;
        for i in 0..n_rounds {
            let at = campaign.random.moment(LONGEST);
            let outcome = subject.trial(&[0], |subject| {
                Phase::Restore.prepare(subject)?;
                subject.victim.signal(Signal::CONT)?;
                // Not synchronisation: any moment will do.
                std::thread::sleep(at);
                subject.rig.restore(subject.pid()).run()
            })?;
            let row = format!("stray SIGCONT, {name}");
            let what = format!("round {i}, restored after {at:?}");
            campaign.table.count(&row, &what, &outcome);
        }
        for i in 0..n_rounds {
            let (at, n) = (campaign.random.moment(LONGEST), EVENTS[i % EVENTS.len()]);
            let outcome = subject.trial(&[0], |subject| in_the_drop(subject, n, at))?;
            let row = format!("stray SIGCONT in the drop, {name}");
            let what = format!("round {i}, recovered after {at:?}");
            campaign.table.count(&row, &what, &outcome);
        }
    }
    Ok(())
}

/// memcr dies while a thread of the target waits in a call that drops pages, at the latest with
/// event `n`; then somebody continues the target.
fn in_the_drop(subject: &mut Subject, n: usize, at: Duration) -> Result<Finished> {
    for n in std::iter::successors(Some(n), |n| Some(n / 2)).take_while(|&n| n > 0) {
        let orders = format!("pages.event@{n}=kill");
        let memcr = subject.rig.memcr(subject.pid()).with_fault(&orders);
        let finished = memcr.arg("-n").run()?;
        if finished.code.is_none() {
            break;
        }
        // There are fewer.
        finished.expect(0)?;
    }
    subject.victim.signal(Signal::CONT)?;
    // Not synchronisation: any moment will do.
    std::thread::sleep(at);
    subject.rig.recover(subject.pid()).run()
}
