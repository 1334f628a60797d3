//! Ctrl-C, SIGTERM and `--timeout` in the middle of a checkpoint: undone, at any percentage
//! and at every step.

use super::bring_back;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Finished, Memcr, Result, Rig, Snapshot, Victim, ensure, proc};
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "parked",
        &[
            ("interrupted_at_any_percentage", || at_writes(Signal::INT)),
            ("terminated_at_any_percentage", || at_writes(Signal::TERM)),
            ("interrupted_at_every_step", interrupted_at_every_step),
            ("timeout_at_any_percentage", timeout_at_any_percentage),
            ("interrupted_restore_goes_on", interrupted_restore_goes_on),
        ],
    )
}

/// Writes into the image of a 64 MiB target that does not compress, at least.
const N_WRITES: u64 = 200;
/// An undo has a second, and the time to put back what was dropped; the machine is slow.
const SOON: Duration = Duration::from_secs(3);

fn victim() -> Result<Victim> {
    Victim::start("memory", &["size=64M", "content=random", "threads=3"])
}

/// Starts memcr, lets it stop itself at a point, sends it a signal there, and lets it go
/// on. `None`: it has not come there.
fn signalled_at(memcr: Memcr, orders: &str, signal: Signal) -> Result<Option<Finished>> {
    let mut running = memcr.with_fault(orders).start()?;
    running.close_input();
    let pid = running.pid();
    until("memcr to stop", || {
        matches!(proc::state(pid, pid), Some('T' | 'Z') | None)
    })?;
    if proc::state(pid, pid) != Some('T') {
        return running.finish().map(|_| None);
    }
    running.signal(signal)?;
    let begin = Instant::now();
    running.signal(Signal::CONT)?;
    let finished = running.finish()?;
    ensure(begin.elapsed() < SOON, || {
        format!("it took {:?} to end\n{finished}", begin.elapsed())
    })?;
    Ok(Some(finished))
}

/// The target runs with every byte, and nothing is left.
fn unharmed(rig: &Rig, victim: &mut Victim, before: &Snapshot) -> Result {
    rig.expect_clean()?;
    let allow = Allow {
        less_rss: true,
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    victim.verify().map(drop)
}

fn at_writes(signal: Signal) -> Result {
    let rig = Rig::with("file")?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    for percent in [0, 10, 25, 50, 75, 90, 100] {
        let orders = format!("sink.write@{}=stop", (N_WRITES * percent / 100).max(1));
        let finished = signalled_at(rig.checkpoint(victim.pid()), &orders, signal)?;
        let finished = finished.ok_or_else(|| format!("no such write: {orders}"))?;
        finished.expect(8)?;
        unharmed(&rig, &mut victim, &before)?;
    }
    victim.quit()
}

/// Wherever it is: undone (8), or too late and complete (0), or done before.
fn interrupted_at_every_step() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for point in points(&rig, pid)? {
        let orders = format!("{point}=stop");
        let Some(finished) = signalled_at(rig.checkpoint(pid), &orders, Signal::INT)? else {
            return Err(format!("{point} is not passed any more").into());
        };
        match finished.code {
            Some(0) => drop(bring_back(&rig, pid)?),
            _ => finished.expect(8)?,
        }
        unharmed(&rig, &mut victim, &before)?;
    }
    victim.quit()
}

/// The points that a checkpoint passes.
fn points(rig: &Rig, pid: u32) -> Result<Vec<String>> {
    let finished = rig.checkpoint(pid).with_fault("count").run()?;
    finished.expect(0)?;
    bring_back(rig, pid)?;
    let passed = |line: &str| {
        let (name, n) = line.split_once(' ')?;
        (name.contains('.') && n.parse::<u64>().ok()? > 0).then(|| name.to_owned())
    };
    let points: Vec<String> = finished.err.lines().filter_map(passed).collect();
    ensure(points.len() > 3, || format!("no points\n{finished}"))?;
    Ok(points)
}

/// The limit runs out while a write does not come back.
fn timeout_at_any_percentage() -> Result {
    let rig = Rig::with("file")?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    for percent in [1, 50, 100] {
        let orders = format!("sink.write@{}=delay:1500", N_WRITES * percent / 100);
        let memcr = rig.checkpoint(victim.pid()).args(["--timeout", "1"]);
        memcr.with_fault(&orders).run()?.expect(8)?;
        unharmed(&rig, &mut victim, &before)?;
    }
    victim.quit()
}

/// Nobody stops a restore half way: the target could only be killed then.
fn interrupted_restore_goes_on() -> Result {
    let rig = Rig::with("file")?;
    let mut victim = victim()?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for orders in ["sink.read@2=stop", "pages.populate@50=stop"] {
        rig.checkpoint(pid).run()?.expect(0)?;
        let finished = signalled_at(rig.restore(pid), orders, Signal::INT)?;
        finished.ok_or("it is not passed any more")?.expect(0)?;
        unharmed(&rig, &mut victim, &before)?;
    }
    victim.quit()
}
