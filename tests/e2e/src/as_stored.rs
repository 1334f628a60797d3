//! An image that takes RAM: pages go while others are still being stored, so that both
//! together never take more than before.

use crate::common::{Rig, without_keyring};
use crate::memory_group::MemoryGroup;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{
    Allow, Context, Finished, Memcr, Result, Running, Snapshot, Victim, ensure, proc, require,
};
use rustix::process::Signal;
use std::path::Path;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "as_stored",
        &[
            ("gone_before_the_rest_is_stored", gone_before),
            ("not_of_a_file", not_of_a_file),
            ("not_before_it_is_verified", not_before_verified),
            ("not_with_a_key_that_goes_with_us", not_with_our_key),
            ("not_with_a_key_of_no_keyring", not_without_keyring),
            ("not_beside_a_ring", not_beside_a_ring),
            (
                "nothing_compresses_beside_a_ring",
                nothing_won_beside_a_ring,
            ),
            ("killed_and_recovered", killed),
            ("the_only_thread_at_work", alone),
            ("huge_pages_come_back", huge_pages),
            ("killed_and_held_on", held_on),
            ("interrupted", interrupted),
            ("freed_pages_that_vanish", || vanished(&[], "sealed=0")),
            ("freed_pages_that_vanish_sealed", || {
                vanished(&[], "sealed=1")
            }),
            ("freed_pages_that_vanish_proc_mem", || {
                vanished(&["-m"], "sealed=0")
            }),
            ("no_ram_for_the_image", little_ram),
            ("nothing_compresses", nothing_compresses),
            ("file_where_it_takes_ram", file_in_ram),
        ],
    )
}

/// Where the `n`th part is about to be dropped.
fn part(n: usize) -> String {
    format!("checkpoint.part@{n}=stop")
}

fn victim() -> Result<Victim> {
    Victim::start("memory", &["size=96M", "threads=3"])
}

/// memcr, where it has stopped itself.
fn stopped(rig: &Rig, victim: &Victim, orders: &str) -> Result<Running> {
    stopped_at(rig.memcr(victim.pid()).arg("-n"), orders)
}

fn stopped_at(memcr: Memcr, orders: &str) -> Result<Running> {
    let mut memcr = memcr.with_fault(orders).start()?;
    memcr.close_input();
    let pid = memcr.pid();
    until("memcr to stop", || proc::state(pid, pid) == Some('T'))?;
    Ok(memcr)
}

fn go_on(memcr: Running) -> Result {
    memcr.signal(Signal::CONT)?;
    memcr.finish()?.expect(0)
}

/// At the fifth part four are gone, which is a third of all.
fn gone_before() -> Result {
    require("userfaultfd")?;
    let (rig, mut victim) = (Rig::with("lz4,tmpfs")?, victim()?);
    let before = Snapshot::take(victim.pid())?;
    let rss_before = proc::rss_kib(victim.pid())?;
    let memcr = stopped(&rig, &victim, &part(5))?;
    let gone = rss_before.saturating_sub(proc::rss_kib(victim.pid())?);
    ensure((28 << 10..64 << 10).contains(&gone), || {
        format!("{gone} KiB of {rss_before} are gone")
    })?;
    go_on(memcr)?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()
}

/// What needs no RAM for its image is dropped behind the commit.
fn not_of_a_file() -> Result {
    nothing_early("lz4,file", &[])
}

fn not_before_verified() -> Result {
    nothing_early("lz4,tmpfs", &["--verify"])
}

/// A descriptor that is read once: nobody else could open what is written.
fn not_with_our_key() -> Result {
    let (rig, victim) = (Rig::with("lz4,encrypt,tmpfs")?, victim()?);
    let key = rig.dir().join("key");
    std::fs::write(&key, [7; 32]).context("write a key")?;
    let opened = format!("exec 7<{} && exec \"$@\"", key.display());
    let memcr = rig
        .memcr(victim.pid())
        .args(["-n", "--set", "encrypt.key_fd=7"]);
    let memcr = memcr.via(&["sh", "-c", &opened, "sh"]);
    nothing_gone_at_commit(victim, memcr)?;
    std::fs::remove_file(&key).context("remove the key")?;
    rig.expect_clean()
}

/// A key that was made, and that nobody else can be given.
fn not_without_keyring() -> Result {
    let (rig, victim) = (Rig::with("lz4,encrypt,tmpfs")?, victim()?);
    let memcr = without_keyring(rig.memcr(victim.pid()).arg("-n"))?;
    nothing_gone_at_commit(victim, memcr)?;
    rig.expect_clean()
}

/// What it completes later would wait for the guard, in the kernel's own hands.
fn not_beside_a_ring() -> Result {
    let rig = Rig::with("lz4,tmpfs")?;
    let victim = Victim::start("uring", &["size=64M"])?;
    let memcr = rig.memcr(victim.pid()).arg("-n");
    nothing_gone_at_commit(victim, memcr)?;
    rig.expect_clean()
}

/// Its image is complete at the one commit that there is, and the sink hears of it. What
/// frames take is more than what the little beside the random bytes has saved.
fn nothing_won_beside_a_ring() -> Result {
    let rig = Rig::with("crc32,lz4,tmpfs")?;
    let mut victim = Victim::start("uring", &["size=256M", "content=random"])?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    finished.says("this memory does not compress")?;
    ensure(finished.code != Some(0), || finished.to_string())?;
    victim.verify()?;
    rig.expect_clean()
}

fn nothing_early(pipeline: &str, args: &[&str]) -> Result {
    let (rig, victim) = (Rig::with(pipeline)?, victim()?);
    let memcr = rig.memcr(victim.pid()).arg("-n").args(args);
    nothing_gone_at_commit(victim, memcr)?;
    rig.expect_clean()
}

fn nothing_gone_at_commit(mut victim: Victim, memcr: Memcr) -> Result {
    let rss_before = proc::rss_kib(victim.pid())?;
    let memcr = stopped_at(memcr, "checkpoint.committed=stop")?;
    let rss = proc::rss_kib(victim.pid())?;
    ensure(rss + 1024 > rss_before, || {
        format!("{rss} KiB of {rss_before} are left before the commit")
    })?;
    go_on(memcr)?;
    victim.verify().map(drop)
}

/// memcr dies in the middle: the next one brings back what is gone, from an image that was
/// never finished.
fn killed() -> Result {
    require("userfaultfd")?;
    for pipeline in ["lz4,tmpfs", "crc32,zstd,encrypt,tmpfs"] {
        for n in [1, 2, 5, 10] {
            let (rig, mut victim) = (Rig::with(pipeline)?, victim()?);
            let memcr = stopped(&rig, &victim, &part(n))?;
            memcr.signal(Signal::KILL)?;
            memcr.finish()?;
            rig.recover(victim.pid()).run()?.expect(0)?;
            victim.verify()?;
            rig.expect_clean()?;
        }
    }
    Ok(())
}

/// Whose only thread makes the calls for us, it cannot be armed before: memcr dies while it is
/// at that, or would be.
fn alone() -> Result {
    require("userfaultfd")?;
    for orders in [
        "checkpoint.armed=kill",
        "checkpoint.registered=kill",
        "pages.fetch@5=kill",
        "journal.append@2=kill",
        "checkpoint.part@1=kill",
        "checkpoint.drop@2=kill",
        "pages.event@3=kill",
        "checkpoint.stored=kill",
        "checkpoint.dropped=kill",
    ] {
        for continued in [false, true] {
            let rig = Rig::with("lz4,tmpfs")?;
            let mut victim = Victim::start("patrol", &["size=96M", "threads=0"])?;
            let memcr = rig.memcr(victim.pid()).arg("-n").with_fault(orders);
            let finished = memcr.run()?;
            ensure(finished.code.is_none(), || {
                format!("{orders} does not strike\n{finished}")
            })?;
            if continued {
                victim.signal(Signal::CONT)?;
            }
            let recovered = rig.recover(victim.pid()).run()?;
            recovered.expect(0).context(orders)?;
            victim.verify().context(orders)?;
            rig.expect_clean().context(orders)?;
            victim.quit()?;
        }
    }
    Ok(())
}

/// What was huge is huge again, whether memcr itself undoes what it began or another one does.
fn huge_pages() -> Result {
    require("userfaultfd")?;
    require("thp")?;
    for (part, is_killed) in [("thp", false), ("thp", true), ("thp_askew", false)] {
        come_back_huge(part, is_killed)?;
    }
    Ok(())
}

fn come_back_huge(parts: &str, is_killed: bool) -> Result {
    let rig = Rig::with("lz4,tmpfs")?;
    let parts = format!("parts={parts}");
    let mut victim = Victim::start("maps", &[&parts, "size=96M", "content=heap"])?;
    let before = Snapshot::take(victim.pid())?;
    let was = before.huge_kib();
    ensure(was >= 80 << 10, || format!("{was} KiB are huge"))?;
    let memcr = stopped(&rig, &victim, &part(5))?;
    let during = Snapshot::take(victim.pid())?.huge_kib();
    ensure(during < was - (24 << 10), || {
        format!("{during} KiB of {was} are huge: nothing is gone")
    })?;
    if is_killed {
        memcr.signal(Signal::KILL)?;
        memcr.finish()?;
        rig.recover(victim.pid()).run()?.expect(0)?;
    } else {
        memcr.signal(Signal::INT)?;
        memcr.signal(Signal::CONT)?;
        memcr.finish()?.expect(8)?;
    }
    let is = Snapshot::take(victim.pid())?.huge_kib();
    ensure(is * 100 >= was * 95, || {
        format!("{was} KiB in huge pages before, {is} KiB after")
    })?;
    victim.verify()?;
    rig.expect_clean()
}

/// `recover --hold` leaves it as it is; a later restore finds the part.
fn held_on() -> Result {
    require("userfaultfd")?;
    let (rig, mut victim) = (Rig::with("lz4,tmpfs")?, victim()?);
    let before = Snapshot::take(victim.pid())?;
    let memcr = stopped(&rig, &victim, &part(5))?;
    memcr.signal(Signal::KILL)?;
    memcr.finish()?;
    rig.recover(victim.pid()).arg("--hold").run()?.expect(0)?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()
}

/// Ctrl-C in the middle: what is gone comes back, and the target runs on.
fn interrupted() -> Result {
    require("userfaultfd")?;
    let (rig, mut victim) = (Rig::with("lz4,encrypt,tmpfs")?, victim()?);
    let before = Snapshot::take(victim.pid())?;
    let memcr = stopped(&rig, &victim, &part(5))?;
    memcr.signal(Signal::INT)?;
    memcr.signal(Signal::CONT)?;
    let finished = memcr.finish()?;
    finished.expect(8)?;
    finished.says("was undone")?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()
}

/// Pages that their target has given up (MADV_FREE) go when memcr has found them and is about
/// to read them, under the guard already. `option`: whether it may write to them.
fn vanished(args: &[&str], option: &str) -> Result {
    require("userfaultfd")?;
    let rig = Rig::with("lz4,tmpfs")?;
    let mut victim = Victim::start("memory", &["size=16M", "freed=64M", option])?;
    let freed = victim.ask("freed")?;
    let mut other = Victim::start("memory", &["size=0"])?;
    // Of some 320 chunks, the first 64 of which are not of these.
    let memcr = rig.memcr(victim.pid()).arg("-n").args(args);
    let memcr = stopped_at(memcr, "pages.fetch@60=stop")?;
    let before = proc::rss_kib(victim.pid())?;
    let pages = format!("pageout {} {freed} {}", victim.pid(), 64 << 20);
    let said = other.ask(&pages)?;
    ensure(said.ends_with(" bytes"), || said.clone())?;
    let vanished = before.saturating_sub(proc::rss_kib(victim.pid())?);
    ensure(vanished > 16 << 10, || {
        format!("{vanished} KiB have vanished: not enough to show anything")
    })?;
    go_on(memcr)?;
    victim.verify()?;
    rig.expect_clean()
}

/// In a cgroup that has room for the target, but not for its image beside it: what is only
/// dropped behind the commit does not fit.
fn little_ram() -> Result {
    require("userfaultfd")?;
    let group = MemoryGroup::new(340 << 20)?;
    let rig = Rig::with("lz4,tmpfs")?;
    let mut victim = group.victim(&["size=256M", "content=heap"])?;
    let memcr = || rig.memcr(victim.pid()).arg("-n");
    does_not_fit(&group.run(memcr().arg("--verify"))?)?;
    let finished = group.run(memcr())?;
    finished.expect(0)?;
    finished.says("it can only be restored when there is room for both")?;
    victim.verify()?;
    rig.expect_clean()
}

/// As much as goes comes back into the image: that it does not fit must be found while there
/// is room for the way back.
fn nothing_compresses() -> Result {
    require("userfaultfd")?;
    let group = MemoryGroup::new(340 << 20)?;
    let rig = Rig::with("lz4,tmpfs")?;
    let mut victim = group.victim(&["size=256M", "content=random"])?;
    let before = Snapshot::take(victim.pid())?;
    does_not_fit(&group.run(rig.memcr(victim.pid()).arg("-n"))?)?;
    victim.verify()?;
    before.still(victim.pid(), Allow::default())?;
    rig.expect_clean()
}

/// An image of the sink `file` on a tmpfs comes on top of its target.
fn file_in_ram() -> Result {
    require("root")?;
    let group = MemoryGroup::new(340 << 20)?;
    let mut victim = group.victim(&["size=256M", "content=random"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let rig = |pipeline| Rig::below(Path::new("/dev/shm"), pipeline);
    let plain = rig("file")?;
    let finished = group.run(plain.memcr(pid).arg("-n"))?;
    finished.expect(3)?;
    finished.says("the RAM has ")?;
    let packed = rig("lz4,file")?;
    does_not_fit(&group.run(packed.memcr(pid).arg("-n"))?)?;
    victim.verify()?;
    before.still(pid, Allow::default())?;
    plain.expect_clean()?;
    packed.expect_clean()
}

fn does_not_fit(finished: &Finished) -> Result {
    finished.expect(7)?;
    finished.says("the image does not fit")
}
