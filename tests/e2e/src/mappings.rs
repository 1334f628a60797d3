//! Mappings of every kind.

use crate::common::{Rig, expect_freed, expect_small, hold, unharmed};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::{Allow, Result, Snapshot, Victim, ensure, require};

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
