//! Row 7: in a blocking call.
//!
//! Each thread of the victim is in one call. However often the target is stopped, no
//! call may return EINTR, none may end early, and a timeout must not begin anew.

use crate::common::{Rig, hold};
use crate::machinery::all_asleep;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::{Allow, Context, Result, Snapshot, Trouble, Victim, ensure};
use std::time::Instant;

/// A call may end this much later than it is due: scheduling on a loaded machine.
const LATE_MS: u64 = 1500;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "blocked",
        &[
            ("one_cycle", one_cycle),
            ("many_cycles", many_cycles),
            ("due_while_held", due_while_held),
            ("woken_while_held", woken_while_held),
            ("stopped_meanwhile", stopped_meanwhile),
            ("io_getevents", io_getevents),
            ("first_thread", first_thread),
        ],
    )
}

fn one_cycle() -> Result {
    cycles(1, 2500)
}

fn many_cycles() -> Result {
    cycles(8, 4000)
}

/// `n` cycles while all calls are under way.
fn cycles(n: usize, ms: u64) -> Result {
    let rig = Rig::new()?;
    let mut victim = start(ms)?;
    let before = Snapshot::take(victim.pid())?;
    let begin = Instant::now();
    for _ in 0..n {
        hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    }
    let elapsed = u64::try_from(begin.elapsed().as_millis()).context("milliseconds")?;
    ensure(elapsed < ms, || {
        format!("the cycles took {elapsed} ms: calls of {ms} ms cannot show anything")
    })?;
    // Some have a signal mask of their own, which a thread does not have on its way back to it.
    all_asleep(&victim)?;
    before.still(
        victim.pid(),
        Allow {
            less_rss: true,
            ..Allow::default()
        },
    )?;
    victim.ask("wake")?;
    judge(&victim.ask_lines("result")?, ms, elapsed)
}

fn start(ms: u64) -> Result<Victim> {
    let victim = Victim::start("blocked", &[&format!("ms={ms}"), "not=io_getevents"])?;
    all_asleep(&victim)?;
    Ok(victim)
}

/// Their time runs out while nothing runs: they end at once after the release.
fn due_while_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = start(700)?;
    // Another victim's sleep is the clock: its end comes after all deadlines.
    let mut clock = Victim::start("blocked", &["ms=1500", "calls=nanosleep"])?;
    let begin = Instant::now();
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    clock.ask_lines("result")?;
    held.release()?;
    let held_ms = u64::try_from(begin.elapsed().as_millis()).context("milliseconds")?;
    victim.ask("wake")?;
    judge(&victim.ask_lines("result")?, 700, held_ms)
}

/// What they wait for comes from outside, while they are held.
fn woken_while_held() -> Result {
    let rig = Rig::new()?;
    let mut victim = start(60_000)?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    // The main thread's own read: its answer must come once, after the release.
    victim.tell("wake")?;
    held.release()?;
    ensure(victim.answer()? == "woken", || "no answer to `wake`".into())?;
    let n_left = victim.verify()?;
    ensure(n_left > 0, || {
        "the calls with a timeout have ended as well".into()
    })
}

/// The calls that the victim knows, but for the one that is refused.
const CALLS: [&str; 46] = [
    "wait4",
    "waitid",
    "read_pipe",
    "write_pipe",
    "poll_for_ever",
    "futex_wake",
    "sigwaitinfo",
    "pause",
    "semop",
    "msgrcv",
    "mq_receive",
    "eventfd",
    "signalfd",
    "inotify",
    "flock",
    "fcntl_lock",
    "accept",
    "accept_timeout",
    "recv",
    "recv_timeout",
    "recvmsg_timeout",
    "send_timeout",
    "tcp_recv_timeout",
    "splice_timeout",
    "sendfile_timeout",
    "nanosleep",
    "clock_nanosleep_relative",
    "clock_nanosleep_absolute",
    "poll",
    "ppoll",
    "select",
    "pselect",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "futex_relative",
    "futex_absolute",
    "sigtimedwait",
    "semtimedop",
    "mq_timedreceive",
    "timerfd",
    "epoll_bare",
    "epoll_pwait2_bare",
    "ppoll_bare",
    "pselect_bare",
    "select_bare",
];

/// Each call once more on the first thread of a process of its own: the thread that
/// makes calls for memcr in the middle of it.
fn first_thread() -> Result {
    const MS: u64 = 4000;
    let rig = Rig::new()?;
    let mut victims = Vec::new();
    for call in CALLS {
        let args = [
            format!("ms={MS}"),
            format!("calls={call}"),
            "leader=1".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        victims.push(Victim::start("blocked", &args)?);
    }
    let mut lines = Vec::new();
    let begin = Instant::now();
    for victim in &victims {
        all_asleep(victim)?;
        for _ in 0..2 {
            hold(&rig, victim, rig.memcr(victim.pid()))?.release()?;
        }
    }
    let elapsed = u64::try_from(begin.elapsed().as_millis()).context("milliseconds")?;
    for victim in &mut victims {
        victim.ask("wake")?;
    }
    for victim in &mut victims {
        lines.extend(victim.ask_lines("result")?);
    }
    ensure(lines.len() == CALLS.len(), || {
        format!("{} results", lines.len())
    })?;
    let (anew, others): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| begins_anew(line));
    judge(&anew, MS, elapsed)?;
    judge(&others, MS, 0)
}

/// Whether an AIO context is idle cannot be told from outside: it may be refused, and
/// then the call must not notice.
fn io_getevents() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("blocked", &["ms=2000", "calls=io_getevents"])?;
    all_asleep(&victim)?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    ensure(matches!(finished.code, Some(0 | 4)), || {
        finished.to_string()
    })?;
    judge(&victim.ask_lines("result")?, 2000, 0)
}

/// A target that was stopped before (row 5), with all calls under way: it stays
/// stopped. Calls that any stop interrupts may see that one, so they are left out.
fn stopped_meanwhile() -> Result {
    let rig = Rig::new()?;
    let calls =
        "calls=nanosleep,poll,ppoll,select,futex_relative,read_pipe,wait4,futex_wake,accept";
    let mut victim = Victim::start("blocked", &["ms=3000", calls])?;
    all_asleep(&victim)?;
    let pid = victim.pid();
    victim.signal(rustix::process::Signal::STOP)?;
    memcr_harness::wait::until("the stop", || {
        memcr_harness::proc::state(pid, pid) == Some('T')
    })?;
    hold(&rig, &victim, rig.memcr(pid))?.release()?;
    let state = memcr_harness::proc::state(pid, pid);
    ensure(state == Some('T'), || {
        format!("was stopped, is in state {state:?} after the restore")
    })?;
    victim.signal(rustix::process::Signal::CONT)?;
    victim.ask("wake")?;
    judge(&victim.ask_lines("result")?, 3000, 0)
}

/// Of a socket with a timeout, which is no argument of the call; or made without the C library,
/// with registers that must stay, or a timeout that stays. It begins anew at each restore, which
/// is late, but never early.
fn begins_anew(line: &str) -> bool {
    line.contains("_timeout ") || line.contains("_bare ")
}

/// Every line right, and nothing later than can be explained. `held_ms`: how long the
/// target was held, or was in cycles.
fn judge(lines: &[String], ms: u64, held_ms: u64) -> Result {
    let mut wrong: Vec<String> = lines
        .iter()
        .filter(|line| line.contains("WRONG"))
        .cloned()
        .collect();
    for line in lines.iter().filter(|line| line.contains(" due=")) {
        let after = line
            .rsplit("after=")
            .next()
            .and_then(|n| n.parse::<u64>().ok());
        let due = if begins_anew(line) {
            ms + held_ms
        } else {
            ms.max(held_ms)
        };
        let latest = due + LATE_MS;
        if after.is_none_or(|after| after > latest) {
            wrong.push(format!("{line}: later than {latest} ms"));
        }
    }
    ensure(!lines.is_empty(), || "no results".into())?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Trouble::Failed(wrong.join("\n")))
    }
}
