//! The tests' own eyes: none of these needs memcr, each shows that a defect would be seen.

use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Context, Result, Snapshot, Victim, ensure, proc};
use rustix::process::Signal;
use std::os::unix::fs::FileExt;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "machinery",
        &[
            ("eintr_is_seen", eintr_is_seen),
            ("a_stop_is_seen", a_stop_is_seen),
            ("a_new_mapping_is_seen", a_new_mapping_is_seen),
            ("a_mask_is_compared", a_mask_is_compared),
            ("a_crash_is_seen", a_crash_is_seen),
            ("a_patrol_sees_a_changed_byte", a_patrol_sees_a_changed_byte),
            ("an_unknown_option_is_refused", an_unknown_option_is_refused),
        ],
    );
    for content in ["dense", "heap", "pointer", "text", "random", "zero"] {
        trials.push(test(
            format!("machinery::a_changed_byte_is_seen_in_{content}"),
            move || a_changed_byte_is_seen(content),
        ));
    }
    trials
}

fn a_changed_byte_is_seen(content: &str) -> Result {
    let mut victim = Victim::start("memory", &["size=4M", &format!("content={content}")])?;
    victim.verify()?;
    let at = change_a_byte(&mut victim)?;
    let Err(trouble) = victim.verify() else {
        return Err("a changed byte was not seen".into());
    };
    let want = format!("WRONG at {at:#x}");
    ensure(trouble.to_string().contains(&want), || {
        format!("want `{want}` in: {trouble}")
    })
}

/// Patrols do not wait to be asked, and write down what they saw where it outlives them.
fn a_patrol_sees_a_changed_byte() -> Result {
    let rig = memcr_harness::Rig::new()?;
    let dir = format!("dir={}", rig.dir_text());
    let mut victim = Victim::start("patrol", &["size=4M", "threads=2", &dir])?;
    victim.verify()?;
    let at = change_a_byte(&mut victim)?;
    let status = victim.exit_status()?;
    ensure(!status.success(), || "it ended in good order".into())?;
    let seen = std::fs::read(rig.dir().join("seen"))?;
    let seen = seen.first_chunk().map(|word| u64::from_ne_bytes(*word));
    ensure(seen == Some(at | 1), || {
        format!("want {at:#x} written down, found {seen:x?}")
    })
}

/// Changes a byte of the victim's memory behind its back; answers its address.
fn change_a_byte(victim: &mut Victim) -> Result<u64> {
    let start = victim.ask("where")?;
    let start = u64::from_str_radix(start.trim_start_matches("0x"), 16).context(&start)?;
    let memory = std::fs::File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", victim.pid()))?;
    let at = start + 0x12_3456;
    let mut byte = [0];
    memory.read_exact_at(&mut byte, at)?;
    memory.write_all_at(&[byte[0] ^ 4], at)?;
    Ok(at)
}

/// A plain stop makes these calls return EINTR (signal(7)): what a tool must hide.
fn eintr_is_seen() -> Result {
    let mut victim = Victim::start("blocked", &["ms=2000", "calls=epoll_wait"])?;
    all_asleep(&victim)?;
    victim.signal(Signal::STOP)?;
    until("the stop", || {
        proc::state(victim.pid(), victim.pid()) == Some('T')
    })?;
    victim.signal(Signal::CONT)?;
    let lines = victim.ask_lines("result")?;
    ensure(
        lines.iter().any(|line| line.contains("WRONG saw EINTR")),
        || format!("not seen: {lines:?}"),
    )
}

fn a_stop_is_seen() -> Result {
    let victim = Victim::start("memory", &["size=1M"])?;
    let before = Snapshot::take(victim.pid())?;
    victim.signal(Signal::STOP)?;
    until("the stop", || {
        proc::state(victim.pid(), victim.pid()) == Some('T')
    })?;
    differs(&before, &victim, "stopped")
}

fn a_new_mapping_is_seen() -> Result {
    let mut victim = Victim::start("memory", &["size=1M"])?;
    let before = Snapshot::take(victim.pid())?;
    victim.ask("grow 4194304")?;
    differs(&before, &victim, "maps ")?;
    differs(&before, &victim, "RSS was")
}

/// Two victims that differ in nothing but one blocked signal.
fn a_mask_is_compared() -> Result {
    let blocked = Victim::start("sigtrap", &["how=blocked"])?;
    let ignored = Victim::start("sigtrap", &["how=ignored"])?;
    let before = Snapshot::take(blocked.pid())?;
    differs(&before, &ignored, "SigIgn")
}

fn differs(before: &Snapshot, victim: &Victim, what: &str) -> Result {
    let found = before.differences(&Snapshot::take(victim.pid())?, Allow::default());
    ensure(found.iter().any(|line| line.contains(what)), || {
        format!("no `{what}` in {found:?}")
    })
}

fn a_crash_is_seen() -> Result {
    let mut victim = Victim::start("memory", &["size=1M"])?;
    victim.signal(Signal::ABORT)?;
    ensure(victim.verify().is_err(), || "a dead victim verified".into())
}

fn an_unknown_option_is_refused() -> Result {
    ensure(Victim::start("memory", &["sise=1M"]).is_err(), || {
        "a misspelt option was accepted".into()
    })
}

/// Waits until every thread of the victim sleeps.
pub(crate) fn all_asleep(victim: &Victim) -> Result {
    let pid = victim.pid();
    until("all threads asleep", || {
        proc::threads(pid)
            .iter()
            .all(|&tid| proc::state(pid, tid) == Some('S'))
    })
}
