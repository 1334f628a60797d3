//! Rows 5, 8, 9, 10: signals before, during and after.

use crate::common::{Rig, expect_freed, hold, unharmed};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::{until, until_some};
use memcr_harness::{Allow, Context, Memcr, Result, Running, Snapshot, Victim, ensure, proc};
use rustix::process::{Signal, WaitOptions, WaitStatus};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "signals",
        &[
            ("storm", || storm(&[])),
            ("storm_on_the_first_thread", || storm(&["leader=1"])),
            ("stops_and_continues", stops_and_continues),
            ("the_parent_sees_nothing", the_parent_sees_nothing),
            ("kill_at_any_moment", kill_at_any_moment),
            ("stopped_before", stopped_before),
            ("stopped_before_no_wait", stopped_before_no_wait),
            ("handled_while_held", handled_while_held),
            (
                "handled_by_one_of_many_threads",
                handled_by_one_of_many_threads,
            ),
            ("kill_while_held", kill_while_held),
            ("term_while_held", term_while_held),
            ("fatal_ones_while_held", fatal_ones_while_held),
            ("stop_while_held", stop_while_held),
            ("tstp_while_held", tstp_while_held),
            ("cont_while_held", cont_while_held),
            ("cont_to_a_stopped_one_while_held", cont_to_a_stopped_one),
            ("ignored_ones_while_held", ignored_ones_while_held),
            ("sigsys_handled", sigsys_handled),
            ("sigsys_fatal", sigsys_fatal),
        ],
    );
    for how in ["blocked", "pending", "ignored", "handled"] {
        trials.push(test(format!("signals::sigtrap_{how}"), move || {
            sigtrap(how)
        }));
    }
    trials
}

fn storm(args: &[&str]) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("storm", args)?;
    victim.verify()?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..10 {
        hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
        victim.verify()?;
    }
    // Signals are pending at any moment.
    let allow = Allow {
        facts: &["status ShdPnd", "task ", "file timers"],
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    let settled = victim.ask("settle")?;
    ensure(settled.starts_with("settled"), || settled.clone())?;
    victim.quit()
}

fn sigtrap(how: &str) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("sigtrap", &[&format!("how={how}")])?;
    victim.verify()?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..3 {
        hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
        before.still(victim.pid(), Allow::default())?;
        victim.verify()?;
    }
    victim.quit()
}

/// A checkpoint that has stopped before the target is to make calls for it, with a SIGSYS for
/// the target, and goes on: that signal is not blocked meanwhile.
fn with_sigsys(victim: &Victim, memcr: Memcr) -> Result<Running> {
    let running = memcr.with_fault("checkpoint.stored=stop").start()?;
    until("memcr to stop", || {
        proc::state(running.pid(), running.pid()) == Some('T')
    })?;
    victim.signal(Signal::SYS)?;
    running.signal(Signal::CONT)?;
    Ok(running)
}

fn sigsys_handled() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("handlers", &["signals=31", "size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = rig.memcr(victim.pid()).arg("-n");
    with_sigsys(&victim, memcr)?.finish()?.expect(0)?;
    ensure(victim.ask("stat")? == "31=1", || {
        "the handler did not run exactly once".into()
    })?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// It is held, and dies of it at once.
fn sigsys_fatal() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=2"])?;
    with_sigsys(&victim, rig.memcr(victim.pid()))?
        .finish()?
        .expect(9)?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(Signal::SYS.as_raw()), || {
        format!("the target ended with {status}")
    })?;
    rig.expect_clean()
}

fn state(victim: &Victim) -> Option<char> {
    proc::state(victim.pid(), victim.pid())
}

/// Stops the victim before anything else.
fn stop(victim: &Victim) -> Result {
    victim.signal(Signal::STOP)?;
    until("the stop", || state(victim) == Some('T'))
}

fn expect_stopped(victim: &Victim) -> Result {
    let state = state(victim);
    ensure(state == Some('T'), || {
        format!("state {state:?} after the restore, want T")
    })
}

/// Lets a stopped victim go on and prove itself.
fn go_on(mut victim: Victim) -> Result {
    victim.signal(Signal::CONT)?;
    victim.verify()?;
    victim.quit()
}

fn stopped_before() -> Result {
    let rig = Rig::new()?;
    let victim = Victim::start("memory", &["size=8M", "threads=4"])?;
    stop(&victim)?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    expect_freed(&before, victim.pid(), 8 << 10)?;
    held.release()?;
    expect_stopped(&victim)?;
    before.still(victim.pid(), Allow::default())?;
    go_on(victim)
}

fn stopped_before_no_wait() -> Result {
    let rig = Rig::new()?;
    let victim = Victim::start("memory", &["size=8M", "threads=4"])?;
    stop(&victim)?;
    rig.memcr(victim.pid()).cycle()?;
    expect_stopped(&victim)?;
    go_on(victim)
}

/// SIGTERM, SIGUSR1, SIGCHLD and SIGINT with handlers that look at all memory: each runs
/// once, after the restore.
fn handled_while_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("handlers", &["signals=15,10,17,2", "size=16M"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    for signal in [Signal::TERM, Signal::USR1, Signal::CHILD, Signal::INT] {
        victim.signal(signal)?;
    }
    // None may have been delivered yet: the memory is still away.
    expect_freed(&before, victim.pid(), 16 << 10)?;
    held.release()?;
    ensure(victim.ask("stat")? == "15=1 10=1 17=1 2=1", || {
        "a handler did not run exactly once".into()
    })?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

fn handled_by_one_of_many_threads() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("handlers", &["signals=10", "size=4M"])?;
    for n in 1..=5 {
        let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
        victim.signal(Signal::USR1)?;
        held.release()?;
        let want = format!("10={n}");
        ensure(victim.ask("stat")? == want, || format!("want {want}"))?;
        victim.verify()?;
    }
    victim.quit()
}

fn kill_while_held() -> Result {
    dies_of(Signal::KILL, &["size=8M", "threads=3"])
}

fn term_while_held() -> Result {
    dies_of(Signal::TERM, &["size=8M", "threads=3"])
}

fn fatal_ones_while_held() -> Result {
    for signal in [
        Signal::INT,
        Signal::HUP,
        Signal::USR1,
        Signal::ALARM,
        Signal::ABORT,
        Signal::QUIT,
    ] {
        dies_of(signal, &["size=2M"])?;
    }
    Ok(())
}

/// A signal that is fatal by default, while held: the target dies of it, not later and
/// not of something else; memcr says so, ends with 9 and leaves nothing.
fn dies_of(signal: Signal, args: &[&str]) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", args)?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    victim.signal(signal)?;
    let finished = held.finish()?;
    finished.expect(9)?;
    finished.says(&victim.pid().to_string())?;
    let status = victim.exit_status()?;
    let got = status.signal();
    ensure(got == Some(signal.as_raw()), || {
        format!("sent {signal:?}, the target ended with {status}")
    })?;
    rig.expect_clean()
}

fn stop_while_held() -> Result {
    stops_of(Signal::STOP)
}

fn tstp_while_held() -> Result {
    stops_of(Signal::TSTP)
}

/// A stop that arrives while held takes effect after the restore.
fn stops_of(signal: Signal) -> Result {
    let rig = Rig::new()?;
    let victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    victim.signal(signal)?;
    held.release()?;
    until("the stop", || state(&victim) == Some('T'))?;
    go_on(victim)
}

fn cont_while_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    victim.signal(Signal::CONT)?;
    expect_freed(&before, victim.pid(), 8 << 10)?;
    held.release()?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

/// It was stopped, and somebody wants it to go on: held until the restore, then it runs.
fn cont_to_a_stopped_one() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    stop(&victim)?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    victim.signal(Signal::CONT)?;
    expect_freed(&before, victim.pid(), 8 << 10)?;
    held.release()?;
    until("it to run", || state(&victim) == Some('S'))?;
    victim.verify()?;
    victim.quit()
}

/// SIGCHLD, SIGWINCH, SIGURG do nothing by default: also not while held.
fn ignored_ones_while_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    for signal in [Signal::CHILD, Signal::WINCH, Signal::URG] {
        victim.signal(signal)?;
    }
    held.release()?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

/// SIGSTOP and SIGCONT all the time, while memcr comes and goes.
fn stops_and_continues() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    let (pid, over) = (victim.pid(), AtomicBool::new(false));
    let outcome: Result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                // Errors: the victim is gone, which the other thread will report.
                let _ = proc::send(pid, Signal::STOP);
                let _ = proc::send(pid, Signal::CONT);
                std::thread::yield_now();
            }
        });
        let outcome = (0..15).try_for_each(|_| rig.memcr(pid).cycle().map(drop));
        over.store(true, Ordering::SeqCst);
        outcome
    });
    outcome?;
    victim.signal(Signal::CONT)?;
    until("it to run", || state(&victim) == Some('S'))?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}

/// A supervisor that watches with waitpid: no stop, no continue, nothing.
fn the_parent_sees_nothing() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    expect_no_news(&victim, "at first")?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    expect_no_news(&victim, "while held")?;
    held.release()?;
    victim.verify()?;
    expect_no_news(&victim, "after the restore")?;
    // A stop of its own is news, once.
    stop(&victim)?;
    // Told when the last thread has stopped.
    let seen = until_some("news of the stop", || news(&victim).ok().flatten())?;
    ensure(seen.stopped(), || {
        format!("the parent heard {seen:?} of a stop")
    })?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    expect_stopped(&victim)?;
    expect_no_news(&victim, "after the restore of a stopped one")?;
    victim.signal(Signal::CONT)?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

/// What its parent, which is this process, can hear of it at this moment.
fn news(victim: &Victim) -> Result<Option<WaitStatus>> {
    let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
    let news = rustix::process::waitpid(Some(proc::handle(victim.pid())?), options);
    Ok(news.context("waitpid")?.map(|(_, status)| status))
}

fn expect_no_news(victim: &Victim, when: &str) -> Result {
    let news = news(victim)?;
    ensure(news.is_none(), || {
        format!("{when} the parent heard {news:?}")
    })
}

/// Somebody kills the target at a moment of the checkpoint or restore.
fn kill_at_any_moment() -> Result {
    let mut whole = Duration::ZERO;
    for i in 0..14 {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=32M", "threads=3"])?;
        if i == 0 {
            let begin = Instant::now();
            rig.memcr(victim.pid()).cycle()?;
            whole = begin.elapsed();
        }
        let memcr = rig.memcr(victim.pid()).arg("-n").start()?;
        // Not synchronisation: any moment will do.
        std::thread::sleep(whole * i / 14);
        victim.signal(Signal::KILL)?;
        let finished = memcr.finish()?;
        // Over before memcr looked (4, 5), after it was done (0), or in between.
        ensure(matches!(finished.code, Some(0 | 4 | 5 | 9)), || {
            format!("round {i}: {finished}")
        })?;
        let status = victim.exit_status()?;
        ensure(status.signal() == Some(Signal::KILL.as_raw()), || {
            format!("round {i}: the target ended with {status}")
        })?;
        rig.expect_clean()?;
    }
    Ok(())
}
