//! A disk that takes no more: what it says when pages are written out, long after they were
//! handed to the kernel, must be heard before anything is dropped.

use crate::common::{Rig, unharmed};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::require::lacking;
use memcr_harness::{Allow, Memcr, Result, Snapshot, Trouble, Victim, Zram, ensure, require};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "disk",
        &[
            ("fails_at_the_commit", || fails("48M", &[])),
            ("fails_under_way", || fails("160M", &[])),
            ("fails_durable", || {
                fails("48M", &["--set", "file.sync=true"])
            }),
            ("works", works),
        ],
    )
}

/// What the device may take of what is written to its file system, bytes.
const MOST: &str = "16777216";

/// An ext4 on a device of the test's own.
struct Disk {
    dir: TempDir,
    device: Zram,
}

impl Disk {
    fn mount() -> Result<Self> {
        ["mount", "zram", "mkfs.ext4"]
            .into_iter()
            .try_for_each(require)?;
        let device = Zram::open(256 << 20).map_err(|trouble| match trouble {
            Trouble::Skipped(reason) => lacking("zram", &reason),
            failed => failed,
        })?;
        let run = |command: &mut Command| {
            let status = command.status()?;
            ensure(status.success(), || format!("{command:?}: {status}"))
        };
        run(Command::new("mkfs.ext4").arg("-q").arg(device.path()))?;
        let dir = tempfile::Builder::new().prefix("memcr-e2e-").tempdir()?;
        run(Command::new("mount").arg(device.path()).arg(dir.path()))?;
        Ok(Self { dir, device })
    }

    /// From now on most of what is written to it fails, once it leaves the page cache.
    fn fail(&self) -> Result {
        self.device.set("mem_limit", MOST)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing to be done if it fails: the directory stays, and tells.
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

/// The target is as it was, of whatever `size`: some write-outs are waited for on the way.
fn fails(size: &str, args: &[&str]) -> Result {
    let disk = Disk::mount()?;
    let size = format!("size={size}");
    let mut victim = Victim::start("memory", &[&size, "content=random", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    disk.fail()?;
    let memcr = Memcr::on(victim.pid()).store("file", disk.path());
    let finished = memcr.args(args).arg("-n").run()?;
    finished.expect(7)?;
    finished.says("Input/output error")?;
    unharmed(&Rig::new()?, &mut victim, &before, Allow::default())
}

/// What the failures above are compared with.
fn works() -> Result {
    let disk = Disk::mount()?;
    let mut victim = Victim::start("memory", &["size=48M", "content=random", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = Memcr::on(victim.pid()).store("file", disk.path()).hold()?;
    held.release()?;
    unharmed(&Rig::new()?, &mut victim, &before, Allow::default())
}
