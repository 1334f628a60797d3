//! Mappings of every kind.

use crate::common::{Rig, expect_freed, expect_small, hold, unharmed};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::require::lacking;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Result, Snapshot, Victim, ensure, require};
use std::io::Write;
use std::process::Command;

/// What a checkpoint must free of a part of 8 MiB.
enum Frees {
    All,
    /// Pages of zeros, shared, locked or special ones: nothing is promised.
    Any,
    /// So many KiB at least.
    AtLeast(u64),
    /// Nothing: these pages stay.
    Nothing,
}

const PART_KIB: u64 = 8 << 10;

const PARTS: &[(&str, Frees)] = &[
    ("anon", Frees::All),
    ("named", Frees::All),
    ("prot_none", Frees::All),
    ("prot_read", Frees::All),
    ("jit", Frees::AtLeast(1 << 10)),
    ("thp", Frees::All),
    ("thp_holes", Frees::AtLeast(PART_KIB / 2)),
    ("paged_out", Frees::AtLeast(PART_KIB / 2)),
    ("holes", Frees::AtLeast(PART_KIB / 2)),
    ("many", Frees::AtLeast(5000 * 4)),
    ("dev_zero", Frees::Any),
    ("grows_down", Frees::All),
    ("reserve", Frees::Any),
    ("sparse", Frees::AtLeast(4 << 10)),
    ("brk", Frees::All),
    ("zero_read", Frees::Any),
    ("dontdump", Frees::Any),
    ("wipeonfork", Frees::All),
    ("dontfork", Frees::All),
    ("mergeable", Frees::Any),
    ("locked", Frees::Nothing),
    ("onfault", Frees::Nothing),
    ("guard", Frees::Any),
    ("sealed", Frees::Any),
    ("droppable", Frees::Any),
    ("secret", Frees::Any),
    ("hugetlb", Frees::Any),
    ("uffd", Frees::Any),
    ("shared", Frees::Nothing),
    ("memfd", Frees::Nothing),
    ("shm", Frees::Nothing),
    ("forkshared", Frees::Nothing),
    ("forkpartly", Frees::AtLeast(PART_KIB / 3 - 64)),
    ("file_cow", Frees::Any),
    ("file_hidden", Frees::Any),
    ("file_clean", Frees::Any),
    ("file_shared", Frees::Any),
    ("file_deleted", Frees::Any),
    ("memfd_cow", Frees::Any),
    ("odd_names", Frees::Any),
    ("lockall", Frees::Any),
];

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "mappings",
        &[
            ("together", together),
            ("lockall_and_anon", lock_all),
            ("thp_is_thp_again", thp),
            ("swapped", swapped),
            ("merged_by_ksm", merged),
            ("hidden_meanwhile", hidden_meanwhile),
            ("fragmented", || fragmented("64M")),
            ("heavy_fragmented_2G", || fragmented("2G")),
        ],
    );
    for (part, frees) in PARTS {
        trials.push(test(format!("mappings::{part}"), move || {
            alone(part, frees)
        }));
    }
    trials
}

/// One part, two cycles.
fn alone(part: &str, frees: &Frees) -> Result {
    if part == "hugetlb" {
        require("hugetlb")?;
    }
    let rig = Rig::new()?;
    let (parts, dir) = (format!("parts={part}"), format!("dir={}", rig.dir_text()));
    let mut victim = Victim::start("maps", &[&parts, &dir, "content=pointer", "threads=1"])?;
    victim.verify()?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    expect(frees, &before, victim.pid())?;
    held.release()?;
    // KSM merges when it likes, and droppable memory may go at any time.
    let allow = Allow {
        less_rss: matches!(part, "mergeable" | "droppable"),
        ..Allow::default()
    };
    unharmed(&rig, &mut victim, &before, allow)?;
    victim.quit()
}

fn expect(frees: &Frees, before: &Snapshot, pid: u32) -> Result {
    match frees {
        Frees::Any => Ok(()),
        Frees::All => expect_freed(before, pid, PART_KIB),
        Frees::AtLeast(kib) => expect_freed(before, pid, *kib),
        Frees::Nothing => {
            // The victim has some 500 KiB of heap, stacks and library data beside the part.
            let freed = before
                .rss_kib()
                .saturating_sub(memcr_harness::proc::rss_kib(pid)?);
            ensure(freed < 2048, || {
                format!("{freed} KiB were dropped of memory that should stay")
            })
        }
    }
}

/// All parts that any machine has, in one process.
fn together() -> Result {
    let rig = Rig::new()?;
    let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    let machine_dependent = [
        "named",
        "hugetlb",
        "lockall",
        "secret",
        "droppable",
        "sealed",
        "guard",
        "uffd",
        "mergeable",
        "paged_out",
    ];
    let common: Vec<&str> = names
        .into_iter()
        .filter(|name| !machine_dependent.contains(name))
        .collect();
    let (parts, dir) = (
        format!("parts={}", common.join(",")),
        format!("dir={}", rig.dir_text()),
    );
    let mut victim = Victim::start("maps", &[&parts, &dir, "threads=8"])?;
    victim.verify()?;
    let before = Snapshot::take(victim.pid())?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    // `holes` and `zero_read` map the zero page, which no RSS counts.
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// Every other page, more of them than the kernel tells of at once; and memcr's own
/// memory does not grow with their number.
fn fragmented(size: &str) -> Result {
    let rig = Rig::with("file")?;
    let mut victim = Victim::start("maps", &["parts=holes", &format!("size={size}")])?;
    let before = Snapshot::take(victim.pid())?;
    let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
    expect_freed(&before, victim.pid(), before.rss_kib() - 4096)?;
    expect_small(&held)?;
    held.release()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}

/// mlockall(MCL_FUTURE) also locks what is mapped into the target by force.
fn lock_all() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("maps", &["parts=anon,holes,reserve,lockall", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// Huge pages before, huge pages after: not more (RSS would grow), not fewer.
fn thp() -> Result {
    require("thp")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("maps", &["parts=thp", "size=32M", "content=random"])?;
    let before = Snapshot::take(victim.pid())?;
    ensure(before.huge_kib() >= 28 << 10, || {
        format!("the victim has {} KiB of huge pages", before.huge_kib())
    })?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    let after = Snapshot::take(victim.pid())?;
    let (was, is) = (before.huge_kib(), after.huge_kib());
    ensure(is * 100 >= was * 95, || {
        format!("{was} KiB in huge pages before, {is} KiB after")
    })?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// A swap area of the test's own.
struct Swap {
    file: tempfile::NamedTempFile,
}

impl Swap {
    fn on(len_bytes: u64) -> Result<Self> {
        require("swap")?;
        let file = tempfile::NamedTempFile::new()?;
        // Swap wants real blocks, no holes.
        let chunk = vec![0; 1 << 20];
        for _ in 0..len_bytes >> 20 {
            (&mut file.as_file()).write_all(&chunk)?;
        }
        for program in ["mkswap", "swapon"] {
            let status = Command::new(program).arg(file.path()).output()?.status;
            if !status.success() {
                return Err(lacking("swap", &format!("{program} ended with {status}")));
            }
        }
        Ok(Self { file })
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        // If it fails, the area stays in use, which does no harm but takes the space.
        let _ = Command::new("swapoff").arg(self.file.path()).status();
    }
}

/// Pages in swap are right afterwards, whether they were left there or taken along.
fn swapped() -> Result {
    let _swap = Swap::on(64 << 20)?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("maps", &["parts=paged_out", "size=16M", "threads=1"])?;
    let status =
        |pid| memcr_harness::proc::kib(&memcr_harness::proc::text(pid, "status")?, "VmSwap");
    let n_before = status(victim.pid())?;
    ensure(n_before >= 6 << 10, || {
        format!("only {n_before} KiB are in swap")
    })?;
    let before = Snapshot::take(victim.pid())?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    rig.expect_clean()?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// Pages that KSM has merged: nobody's alone, so they stay.
fn merged() -> Result {
    const RUN: &str = "/sys/kernel/mm/ksm/run";
    require("ksm")?;
    let was = std::fs::read_to_string(RUN)?;
    std::fs::write(RUN, "1")?;
    let outcome = merged_now();
    std::fs::write(RUN, was.trim())?;
    outcome
}

/// Memory that is kept out of core dumps only since memcr has looked: a secret that is in
/// it only then is in no image that is not encrypted.
fn hidden_meanwhile() -> Result {
    const SECRET: [u8; 64] = [0xa7; 64];
    let rig = Rig::with("file")?;
    let mut victim = Victim::start("shy", &[])?;
    for i in 0..25 {
        let held = hold(&rig, &victim, rig.memcr(victim.pid()))?;
        let image = std::fs::read(rig.image(victim.pid()))?;
        held.release()?;
        ensure(!image.windows(SECRET.len()).any(|it| it == SECRET), || {
            format!("round {i}: the secret is in the image")
        })?;
        victim.verify()?;
    }
    rig.expect_clean()?;
    victim.quit()
}

fn merged_now() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("maps", &["parts=mergeable", "size=2M", "threads=1"])?;
    let pid = victim.pid();
    until("KSM to merge", || {
        let stat = memcr_harness::proc::text(pid, "ksm_stat").unwrap_or_default();
        let merging = stat
            .lines()
            .find_map(|line| line.strip_prefix("ksm_merging_pages "));
        merging
            .and_then(|n| n.trim().parse::<u64>().ok())
            .is_some_and(|n| n > 400)
    })?;
    let before = Snapshot::take(pid)?;
    hold(&rig, &victim, rig.memcr(pid))?.release()?;
    rig.expect_clean()?;
    // More may have been merged meanwhile.
    before.still(
        pid,
        Allow {
            less_rss: true,
            ..Allow::default()
        },
    )?;
    victim.verify()?;
    victim.quit()
}
