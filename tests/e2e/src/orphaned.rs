//! memcr dies in the middle of a drop: some pages are gone, one thread waits in the call that
//! drops the next. Then somebody continues the target, which changes its memory, or waits
//! for what is missing, where nothing can stop it. The same with all of its pages gone, once memcr
//! has left it held.

use crate::common::Rig;
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Result, Snapshot, Victim, ensure, proc, require};
use rustix::process::Signal;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "orphaned",
        &[
            ("stopped_before", stopped_before),
            ("another_program", another_program),
            ("another_program_beside_a_restore", beside_a_restore),
        ],
    );
    trials.push(test("orphaned::own_sockets", own_sockets));
    for point in ["restore.disarmed", "restore.unguarded"] {
        trials.push(test(format!("orphaned::own_contexts_{point}"), move || {
            own_contexts(point)
        }));
    }
    for (name, mode, args) in TARGETS {
        for continued in [false, true] {
            let how = if continued { "continued" } else { "left_alone" };
            trials.push(test(format!("orphaned::{name}_{how}"), move || {
                comes_back(mode, args, continued)
            }));
        }
        trials.push(test(format!("orphaned::{name}_parked"), move || {
            goes_on(mode, args)
        }));
    }
    for habit in ["mremap", "onto", "dontneed", "munmap", "grow"] {
        for (how, order) in [("killed", "kill"), ("failed", "fail:EIO")] {
            trials.push(test(format!("orphaned::{habit}_{how}"), move || {
                is_tried_again(habit, order)
            }));
        }
    }
    trials.push(test("orphaned::held_on", held_on));
    trials
}

/// Whether a change falls into the moments of a restore is a matter of luck.
const N_ROUNDS: usize = 12;

/// What they do when they go on. The many wait in the kernel, for the page of the word that
/// they sleep on.
const TARGETS: [(&str, &str, &[&str]); 9] = [
    ("memory", "patrol", &["size=8M"]),
    ("mremap", "patrol", &["size=8M", "habit=mremap"]),
    ("onto", "patrol", &["size=8M", "habit=onto"]),
    ("grow", "patrol", &["size=8M", "habit=grow"]),
    ("dontneed", "patrol", &["size=8M", "habit=dontneed"]),
    (
        "pieces",
        "patrol",
        &["size=8M", "habit=dontneed", "vmas=64"],
    ),
    (
        "unmapped",
        "patrol",
        &["size=8M", "habit=munmap", "vmas=64"],
    ),
    ("fork", "forks", &["how=fork", "pause=200"]),
    ("many", "shape", &["size=16M", "vmas=3000", "sleepers=600"]),
];

/// Runs memcr until it dies with a thread of the target in the middle of the drop of mapping
/// `n`, counted from 1. False: there are fewer.
fn orphan(rig: &Rig, victim: &Victim, n: usize) -> Result<bool> {
    let orders = format!("pages.event@{n}=kill");
    let memcr = rig.memcr(victim.pid()).with_fault(&orders).arg("-n");
    let finished = memcr.run()?;
    if finished.code.is_none() {
        return Ok(true);
    }
    finished.expect(0)?;
    ensure(n > 1, || "nothing was dropped".into())?;
    Ok(false)
}

fn comes_back(mode: &str, args: &[&str], continued: bool) -> Result {
    require("userfaultfd")?;
    let are_many = args.iter().any(|arg| arg.starts_with("vmas="));
    let events: &[usize] = if are_many {
        &[1, 4, 40, 60]
    } else {
        &[1, 2, 4, 7]
    };
    for &n in events {
        let rig = Rig::new()?;
        let mut victim = Victim::start(mode, args)?;
        let pid = victim.pid();
        if !orphan(&rig, &victim, n)? {
            ensure(!are_many, || format!("there are fewer than {n} events"))?;
            continue;
        }
        if continued {
            victim.signal(Signal::CONT)?;
        }
        rig.recover(pid).run()?.expect(0)?;
        victim.verify()?;
        rig.expect_clean()?;
        victim.quit()?;
    }
    Ok(())
}

/// Continued while it is held, it changes its memory as soon as it has enough of it back.
fn goes_on(mode: &str, args: &[&str]) -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start(mode, args)?;
    for _ in 0..N_ROUNDS {
        rig.checkpoint(victim.pid()).run()?.expect(0)?;
        victim.signal(Signal::CONT)?;
        rig.restore(victim.pid()).run()?.expect(0)?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    victim.quit()
}

/// What it did to its memory while a restore went on that came to nothing is known to the next.
fn is_tried_again(habit: &str, order: &str) -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let habit = format!("habit={habit}");
    let mut victim = Victim::start("patrol", &["size=8M", &habit])?;
    let pid = victim.pid();
    // By how much of it is back.
    for n_chunks in 1..=N_ROUNDS {
        rig.checkpoint(pid).run()?.expect(0)?;
        victim.signal(Signal::CONT)?;
        let orders = format!("pages.populate@{}={order}", 2 * n_chunks);
        let restored = rig.restore(pid).with_fault(&orders).run()?;
        ensure(restored.code != Some(0), || "nothing went wrong".into())?;
        rig.restore(pid).run()?.expect(0)?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    victim.quit()
}

/// One that job control had stopped stays so, and goes on when that ends.
fn stopped_before() -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let pid = victim.pid();
    victim.signal(Signal::STOP)?;
    until("the target to stop", || proc::state(pid, pid) == Some('T'))?;
    orphan(&rig, &victim, 1)?;
    rig.recover(pid).run()?.expect(0)?;
    until("the target to stop again", || {
        proc::state(pid, pid) == Some('T')
    })?;
    victim.signal(Signal::CONT)?;
    victim.verify()?;
    rig.expect_clean()
}

/// `recover --hold` leaves it as it is, and a restore brings all of it back.
fn held_on() -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    orphan(&rig, &victim, 1)?;
    rig.recover(pid).arg("--hold").run()?.expect(0)?;
    rig.restore(pid).run()?.expect(0)?;
    rig.expect_clean()?;
    victim.verify()?;
    before.still(pid, Allow::default())
}

/// Continued while it is held, it becomes another program: nobody needs its memory any more.
fn another_program() -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("leap", &[])?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    victim.signal(Signal::CONT)?;
    is_another(&mut victim)?;
    let restored = rig.restore(victim.pid()).run()?;
    restored.expect(9)?;
    restored.says("runs another program")?;
    victim.verify()?;
    rig.expect_clean()?;
    victim.quit()
}

/// The same while its memory comes back.
fn beside_a_restore() -> Result {
    require("userfaultfd")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("leap", &[])?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    victim.signal(Signal::CONT)?;
    let restore = rig
        .restore(victim.pid())
        .with_fault("pages.populate@5=stop");
    let restore = restore.start()?;
    let memcr = restore.pid();
    until("memcr to stop", || proc::state(memcr, memcr) == Some('T'))?;
    is_another(&mut victim)?;
    restore.signal(Signal::CONT)?;
    let restored = restore.finish()?;
    restored.expect(9)?;
    restored.says("runs another program")?;
    victim.verify()?;
    rig.expect_clean()?;
    victim.quit()
}

fn is_another(victim: &mut Victim) -> Result {
    let said = victim.ask("leap")?;
    ensure(said == "ready", || format!("it said: {said}"))
}

/// memcr dies at fault point `name` of a cycle.
fn die_at(rig: &Rig, victim: &Victim, name: &str) -> Result {
    let orders = format!("{name}=kill");
    let finished = rig
        .memcr(victim.pid())
        .with_fault(&orders)
        .arg("-n")
        .run()?;
    ensure(finished.code.is_none(), || finished.to_string())
}

/// While the guard is made the target has a pair of sockets for a moment. Once it runs on, the
/// numbers are free for sockets of its own.
fn own_sockets() -> Result {
    opens_meanwhile("checkpoint.guard_made", "sockets", |_| Ok(()))
}

/// With all memory back somebody continues the target, which opens what looks like the guard.
fn own_contexts(point: &str) -> Result {
    opens_meanwhile(point, "contexts", |victim| victim.signal(Signal::CONT))
}

/// What the target opens after the death of memcr at `point`, once `wake` has let it run, is
/// none of a recovery's business; what memcr has left open is.
fn opens_meanwhile(point: &str, what: &str, wake: fn(&Victim) -> Result) -> Result {
    require("userfaultfd")?;
    for opens in [true, false] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("opener", &["size=8M"])?;
        let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
        die_at(&rig, &victim, point)?;
        if opens {
            wake(&victim)?;
            victim.ask(&format!("open {what}"))?;
        }
        rig.recover(pid).run()?.expect(0)?;
        victim.verify()?;
        rig.expect_clean()?;
        if !opens {
            before.still(pid, Allow::default())?;
        }
        victim.quit()?;
    }
    Ok(())
}
