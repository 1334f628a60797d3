//! Signals that arrive while nobody is there to see them.

use super::{bring_back, expect_parked, park};
use crate::common::expect_freed;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::{until, until_some};
use memcr_harness::{Allow, Context, Finished, Result, Rig, Snapshot, Victim, ensure, proc};
use rustix::process::{Signal, WaitOptions};
use std::os::unix::process::ExitStatusExt;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "parked",
        &[
            ("told_to_die", told_to_die),
            ("handled_once", handled_once),
            ("handler_of_cont_sees_nothing", || continued(0)),
            ("handler_of_cont_sees_one", || continued(1)),
            ("stray_cont_waits", stray_cont_waits),
            ("stray_cont_again_and_again", stray_cont_again_and_again),
            ("stop_while_parked", stop_while_parked),
            ("stop_during_the_checkpoint", stop_during_the_checkpoint),
            ("cont_during_the_checkpoint", cont_during_the_checkpoint),
            ("stop_and_cont", stop_and_cont),
            ("ignored_ones", ignored_ones),
            ("the_parent_sees_a_stop", the_parent_sees_a_stop),
        ],
    )
}

fn state(victim: &Victim) -> Option<char> {
    proc::state(victim.pid(), victim.pid())
}

/// A signal that ends it by default waits for it, as for any stopped process: it ends by
/// it, whether its memory came back for that (0) or not (9).
fn told_to_die() -> Result {
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
        park(&rig, victim.pid())?;
        victim.signal(signal)?;
        let finished = rig.restore(victim.pid()).run()?;
        ensure(matches!(finished.code, Some(0 | 9)), || {
            finished.to_string()
        })?;
        let status = victim.exit_status()?;
        ensure(status.signal() == Some(signal.as_raw()), || {
            format!("sent {signal:?}, the target ended with {status}")
        })?;
        rig.expect_clean()?;
    }
    Ok(())
}

/// One with a handler is handled after the restore, once, with all memory there: the
/// handler looks at every byte.
fn handled_once() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("handlers", &["signals=10,12,15", "size=8M"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    for signal in [Signal::USR1, Signal::USR1, Signal::TERM] {
        victim.signal(signal)?;
    }
    expect_freed(&before, pid, 8 << 10)?;
    bring_back(&rig, pid)?;
    expect_stat(&mut victim, "10=1 12=0 15=1")?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// What handlers have counted. They run when the target is let go, which is before it
/// answers anybody.
fn expect_stat(victim: &mut Victim, want: &str) -> Result {
    let got = victim.ask("stat")?;
    ensure(got == want, || {
        format!("handlers counted {got}, want {want}")
    })
}

/// A handler of SIGCONT sees those that others have sent, and none of ours.
fn continued(n: usize) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("handlers", &["signals=18", "size=8M"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    for _ in 0..n {
        victim.signal(Signal::CONT)?;
    }
    bring_back(&rig, pid)?;
    expect_stat(&mut victim, &format!("18={n}"))?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// Somebody continues it: it does not crash, it does not run on zeros, it waits at the
/// first page that is missing, and is right when that is back.
fn stray_cont_waits() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("patrol", &["size=32M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    victim.signal(Signal::CONT)?;
    // Nobody may ask it anything now: its read of the question would wait for the page it
    // goes to, with the pipe locked, and the writer with it.
    expect_freed(&before, pid, 31 << 10)?;
    ensure(proc::lives(pid), || "it is gone".into())?;
    bring_back(&rig, pid)?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

fn stray_cont_again_and_again() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("patrol", &["size=8M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for _ in 0..5 {
        park(&rig, pid)?;
        for signal in [Signal::CONT, Signal::STOP, Signal::CONT, Signal::CONT] {
            victim.signal(signal)?;
        }
        bring_back(&rig, pid)?;
        victim.verify()?;
    }
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// A stop of somebody else's takes effect after the restore.
fn stop_while_parked() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let pid = victim.pid();
    park(&rig, pid)?;
    victim.signal(Signal::STOP)?;
    bring_back(&rig, pid)?;
    until("the stop", || state(&victim) == Some('T'))?;
    victim.signal(Signal::CONT)?;
    victim.verify()?;
    victim.quit()
}

/// Checkpoints with memcr stopping itself as `orders` say, where `signal` is sent to the target.
fn checkpoint_at(rig: &Rig, victim: &Victim, orders: &str, signal: Signal) -> Result<Finished> {
    let memcr = rig.checkpoint(victim.pid()).with_fault(orders).start()?;
    until(&format!("memcr to stop itself ({orders})"), || {
        proc::state(memcr.pid(), memcr.pid()) == Some('T')
    })?;
    victim.signal(signal)?;
    memcr.signal(Signal::CONT)?;
    memcr.finish()
}

/// So does one that comes while a thread of the target works for us.
fn stop_during_the_checkpoint() -> Result {
    for (point, code) in [
        ("checkpoint.frozen=stop", 0),
        ("checkpoint.guard_made=stop", 0),
        ("checkpoint.armed=stop", 0),
        ("checkpoint.drop=stop", 0),
        ("checkpoint.dropped=stop", 0),
        (
            "checkpoint.guard_made=stop;checkpoint.registered=fail:EIO",
            7,
        ),
    ] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
        checkpoint_at(&rig, &victim, point, Signal::STOP)?.expect(code)?;
        if code == 0 {
            bring_back(&rig, victim.pid())?;
        }
        let what = format!("the stop that was sent at {point}");
        until(&what, || state(&victim) == Some('T'))?;
        victim.signal(Signal::CONT)?;
        victim.verify()?;
        rig.expect_clean()?;
        victim.quit()?;
    }
    Ok(())
}

/// One that is called off while the target is held is not obeyed any more.
fn stop_and_cont() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let pid = victim.pid();
    checkpoint_at(&rig, &victim, "checkpoint.drop=stop", Signal::STOP)?.expect(0)?;
    victim.signal(Signal::CONT)?;
    until("the target to go on", || state(&victim) != Some('T'))?;
    bring_back(&rig, pid)?;
    victim.verify()?;
    victim.quit()
}

/// Handled once, after the restore; and the target stands still until then.
fn cont_during_the_checkpoint() -> Result {
    for point in [
        "checkpoint.stored=stop",
        "checkpoint.registered=stop",
        "checkpoint.dropped=stop",
    ] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("handlers", &["signals=18", "size=8M"])?;
        let pid = victim.pid();
        checkpoint_at(&rig, &victim, point, Signal::CONT)?.expect(0)?;
        expect_parked(pid)?;
        bring_back(&rig, pid)?;
        expect_stat(&mut victim, "18=1").context(point)?;
        victim.verify()?;
        victim.quit()?;
    }
    Ok(())
}

fn ignored_ones() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    for signal in [Signal::CHILD, Signal::WINCH, Signal::URG] {
        victim.signal(signal)?;
    }
    bring_back(&rig, pid)?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// A parked target is a stopped one: a parent that asks for stops sees this one, and
/// that it is over.
fn the_parent_sees_a_stop() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=2"])?;
    let pid = victim.pid();
    park(&rig, pid)?;
    let handle = proc::handle(pid)?;
    let seen = until_some("news of the stop", || {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        rustix::process::waitpid(Some(handle), options)
            .ok()
            .flatten()
    })?;
    ensure(seen.1.stopped(), || {
        format!("the parent heard {:?}", seen.1)
    })?;
    bring_back(&rig, pid)?;
    victim.verify()?;
    let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
    let more = rustix::process::waitpid(Some(handle), options).context("waitpid")?;
    ensure(more.is_none(), || format!("the parent heard {more:?} more"))?;
    victim.quit()
}
