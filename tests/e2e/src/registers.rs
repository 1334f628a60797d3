//! Rows 13 and 14: registers that are live, restartable sequences. Also on the first
//! thread, which is the one that makes calls for memcr.

use crate::common::{Rig, hold, on_older_kernel, unharmed};
use crate::test;
use libtest_mimic::Trial;
use memcr_harness::require::lacking;
use memcr_harness::{Allow, Result, Snapshot, Victim, ensure, require};

/// Cycles per test: each one stops the threads somewhere else.
const N_CYCLES: usize = 15;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials: Vec<Trial> = ["sse", "avx", "avx512"]
        .into_iter()
        .map(|level| test(format!("registers::{level}"), move || vector(level)))
        .collect();
    trials.push(test("registers::rseq", || rseq("first=0")));
    // The thread that makes our calls, which the kernel looks at again each time.
    trials.push(test("registers::rseq_first_thread", || rseq("first=1")));
    trials.push(test(
        "registers::rseq_before_linux_5_13",
        rseq_before_linux_5_13,
    ));
    trials
}

fn vector(level: &str) -> Result {
    let flags = std::fs::read_to_string("/proc/cpuinfo")?;
    let flag = match level {
        "avx512" => " avx512bw",
        "avx" => " avx2",
        _ => " sse2",
    };
    if !flags.contains(flag) {
        return Err(lacking(level, "the CPU has no such registers"));
    }
    let mut victim = Victim::start(
        "vector",
        &[&format!("level={level}"), "threads=2", "leader=1"],
    )?;
    cycles(&mut victim)?;
    victim.quit()
}

fn rseq(first: &str) -> Result {
    let mut victim = Victim::start("rseq", &["threads=4", "spins=20000", first])?;
    cycles(&mut victim)?;
    let stat = victim.ask("stat")?;
    ensure(!stat.contains("aborts=0"), || {
        format!("no sequence was ever interrupted: {stat}")
    })?;
    victim.quit()
}

/// The kernel writes into an area of which it does not tell.
fn rseq_before_linux_5_13() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..N_CYCLES {
        let memcr = rig.memcr(victim.pid()).arg("-n");
        on_older_kernel(memcr, "420f")?.run()?.expect(0)?;
    }
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn cycles(victim: &mut Victim) -> Result {
    let rig = Rig::new()?;
    victim.verify()?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..N_CYCLES {
        hold(&rig, victim, rig.memcr(victim.pid()))?.release()?;
        victim.verify()?;
    }
    before.still(victim.pid(), Allow::default())
}
