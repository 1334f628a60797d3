//! Rows 34, 35, 38, 40: limits, namespaces, watched descriptors, many cycles.

use crate::common::{NOBODY, PublicCopy, Rig, hold, round_trip, unharmed};
use crate::memory_group::MemoryGroup;
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until_some;
use memcr_harness::{Allow, Result, Snapshot, Trouble, Victim, ensure, place, proc, require};
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "limits",
        &[
            ("user_net_mount_namespaces", namespaces),
            ("pid_namespace", pid_namespace),
            ("watched_descriptors", watched_descriptors),
            ("cycles_20", || cycles(20)),
            ("heavy_cycles_200", || cycles(200)),
            ("memory_cgroup", memory_cgroup),
            ("no_room_to_come_back", no_room_to_come_back),
            ("no_room_in_a_cgroup_of_an_odd_name", no_room_in_odd_name),
            ("no_room_beside_what_stayed", no_room_beside_what_stayed),
            ("ordinary_user", ordinary_user),
            ("odd_umask", odd_umask),
            ("name_is_taken", name_is_taken),
            ("few_descriptors", few_descriptors),
            ("few_threads", few_threads),
            ("heavy_60000_mappings", sixty_thousand_mappings),
            ("heavy_3000_threads", three_thousand_threads),
        ],
    );
    for limit in [
        "nofile=1",
        "as=1",
        "nproc=1",
        // The kernel cannot say of a signal who has sent it.
        "sigpending=1",
        "mdwe=1",
        "chroot=/var",
        "uid=65534",
        "nothp=1",
    ] {
        trials.push(test(
            format!("limits::{}", limit.replace(['=', '/'], "_")),
            move || round_trip("memory", &["size=8M", "threads=2", limit], Allow::default()),
        ));
    }
    trials.push(test("limits::all_at_once", || {
        require("root")?;
        let limits = [
            "size=8M",
            "threads=2",
            "nofile=1",
            "as=1",
            "nproc=1",
            "mdwe=1",
            "chroot=/var",
            "uid=65534",
        ];
        round_trip("memory", &limits, Allow::default())
    }));
    trials
}

/// The victim in namespaces of its own; memcr works from outside.
fn namespaces() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "--ipc",
        "--uts",
        "--cgroup",
    ]);
    command
        .arg(place::victim()?)
        .args(["memory", "size=8M", "threads=2"]);
    let mut victim = Victim::talk(command, "a victim in namespaces")?;
    let before = Snapshot::take(victim.pid())?;
    hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Its own pid is another one than ours for it, and it has no `/proc` that fits.
fn pid_namespace() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(place::victim()?)
        .args(["memory", "size=8M", "threads=2"]);
    let mut victim = Victim::talk(command, "a victim in a pid namespace")?;
    let pid = until_some("the child of unshare", || {
        let children = proc::text(victim.pid(), &format!("task/{}/children", victim.pid())).ok()?;
        children.split_whitespace().next()?.parse::<u32>().ok()
    })?;
    let before = Snapshot::take(pid)?;
    rig.memcr(pid).cycle()?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    rig.expect_clean()
}

/// The target counts its descriptors all the time and complains about one too many.
fn watched_descriptors() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("fdclose", &[])?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..10 {
        hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
        victim.verify()?;
    }
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

/// Again and again: nothing leaks, nothing drifts.
fn cycles(n: usize) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    for i in 0..n {
        rig.memcr(victim.pid())
            .cycle()
            .map_err(|trouble| Trouble::Failed(format!("cycle {i}: {trouble}")))?;
        if i % 10 == 9 {
            victim.verify()?;
            victim.ask(&format!("refill {i}"))?;
        }
    }
    victim.verify()?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// A cgroup whose limit is just above what the target has: neither the injected calls
/// nor the way back may push it over.
fn memory_cgroup() -> Result {
    require("root")?;
    let group = MemoryGroup::new(48 << 20)?;
    let rig = Rig::new()?;
    let mut victim = group.victim(&["size=40M", "threads=2", "content=random"])?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..3 {
        hold(&rig, &victim, rig.memcr(victim.pid()))?.release()?;
        ensure(proc::lives(victim.pid()), || "the target was killed".into())?;
        victim.verify()?;
    }
    before.still(victim.pid(), Allow::default())?;
    victim.quit()
}

/// Too little room for what is to come back: the OOM killer would take the target for it, so it
/// is held on until there is enough.
fn no_room_to_come_back() -> Result {
    no_room_in(MemoryGroup::new(64 << 20)?)
}

/// A cgroup may have any name.
fn no_room_in_odd_name() -> Result {
    no_room_in(MemoryGroup::named(64 << 20, b"\xff")?)
}

fn no_room_in(group: MemoryGroup) -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut victim = group.victim(&["size=32M", "content=random"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    rig.checkpoint(pid).run()?.expect(0)?;
    group.set(24 << 20)?;
    let finished = rig.restore(pid).run()?;
    finished.expect(12)?;
    finished.says("MiB of its memory are missing")?;
    group.set(64 << 20)?;
    rig.restore(pid).run()?.expect(0)?;
    victim.verify()?;
    let mut held = rig.memcr(pid).hold()?;
    group.set(24 << 20)?;
    held.enter_and_await("MiB of its memory are missing")?;
    group.set(64 << 20)?;
    held.finish()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// Memory that never left does not count as back: it takes room, and gives none.
fn no_room_beside_what_stayed() -> Result {
    require("root")?;
    let group = MemoryGroup::new(96 << 20)?;
    let rig = Rig::new()?;
    let parts = ["parts=anon,shared", "size=32M", "content=random"];
    let mut victim = group.victim_of("maps", &parts)?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    rig.checkpoint(pid).run()?.expect(0)?;
    group.set(48 << 20)?;
    let finished = rig.restore(pid).run()?;
    finished.expect(12)?;
    finished.says("MiB of its memory are missing")?;
    group.set(96 << 20)?;
    rig.restore(pid).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    victim.quit()
}

/// Neither memcr nor its target have any privilege.
fn ordinary_user() -> Result {
    require("root")?;
    let public = PublicCopy::make()?;
    let mut command = Command::new(public.dir().join("victim"));
    command.args(["memory", "size=8M", "threads=2"]);
    std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    let mut victim = Victim::talk(command, "a victim of an ordinary user")?;
    let before = Snapshot::take(victim.pid())?;
    for _ in 0..2 {
        let memcr = public.memcr(victim.pid(), "lz4,crc32,file");
        let held = memcr.hold()?;
        crate::common::expect_freed(&before, victim.pid(), 8 << 10)?;
        held.release()?;
        before.still(victim.pid(), Allow::default())?;
        victim.verify()?;
    }
    victim.quit()
}

/// A umask that would leave the image unreadable to its owner, or readable to all.
fn odd_umask() -> Result {
    for mask in ["0777", "0000"] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=2M"])?;
        let script = format!("umask {mask}; exec \"$0\" \"$@\"");
        let memcr = rig.memcr(victim.pid()).via(&["sh", "-c", &script]);
        hold(&rig, &victim, memcr)?.release()?;
        victim.verify()?;
        rig.expect_clean()?;
    }
    Ok(())
}

/// Where the image should go lies something else: a link that leads away, an old image.
fn name_is_taken() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=2M"])?;
    let precious = rig.dir().join("precious");
    std::fs::write(&precious, "precious")?;
    std::os::unix::fs::symlink(&precious, rig.image(victim.pid()))?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    finished.expect(0)?;
    ensure(std::fs::read(&precious)? == b"precious", || {
        "the link was followed".into()
    })?;
    std::fs::remove_file(rig.image(victim.pid()))?;
    std::fs::write(rig.image(victim.pid()), "of a former life")?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    finished.expect(0)?;
    ensure(
        std::fs::read(rig.image(victim.pid()))? == b"of a former life",
        || "the old image was replaced".into(),
    )?;
    victim.verify()?;
    victim.quit()
}

/// memcr itself may not open many files: it says so before it touches the target.
fn few_descriptors() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=1M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let mut n_done = 0;
    for limit in (4..48).step_by(3) {
        let nofile = format!("--nofile={limit}");
        let memcr = rig.memcr(victim.pid()).arg("-n");
        n_done += worked_or_untouched(&memcr.via(&["prlimit", &nofile]).run()?)?;
    }
    ensure(n_done > 0, || "47 descriptors were not enough".into())?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// memcr itself may not start many threads: the same.
fn few_threads() -> Result {
    require("root")?;
    let public = PublicCopy::make()?;
    let mut command = Command::new(public.dir().join("victim"));
    command.args(["memory", "size=1M", "threads=2"]);
    std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    let mut victim = Victim::talk(command, "a victim of an ordinary user")?;
    let before = Snapshot::take(victim.pid())?;
    // Threads of other processes of the user count too: three of the victim, and those
    // of the tests that run beside this one.
    let mut n_done = 0;
    for limit in [1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 4096] {
        let nproc = format!("--nproc={limit}");
        let memcr = public.memcr(victim.pid(), "lz4,file").arg("-n");
        n_done += worked_or_untouched(&memcr.via(&["prlimit", &nproc]).run()?)?;
    }
    ensure(n_done > 0, || "4096 threads were not enough".into())?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// 1 for a cycle, 0 for one that did not begin: had it to be undone, the code would be 7.
/// 127 is of the loader of programs.
fn worked_or_untouched(finished: &memcr_harness::Finished) -> Result<u32> {
    ensure(matches!(finished.code, Some(0 | 1 | 3 | 127)), || {
        finished.to_string()
    })?;
    Ok(u32::from(finished.code == Some(0)))
}

/// Row 32: as many mappings as the kernel allows by default.
fn sixty_thousand_mappings() -> Result {
    round_trip(
        "maps",
        &["parts=sixty_thousand", "threads=2"],
        Allow::default(),
    )
}

fn three_thousand_threads() -> Result {
    round_trip("memory", &["size=8M", "threads=3000"], Allow::default())
}
