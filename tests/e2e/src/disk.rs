//! A disk that takes no more: what it says when pages are written out, long after they were
//! handed to the kernel, must be heard before anything is dropped.

use crate::common::{Rig, unharmed};
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::require::lacking;
use memcr_harness::{
    Allow, Context, Memcr, Result, Snapshot, Trouble, Victim, Zram, ensure, require,
};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "disk",
        &[
            ("fails_at_the_commit", || fails("48M", &[], "write out")),
            ("fails_under_way", || fails("160M", &[], "of the image in")),
            ("fails_durable", || {
                fails("48M", &["--set", "file.sync=true"], "write out")
            }),
            ("works", works),
            ("just_fits", just_fits),
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
        let device = wanted(Zram::open(256 << 20))?;
        let run = |command: &mut Command| {
            let status = command.status()?;
            ensure(status.success(), || format!("{command:?}: {status}"))
        };
        let make = ["-q", "-m", "0"];
        run(Command::new("mkfs.ext4").args(make).arg(device.path()))?;
        let dir = tempfile::Builder::new().prefix("memcr-e2e-").tempdir()?;
        run(Command::new("mount").arg(device.path()).arg(dir.path()))?;
        Ok(Self { dir, device })
    }

    /// From now on most of what is written to it fails, once it leaves the page cache.
    fn fail(&self) -> Result {
        wanted(self.device.set("mem_limit", MOST))
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn expect_no_image(&self) -> Result {
        for entry in std::fs::read_dir(self.path())? {
            let name = entry?.file_name();
            ensure(!name.to_string_lossy().contains("pages-"), || {
                format!("{} is left on the disk", name.display())
            })?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing to be done if it fails: the directory stays, and tells.
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

/// What the kernel refuses is lacking.
fn wanted<T>(done: Result<T>) -> Result<T> {
    done.map_err(|trouble| match trouble {
        Trouble::Skipped(reason) => lacking("zram", &reason),
        failed => failed,
    })
}

/// memcr fails where it `says`, and its target is as it was. Of 160 MiB the first 64 are waited
/// for on the way, of 48 all at the commit.
fn fails(size: &str, args: &[&str], says: &str) -> Result {
    let disk = Disk::mount()?;
    let rig = Rig::new()?;
    let size = format!("size={size}");
    let mut victim = Victim::start("memory", &[&size, "content=random", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    disk.fail()?;
    let finished = memcr(&rig, &victim, &disk).args(args).arg("-n").run()?;
    finished.expect(7)?;
    finished.says(says)?;
    finished.says("Input/output error")?;
    disk.expect_no_image()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// What the failures above are compared with.
fn works() -> Result {
    fits(|_| Ok(()))
}

/// Nothing that is taken ahead of the writers is to take the room of what is written.
fn just_fits() -> Result {
    fits(|disk| {
        let free = rustix::fs::statvfs(disk.path()).context("statvfs")?;
        let most = (free.f_bavail * free.f_frsize).saturating_sub(LEN + SPARE);
        let filler = File::create(disk.path().join("filler"))?;
        let all = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&filler, all, 0, most).context("fill the disk")?;
        Ok(())
    })
}

/// What a target is taken of, and what else the image may need, bytes.
const LEN: u64 = 48 << 20;
const SPARE: u64 = 4 << 20;

fn fits(prepare: impl FnOnce(&Disk) -> Result) -> Result {
    let disk = Disk::mount()?;
    let rig = Rig::new()?;
    let size = format!("size={LEN}");
    let mut victim = Victim::start("memory", &[&size, "content=random", "threads=2"])?;
    let before = Snapshot::take(victim.pid())?;
    prepare(&disk)?;
    let held = memcr(&rig, &victim, &disk).hold()?;
    let image = disk.path().join(format!("pages-{}.img", victim.pid()));
    let image = image.metadata()?;
    let blocks = image.blocks() * 512;
    ensure(image.len() >= LEN, || format!("{} bytes", image.len()))?;
    ensure(blocks < image.len() + (1 << 20), || {
        format!("{blocks} bytes of the disk for {}", image.len())
    })?;
    held.release()?;
    disk.expect_no_image()?;
    unharmed(&rig, &mut victim, &before, Allow::default())
}

/// With its image on the disk, and its journal elsewhere.
fn memcr(rig: &Rig, victim: &Victim, disk: &Disk) -> Memcr {
    let memcr = Memcr::on(victim.pid()).state_dir(&rig.state_dir());
    memcr.store("file", disk.path())
}
