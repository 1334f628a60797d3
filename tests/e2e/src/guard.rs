//! The guard over dropped memory: that it is there, also where it is hard to make, that
//! nobody who looks at a held target has to wait, and what holds without one.

use crate::common::{PublicCopy, unharmed};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::require::lacking;
use memcr_harness::{Allow, Context, Memcr, Result, Rig, Snapshot, Victim, ensure, proc, require};
use rustix::process::Signal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

/// Puts something else in the place of the device, for memcr alone. Without arguments `sh`
/// takes the program and its arguments from behind the script.
const OTHER_DEVICE: &str = "mount --bind /dev/null /dev/userfaultfd && exec \"$0\" \"$@\"";
/// Takes the device away: the target has to make its context by itself.
const NO_DEVICE: &str = "d=$(mktemp -d) && mount -t tmpfs none $d && cp -a /dev/null /dev/zero \
     /dev/urandom $d && mount --move $d /dev && rmdir $d; exec \"$0\" \"$@\"";

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "guard",
        &[
            ("stands_and_goes", stands_and_goes),
            ("descriptors_are_short", descriptors_are_short),
            ("limit_that_stays", limit_that_stays),
            ("no_device", no_device),
            ("no_device_and_no_right", no_device_and_no_right),
            ("no_guard_to_be_had", no_guard_to_be_had),
            ("no_guard_and_no_drop", no_guard_and_no_drop),
            ("no_guard_and_memcr_dies", no_guard_and_memcr_dies),
            ("ps_does_not_wait", ps_does_not_wait),
            ("kernel_waits_for_pages", kernel_waits_for_pages),
        ],
    )
}

fn victim() -> Result<Victim> {
    require("userfaultfd")?;
    Victim::start("memory", &["size=16M", "threads=3"])
}

fn guards(pid: u32) -> usize {
    let dir = format!("/proc/{pid}/fd");
    let links = std::fs::read_dir(dir).into_iter().flatten().flatten();
    links
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
        .count()
}

/// One cycle, in which a guard stands, or does not.
fn expect_guarded(memcr: Memcr, want: bool) -> Result {
    let finished = memcr.args(["-n", "-v", "--json"]).run()?;
    finished.expect(0)?;
    let is_guarded = finished.json()?["checkpoint"]["guarded"].as_bool();
    ensure(is_guarded == Some(want), || {
        format!("guarded: {is_guarded:?}\n{finished}")
    })
}

/// While the target is held it has one descriptor more, afterwards none.
fn stands_and_goes() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let held = rig.memcr(victim.pid()).hold()?;
    ensure(guards(victim.pid()) == 1, || "no guard".into())?;
    held.release()?;
    ensure(guards(victim.pid()) == 0, || "the guard stayed".into())?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// RLIMIT_NOFILE is reached: it is lifted for the moment. (The second of the two limits,
/// too, for who has CAP_SYS_RESOURCE.)
fn descriptors_are_short() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    exhaust(victim.pid(), |n_open| format!("{n_open}:1024"))?;
    let limits = || proc::text(victim.pid(), "limits");
    let (before, limited) = (Snapshot::take(victim.pid())?, limits()?);
    expect_guarded(rig.memcr(victim.pid()), true)?;
    ensure(limits()? == limited, || "the limit is another one".into())?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// As many descriptors as it has are all that `pid` may have, by limits for so many.
fn exhaust(pid: u32, limits: impl Fn(usize) -> String) -> Result {
    let n_open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = format!("--nofile={}", limits(n_open));
    let pid = format!("--pid={pid}");
    let status = Command::new("prlimit").args([pid, limit]).status();
    ensure(status.context("prlimit")?.success(), || "prlimit".into())
}

/// Both limits are reached, and memcr may not go beyond: it says what would help.
fn limit_that_stays() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut victim = victim()?;
    exhaust(victim.pid(), |n_open| format!("{n_open}:{n_open}"))?;
    let before = Snapshot::take(victim.pid())?;
    let less = ["setpriv", "--bounding-set=-sys_resource"];
    let finished = rig.checkpoint(victim.pid()).via(&less).run()?;
    finished.expect(7)?;
    finished.says("limit of open files")?;
    finished.says("CAP_SYS_RESOURCE")?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

fn no_device() -> Result {
    require("mount")?;
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = rig
        .memcr(victim.pid())
        .via(&["unshare", "-m", "sh", "-c", NO_DEVICE]);
    expect_guarded(memcr, true)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A target that may not make its context by itself is not even frozen for one.
fn no_device_and_no_right() -> Result {
    const NOBODY: u32 = 65534;
    require("mount")?;
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if sysctl.map_or(true, |text| text.trim() != "0") {
        return Err(lacking("userfaultfd", "everybody may call userfaultfd(2)"));
    }
    let copy = PublicCopy::make()?;
    let mut command = Command::new(copy.dir().join("victim"));
    command.args(["memory", "size=4M"]).uid(NOBODY);
    let mut victim = Victim::talk(command, "a victim of an ordinary user")?;
    let (rig, before) = (Rig::new()?, Snapshot::take(victim.pid())?);
    let without = |memcr: Memcr| memcr.via(&["unshare", "-m", "sh", "-c", NO_DEVICE]);
    let finished = without(rig.checkpoint(victim.pid())).run()?;
    finished.expect(4)?;
    finished.says("was not touched")?;
    finished.says("may not call userfaultfd(2) itself")?;
    expect_guarded(without(rig.memcr(victim.pid())), false)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Then memory is taken all the same as long as memcr is there, and not otherwise.
fn no_guard_to_be_had() -> Result {
    require("mount")?;
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let without = |memcr: Memcr| memcr.via(&["unshare", "-m", "sh", "-c", OTHER_DEVICE]);
    expect_guarded(without(rig.memcr(victim.pid())), false)?;
    let finished = without(rig.memcr(victim.pid())).arg("-n").run()?;
    finished.expect(0)?;
    finished.says("should memcr be killed, so is the process")?;
    let finished = without(rig.checkpoint(victim.pid())).run()?;
    finished.expect(4)?;
    finished.says("was not touched")?;
    finished.says(&format!("memcr -p {}", victim.pid()))?;
    let check = without(Memcr::new().arg("check")).run()?;
    check.says("`memcr checkpoint` is refused")?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A drop without a guard that fails leaves nothing behind.
fn no_guard_and_no_drop() -> Result {
    require("mount")?;
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = rig.memcr(victim.pid()).arg("-n");
    let memcr = memcr.with_fault("checkpoint.drop=fail:EIO");
    let finished = memcr
        .via(&["unshare", "-m", "sh", "-c", OTHER_DEVICE])
        .run()?;
    finished.expect(7)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// Without a guard the death of memcr is that of the target, which never ran on zeros.
fn no_guard_and_memcr_dies() -> Result {
    require("mount")?;
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let memcr = rig.memcr(victim.pid());
    let held = memcr
        .via(&["unshare", "-m", "sh", "-c", OTHER_DEVICE])
        .hold()?;
    held.signal(Signal::KILL)?;
    held.finish()?;
    let status = victim.exit_status()?;
    ensure(status.signal() == Some(Signal::KILL.as_raw()), || {
        format!("the target ended with {status}")
    })?;
    rig.recover(victim.pid()).run()?.expect(5)?;
    rig.expect_clean()
}

/// Whoever lists processes reads arguments and environment of each.
fn ps_does_not_wait() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    for file in [
        "cmdline", "environ", "auxv", "stat", "status", "maps", "smaps",
    ] {
        let path = format!("/proc/{}/{file}", victim.pid());
        let status = Command::new("timeout")
            .args(["10", "cat", &path])
            .output()?;
        ensure(status.status.success(), || format!("{path}: {status:?}"))?;
    }
    rig.restore(victim.pid()).run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A continued target that has the kernel write into dropped memory waits too: what it was
/// asked before, it answers after the restore. (Asked afterwards, the asker would wait
/// with it: a read that waits for its page keeps the pipe locked.)
fn kernel_waits_for_pages() -> Result {
    let rig = Rig::new()?;
    let mut victim = victim()?;
    let before = Snapshot::take(victim.pid())?;
    rig.checkpoint(victim.pid()).run()?.expect(0)?;
    victim.tell("verify")?;
    victim.signal(Signal::CONT)?;
    ensure(guards(victim.pid()) == 1, || "no guard".into())?;
    rig.restore(victim.pid()).run()?.expect(0)?;
    let answer = victim.answer()?;
    ensure(answer.starts_with("ok"), || answer)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}
