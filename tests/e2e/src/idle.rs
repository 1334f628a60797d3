//! `--idle`: a checkpoint's workers let everybody else go first, and nobody else's do.
//!
//! ```text
//!   memcr --idle ──▶ a worker stops memcr at a fault point ─▶ all threads are looked at ─▶ goes on
//!                       ├ pages.fetch     storing     workers idle
//!                       ├ sink.read@N     verifying   workers idle
//!                       └ pages.populate  restoring   nobody is
//! ```
//!
//! How much later an idle worker comes is the kernel's business, and no test here.

use crate::common::{Rig, unharmed};
use crate::table;
use libtest_mimic::Trial;
use memcr_client::{Ask, Choice, Subject};
use memcr_harness::memcr::Running;
use memcr_harness::proc::Schedule;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Memcr, Result, Setup, Snapshot, Victim, ensure, proc};
use rustix::process::Signal;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "idle",
        &[
            ("storing_and_not_restoring", storing_and_not_restoring),
            ("by_the_configuration", by_the_configuration),
            ("verifying", verifying),
            ("not_the_undo", not_the_undo),
            ("parked_and_restored", parked_and_restored),
            ("by_a_client", by_a_client),
            ("by_the_daemon", by_the_daemon),
        ],
    )
}

/// How workers may be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Like everybody.
    Normal,
    /// Behind the restores of the same daemon.
    Low,
    /// Behind everybody.
    Idle,
}

impl Want {
    /// Whether a thread of a memcr that was started by a process like `ours` is so.
    fn fits(self, found: Schedule, ours: Schedule) -> bool {
        let low = (ours.nice + 10).min(19);
        match self {
            // memcr's first thread may be in a hurry just then.
            Self::Normal => found.policy != Schedule::IDLE && found.nice == ours.nice,
            Self::Low => found.policy == ours.policy && found.nice == low,
            Self::Idle => found.policy == Schedule::IDLE,
        }
    }
}

/// Looks at every thread of a memcr that stands still: its workers are as wanted, and all
/// others like ours.
fn expect(memcr: u32, want: Want) -> Result {
    let us = std::process::id();
    let ours = Schedule::of(us, us)?;
    let mut n_workers = 0;
    for tid in proc::threads(memcr) {
        let name = proc::text(memcr, &format!("task/{tid}/comm"))?;
        let is_worker = name.starts_with("memcr-worker-");
        n_workers += usize::from(is_worker);
        let want = if is_worker { want } else { Want::Normal };
        let found = Schedule::of(memcr, tid)?;
        ensure(want.fits(found, ours), || {
            format!("{} is {found:?}, we are {ours:?}", name.trim())
        })?;
    }
    ensure(n_workers > 0, || "there are no workers".into())
}

/// Waits until memcr has stopped itself, looks, and lets it go on.
fn look(memcr: u32, want: Want) -> Result {
    until("memcr to stop itself", || {
        proc::state(memcr, memcr) == Some('T')
    })?;
    let seen = expect(memcr, want);
    proc::send(memcr, Signal::CONT)?;
    seen
}

fn target() -> Result<(Rig, Victim, Snapshot)> {
    let victim = Victim::start("memory", &["size=32M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    Ok((Rig::new()?, victim, before))
}

/// Checkpoint and restore at once: both stop in the middle.
fn cycle(memcr: Memcr, want: Want) -> Result {
    let orders = "pages.fetch=stop;pages.populate=stop";
    let running = memcr.arg("-n").with_fault(orders).start()?;
    look(running.pid(), want)?;
    look(running.pid(), Want::Normal)?;
    done(running, 0)
}

fn done(running: Running, code: i32) -> Result {
    running.finish()?.expect(code)
}

fn storing_and_not_restoring() -> Result {
    for (flags, want) in [(&["--idle"][..], Want::Idle), (&[], Want::Normal)] {
        let (rig, mut victim, before) = target()?;
        cycle(rig.memcr(victim.pid()).args(flags), want)?;
        unharmed(&rig, &mut victim, &before, Allow::default())?;
    }
    Ok(())
}

fn by_the_configuration() -> Result {
    for (text, want) in [("idle = true", Want::Idle), ("idle = false", Want::Normal)] {
        let (rig, mut victim, before) = target()?;
        let config = tempfile::NamedTempFile::new()?;
        std::fs::write(config.path(), text)?;
        let memcr = rig.memcr(victim.pid()).arg("--config").arg(config.path());
        cycle(memcr, want)?;
        unharmed(&rig, &mut victim, &before, Allow::default())?;
    }
    Ok(())
}

/// Of more than a hundred chunks, with some two dozen reads of tables before them.
fn verifying() -> Result {
    let (rig, mut victim, before) = target()?;
    let memcr = rig.memcr(victim.pid()).args(["--idle", "--verify", "-n"]);
    let running = memcr.with_fault("sink.read@60=stop").start()?;
    look(running.pid(), Want::Idle)?;
    done(running, 0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// What was dropped already comes back at once, however busy the machine is.
fn not_the_undo() -> Result {
    let (rig, mut victim, before) = target()?;
    let memcr = rig.memcr(victim.pid()).args(["--idle", "-n"]);
    let orders = "checkpoint.dropped=fail:EIO;pages.populate=stop";
    let running = memcr.with_fault(orders).start()?;
    look(running.pid(), Want::Normal)?;
    done(running, 7)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The journal does not hand it on.
fn parked_and_restored() -> Result {
    let (rig, mut victim, before) = target()?;
    let pid = victim.pid();
    let checkpoint = rig.checkpoint(pid).arg("--idle");
    let running = checkpoint.with_fault("pages.fetch=stop").start()?;
    look(running.pid(), Want::Idle)?;
    done(running, 0)?;
    let restore = rig.restore(pid).with_fault("pages.populate=stop").start()?;
    look(restore.pid(), Want::Normal)?;
    done(restore, 0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A client may ask for it; without it the daemon's restores still come first.
fn by_a_client() -> Result {
    for (idle, want) in [(true, Want::Idle), (false, Want::Low)] {
        through_a_daemon(&[], idle, want)?;
    }
    Ok(())
}

/// The operator may have it so for all.
fn by_the_daemon() -> Result {
    through_a_daemon(&["--idle"], false, Want::Idle)
}

fn through_a_daemon(flags: &[&str], idle: bool, want: Want) -> Result {
    let (rig, mut victim, before) = target()?;
    let setup = Setup::new(&rig).memcr(|memcr| {
        let orders = "pages.fetch=stop;pages.populate=stop";
        memcr.args(flags).with_fault(orders)
    });
    let daemon = setup.start()?;
    let subject = Subject::Pid(victim.pid().cast_signed());
    let (mut client, choice) = (daemon.client()?, choice(idle));
    std::thread::scope(|scope| {
        let asked = scope.spawn(move || {
            let ask = Ask::Checkpoint {
                subject: subject.clone(),
                choice,
                timeout: None,
            };
            let held = client.ask(ask);
            held.and_then(|_| client.restore(subject, None))
        });
        for want in [want, Want::Normal] {
            look(daemon.stopped_session()?, want)?;
        }
        let answer = asked.join().map_err(|_| "the client has panicked")?;
        ensure(answer.is_ok(), || format!("{answer:?}"))
    })?;
    daemon.stop()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn choice(idle: bool) -> Choice {
    Choice {
        idle,
        ..Choice::default()
    }
}
