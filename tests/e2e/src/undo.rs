//! Failures of every kind before the image is complete: undone, the target runs on.

use crate::common::{Rig, unharmed};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{
    Allow, Context, Finished, Memcr, Result, Snapshot, Victim, ensure, place, proc, require,
};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "undo",
        &[
            ("enospc_seen_early", enospc_seen_early),
            ("enospc_under_way", enospc_under_way),
            ("file_size_limit", file_size_limit),
            ("no_file_may_grow", no_file_may_grow),
            ("no_directory", no_directory),
            ("read_only_directory", read_only_directory),
            ("interrupted", interrupted),
            ("terminated", terminated),
            ("timeout", timeout),
            ("killed_memcr_before_the_drop", killed_before_the_drop),
            ("killed_memcr_at_any_moment", killed_at_any_moment),
            (
                "killed_memcr_leaves_nobody_in_a_hurry",
                leaves_nobody_in_a_hurry,
            ),
        ],
    );
    // What a failing stage does to the checkpoint, and the exit code that says so.
    for (fault, code) in [
        ("create", 3),
        ("begin", 3),
        ("encode", 7),
        ("encode_panic", 7),
        ("finish", 7),
    ] {
        for at in [0, 7] {
            trials.push(test(format!("undo::plugin_{fault}_at_{at}"), move || {
                plugin_fails(fault, at, code)
            }));
        }
    }
    trials.push(test("undo::plugin_hangs", plugin_hangs));
    trials.push(test("undo::plugin_crashes", plugin_crashes));
    trials.push(test(
        "undo::plugin_crashes_on_the_way_back",
        plugin_crashes_on_the_way_back,
    ));
    for fault in ["decode", "decode_panic", "decode_wrong", "decode_short"] {
        trials.push(test(format!("undo::verify_finds_{fault}"), move || {
            verify_finds(fault)
        }));
    }
    for fault in ["decode", "decode_panic", "decode_wrong", "decode_short"] {
        trials.push(test(format!("undo::tries_again_{fault}"), move || {
            tries_again(fault)
        }));
    }
    trials.push(test("undo::hung_encode_is_undone", hung_encode_is_undone));
    trials.push(test("undo::hung_decode_is_held", hung_decode_is_held));
    trials
}

/// A small tmpfs of the test's own.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Result<Self> {
        require("mount")?;
        let dir = tempfile::Builder::new().prefix("memcr-e2e-").tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "memcr-e2e"])
            .arg(dir.path())
            .status()?;
        ensure(status.success(), || format!("mount: {status}"))?;
        Ok(Self { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing to be done if it fails: the directory stays, and tells.
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

/// memcr fails with `code`, and its target is as it was.
fn fails(victim: &mut Victim, pipeline: &str, dir: &Path, code: i32) -> Result<Finished> {
    let before = Snapshot::take(victim.pid())?;
    let finished = Memcr::on(victim.pid())
        .store(pipeline, dir)
        .arg("-n")
        .run()?;
    finished.expect(code)?;
    unharmed(&Rig::new()?, victim, &before, Allow::default())?;
    Ok(finished)
}

/// No room at all: noticed before the freeze.
fn enospc_seen_early() -> Result {
    let disk = SmallDisk::mount("1M")?;
    let mut victim = Victim::start("memory", &["size=64M", "content=random", "threads=2"])?;
    let finished = fails(&mut victim, "file", disk.dir.path(), 3)?;
    finished.says("was not touched")?;
    finished.says("free, the image needs")?;
    nothing_in(&disk)
}

/// Room for some of it: what was begun is removed. The compressed length cannot be
/// known before, so this one fails on the way.
fn enospc_under_way() -> Result {
    let disk = SmallDisk::mount("24M")?;
    let mut victim = Victim::start("memory", &["size=64M", "content=random", "threads=2"])?;
    let finished = fails(&mut victim, "lz4,file", disk.dir.path(), 7)?;
    finished.says("space")?;
    nothing_in(&disk)
}

fn nothing_in(disk: &SmallDisk) -> Result {
    let left = std::fs::read_dir(disk.dir.path())?.count();
    ensure(left == 0, || format!("{left} files left on the full disk"))
}

/// RLIMIT_FSIZE of memcr: EFBIG, and SIGXFSZ, which must not end memcr either.
fn file_size_limit() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=64M", "content=random", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let finished = rig
        .memcr(victim.pid())
        .arg("-n")
        .via(&["prlimit", "--fsize=4194304"])
        .run()?;
    finished.expect(7)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// No file at all may be written, journals neither: the target is left as it was, running or held.
fn no_file_may_grow() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let limit = ["prlimit", "--fsize=0"];
    let refused = rig.checkpoint(pid).via(&limit).run()?;
    ensure(refused.code.is_some_and(|code| code != 0), || {
        refused.to_string()
    })?;
    unharmed(&rig, &mut victim, &before, Allow::default())?;
    rig.checkpoint(pid).run()?.expect(0)?;
    let restored = rig.restore(pid).via(&limit).run()?;
    ensure(restored.signal.is_none(), || restored.to_string())?;
    if restored.code != Some(0) {
        rig.restore(pid).run()?.expect(0)?;
    }
    unharmed(
        &rig,
        &mut victim,
        &before,
        Allow {
            less_rss: true,
            ..Allow::default()
        },
    )
}

fn no_directory() -> Result {
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let dir = Path::new("/nonexistent/directory");
    fails(&mut victim, "file", dir, 3)?.says("/nonexistent/directory")
}

fn read_only_directory() -> Result {
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let dir = Path::new("/proc/sys");
    fails(&mut victim, "file", dir, 3)?.says("/proc/sys")
}

fn interrupted() -> Result {
    stopped_by(Signal::INT, 12)
}

fn terminated() -> Result {
    stopped_by(Signal::TERM, 5)
}

/// Ctrl-C at moments spread over the whole run.
fn stopped_by(signal: Signal, n_rounds: u32) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=96M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let begin = Instant::now();
    rig.memcr(victim.pid()).cycle()?;
    let whole = begin.elapsed();
    for i in 0..n_rounds {
        let memcr = rig.memcr(victim.pid()).arg("-n").start()?;
        at(whole * i / n_rounds);
        // It may have finished: then there is nobody to signal, which is one of the moments.
        let _ = memcr.signal(signal);
        let finished = memcr.finish()?;
        // Before its handler stands, the signal ends memcr itself, and nothing has happened.
        let right =
            matches!(finished.code, Some(0 | 8)) || finished.signal == Some(signal.as_raw());
        ensure(right, || format!("round {i}: {finished}"))?;
        until("the target to run", || {
            proc::state(victim.pid(), victim.pid()) == Some('S')
        })?;
        rig.expect_clean()?;
        before.still(
            victim.pid(),
            Allow {
                less_rss: true,
                ..Allow::default()
            },
        )?;
        victim.verify()?;
    }
    unharmed(
        &rig,
        &mut victim,
        &before,
        Allow {
            less_rss: true,
            ..Allow::default()
        },
    )
}

/// A moment of the run. Not synchronisation: any moment will do.
fn at(moment: Duration) {
    std::thread::sleep(moment);
}

/// A stage that takes longer than the user wants to wait.
fn timeout() -> Result {
    let stages = faulty_stage()?;
    let rig = Rig::with("zstd,file")?;
    let mut victim = Victim::start("memory", &["size=128M", "content=text", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = rig.memcr(victim.pid()).args([
        "-n",
        "--set",
        "zstd.level=19",
        "--timeout",
        "1",
        "--workers",
        "1",
    ]);
    let finished = memcr.env("MEMCR_STAGE_PATH", stages.path_list()?).run()?;
    finished.expect(8)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// SIGKILL while nothing is dropped yet: the kernel lets go, the target runs. What is left
/// is a journal.
fn killed_before_the_drop() -> Result {
    let stages = faulty_stage()?;
    let rig = Rig::with("faulty,file")?;
    let mut victim = Victim::start("memory", &["size=32M", "threads=3"])?;
    let before = Snapshot::take(victim.pid())?;
    let pid = victim.pid();
    let memcr = rig
        .memcr(pid)
        .args(["-n", "--set", "faulty.fault=encode_hang"]);
    let memcr = memcr.env("MEMCR_STAGE_PATH", stages.path_list()?).start()?;
    until("the freeze", || proc::state(pid, pid) == Some('t'))?;
    memcr.signal(Signal::KILL)?;
    memcr.finish()?;
    until("the target to run", || proc::state(pid, pid) == Some('S'))?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    recover(&rig, &mut victim)?;
    victim.quit()
}

/// What another memcr does after the death of one: the target runs, with every byte.
fn recover(rig: &Rig, victim: &mut Victim) -> Result {
    let finished = rig.recover(victim.pid()).run()?;
    // In the few microseconds of the calls that map and unmap our page the kernel is told
    // to kill it: then that is what has happened, and is told.
    if finished.code == Some(5) && !proc::lives(victim.pid()) {
        return rig.expect_clean();
    }
    // Brought back, or found to need nothing.
    ensure(matches!(finished.code, Some(0 | 14)), || {
        finished.to_string()
    })?;
    rig.expect_clean()?;
    victim.verify().map(drop)
}

/// For some calls the thread that makes them goes before all others. One that outlives memcr is
/// scheduled as it was.
fn leaves_nobody_in_a_hurry() -> Result {
    // The parasite is in place, and later gone.
    for n in [1, 2] {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=4M", "threads=2"])?;
        let pid = victim.pid();
        let orders = format!("inject.outlives@{n}=kill");
        let finished = rig.memcr(pid).arg("-n").with_fault(&orders).run()?;
        ensure(finished.code.is_none(), || finished.to_string())?;
        let policy = proc::policy(pid)?;
        // SCHED_OTHER.
        ensure(policy == 0, || {
            format!("round {n}: the first thread has the policy {policy}")
        })?;
        recover(&rig, &mut victim)?;
        victim.quit()?;
    }
    Ok(())
}

/// SIGKILL at any moment, and then the recovery: the target is right. In three calls of some
/// microseconds the kernel kills it as well (docs/reliability.md), which may be hit.
fn killed_at_any_moment() -> Result {
    let begin = Instant::now();
    let mut whole = Duration::ZERO;
    let mut n_killed = 0;
    for i in 0..16 {
        let rig = Rig::new()?;
        let mut victim = Victim::start("memory", &["size=48M", "threads=3"])?;
        let pid = victim.pid();
        if i == 0 {
            let start = Instant::now();
            rig.memcr(pid).cycle()?;
            whole = start.elapsed();
        }
        let memcr = rig.memcr(pid).arg("-n").start()?;
        at(whole * i / 16);
        let _ = memcr.signal(Signal::KILL);
        memcr.finish()?;
        let recovered = recover(&rig, &mut victim);
        if recovered.is_err() && !proc::lives(pid) {
            n_killed += 1;
        } else {
            recovered.context(format!("round {i}"))?;
        }
    }
    ensure(n_killed <= 1, || {
        format!("{n_killed} of 16 targets were killed with memcr")
    })?;
    ensure(begin.elapsed() > whole, || "no time passed".into())
}

/// A copy of the faulty stage where it is trusted.
struct FaultyStage {
    dir: TempDir,
}

fn faulty_stage() -> Result<FaultyStage> {
    let dir = tempfile::Builder::new().prefix("memcr-e2e-").tempdir()?;
    let to = dir.path().join("libmemcr_stage_faulty.so");
    std::fs::copy(place::faulty_stage()?, &to)?;
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
    Ok(FaultyStage { dir })
}

impl FaultyStage {
    /// Its directory, and the others.
    fn path_list(&self) -> Result<std::ffi::OsString> {
        let others = place::stages()?;
        std::env::join_paths(std::iter::once(self.dir.path().to_owned()).chain(others))
            .context("stage path")
    }
}

/// memcr with the faulty stage, told what to do.
fn faulty(rig: &Rig, stages: &FaultyStage, pid: u32, fault: &str, at: u64) -> Result<Memcr> {
    let (fault, at) = (format!("faulty.fault={fault}"), format!("faulty.at={at}"));
    let memcr = rig.memcr(pid).args(["--set", &fault, "--set", &at]);
    Ok(memcr.env("MEMCR_STAGE_PATH", stages.path_list()?))
}

fn plugin_fails(fault: &str, at: u64, code: i32) -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("lz4,faulty,file")?);
    let mut victim = Victim::start("memory", &["size=24M", "threads=2", "content=pointer"])?;
    let before = Snapshot::take(victim.pid())?;
    let finished = faulty(&rig, &stages, victim.pid(), fault, at)?
        .arg("-n")
        .run()?;
    finished.expect(code)?;
    finished.says("faulty")?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A stage that does not come back: the time limit must still work.
fn plugin_hangs() -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    let memcr =
        faulty(&rig, &stages, victim.pid(), "encode_hang", 0)?.args(["-n", "--timeout", "1"]);
    memcr.run()?.expect(8)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// A configuration with a short stall limit.
fn impatient(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("pipeline.toml");
    std::fs::write(&path, "stall_limit = 1\n")?;
    Ok(path)
}

/// Without a time limit of the user's: the stall limit ends the wait.
fn hung_encode_is_undone() -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let before = Snapshot::take(victim.pid())?;
    let config = impatient(stages.dir.path())?;
    let finished = faulty(&rig, &stages, victim.pid(), "encode_hang", 0)?
        .arg("-n")
        .arg("--config")
        .arg(config)
        .run()?;
    finished.expect(7)?;
    finished.says("stage `faulty`: encode of chunk")?;
    finished.says("has not come back for")?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The target is held, and the way back tried again; the stage never returns.
fn hung_decode_is_held() -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let pid = victim.pid();
    let config = impatient(stages.dir.path())?;
    let memcr = faulty(&rig, &stages, pid, "decode_hang", 3)?.arg("-n");
    let mut memcr = memcr.arg("--config").arg(config).start()?;
    memcr.await_message("next try in")?;
    ensure(proc::state(pid, pid) == Some('t'), || {
        format!(
            "the target is in state {:?}, want held",
            proc::state(pid, pid)
        )
    })?;
    memcr.signal(Signal::TERM)?;
    let finished = memcr.finish()?;
    finished.expect(12)?;
    finished.says("stage `faulty`: decode of chunk")?;
    finished.says(&format!("`memcr restore {pid}` tries again"))?;
    left_held(&rig, &mut victim)
}

/// A target that memcr could not restore stays held without it. Its end ends the session.
fn left_held(rig: &Rig, victim: &mut Victim) -> Result {
    ensure(rig.list()?["sessions"][0]["state"] == "held", || {
        "it is to be held".into()
    })?;
    proc::send(victim.pid(), Signal::KILL)?;
    victim.exit_status()?;
    rig.recover(victim.pid()).run()?.expect(5)?;
    rig.expect_clean()
}

/// A stage that takes memcr down before anything is dropped.
fn plugin_crashes() -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=8M"])?;
    let pid = victim.pid();
    let finished = faulty(&rig, &stages, pid, "encode_abort", 0)?
        .arg("-n")
        .run()?;
    ensure(finished.code != Some(0), || format!("success?\n{finished}"))?;
    until("the target to run or be gone", || {
        !matches!(proc::state(pid, pid), Some('t' | 'T'))
    })?;
    ensure(proc::lives(pid), || {
        "the target was killed although nothing was dropped".into()
    })?;
    recover(&rig, &mut victim)?;
    victim.quit()
}

/// A stage that takes memcr down on the way back: the target waits for a memcr that has a
/// better one.
fn plugin_crashes_on_the_way_back() -> Result {
    require("userfaultfd")?;
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=24M", "threads=2"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let crashing = faulty(&rig, &stages, pid, "decode_abort", 3)?.arg("-n");
    let finished = crashing.run()?;
    ensure(finished.signal == Some(Signal::ABORT.as_raw()), || {
        finished.to_string()
    })?;
    let better = rig.recover(pid).args(["--set", "faulty.fault=none"]);
    let better = better.env("MEMCR_STAGE_PATH", stages.path_list()?);
    better.run()?.expect(0)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// With `--verify` a stage that cannot give back what it took is found out before
/// anything is dropped.
fn verify_finds(fault: &str) -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("lz4,faulty,file")?);
    let mut victim = Victim::start("memory", &["size=24M", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = faulty(&rig, &stages, victim.pid(), fault, 3)?;
    let finished = memcr.args(["-n", "--verify"]).run()?;
    finished.expect(7)?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// The way back fails without proof that the bytes are lost: the target is held and the
/// restore tried again, until somebody wants memcr to end. Then the target cannot live.
fn tries_again(fault: &str) -> Result {
    let (stages, rig) = (faulty_stage()?, Rig::with("faulty,file")?);
    let mut victim = Victim::start("memory", &["size=24M", "threads=2"])?;
    let pid = victim.pid();
    let mut memcr = faulty(&rig, &stages, pid, fault, 3)?.arg("-n").start()?;
    memcr.await_message("next try in")?;
    ensure(proc::state(pid, pid) == Some('t'), || {
        format!(
            "the target is in state {:?}, want held",
            proc::state(pid, pid)
        )
    })?;
    memcr.signal(Signal::TERM)?;
    let finished = memcr.finish()?;
    finished.expect(12)?;
    finished.says(&format!("`memcr restore {pid}` tries again"))?;
    left_held(&rig, &mut victim)
}
