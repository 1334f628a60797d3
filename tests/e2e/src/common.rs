//! What most tests do: a target, a place for its image, one cycle, everything compared.

pub(crate) use memcr_harness::Rig;
use memcr_harness::require::lacking;
use memcr_harness::snapshot::Allow;
use memcr_harness::{
    Context, Finished, Held, Memcr, Result, Snapshot, Victim, ensure, place, proc,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The most resident memory memcr may have while it works (invariant I6), KiB.
const MEMCR_RSS_KIB: u64 = 16 << 10;

/// Holds a target and checks what holding promises: memory is gone, the image is there
/// and private.
pub(crate) fn hold(rig: &Rig, victim: &Victim, memcr: Memcr) -> Result<Held> {
    let held = memcr.hold()?;
    expect_private(&rig.image(victim.pid()))?;
    Ok(held)
}

/// The image is there, for its owner alone.
pub(crate) fn expect_private(image: &Path) -> Result {
    let mode = std::fs::metadata(image).context(image.display())?.mode() & 0o7777;
    ensure(mode == 0o600, || {
        format!("{} has mode {mode:o}", image.display())
    })
}

/// How much of the target's own memory a checkpoint must free, of what the test says can
/// be freed.
pub(crate) fn expect_freed(before: &Snapshot, pid: u32, freeable_kib: u64) -> Result {
    let (was, is) = (before.rss_kib(), proc::rss_kib(pid)?);
    // Some pages stay: libraries, stacks, what the injected calls touch.
    let want = freeable_kib - freeable_kib / 100;
    ensure(was.saturating_sub(is) >= want, || {
        format!("RSS was {was} KiB, while held it is {is} KiB; at least {want} KiB should be free")
    })
}

/// Invariant I6, by the most that memcr has ever had resident.
pub(crate) fn expect_small(held: &Held) -> Result {
    let peak = proc::kib(&proc::text(held.pid(), "status")?, "VmHWM")?;
    ensure(peak <= MEMCR_RSS_KIB, || {
        format!("memcr took {peak} KiB of RSS, at most {MEMCR_RSS_KIB} are allowed")
    })
}

/// Checkpoint, hold, restore, with everything compared; the target goes on in use.
pub(crate) fn cycle(rig: &Rig, victim: &mut Victim, allow: Allow) -> Result<Finished> {
    let before = Snapshot::take(victim.pid())?;
    let held = hold(rig, victim, rig.memcr(victim.pid()))?;
    let finished = held.release()?;
    rig.expect_clean()?;
    before.still(victim.pid(), allow)?;
    victim.verify()?;
    Ok(finished)
}

/// A fresh victim, verified before and after one cycle, and ended in good order.
pub(crate) fn round_trip(mode: &str, args: &[&str], allow: Allow) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start(mode, args)?;
    victim.verify()?;
    cycle(&rig, &mut victim, allow)?;
    victim.quit()
}

/// A target that is not harmed by a memcr that fails: same state, same bytes, nothing
/// left, and it can still be checkpointed afterwards.
pub(crate) fn unharmed(rig: &Rig, victim: &mut Victim, before: &Snapshot, allow: Allow) -> Result {
    rig.expect_clean()?;
    before.still(victim.pid(), allow)?;
    victim.verify()?;
    let after = Rig::new()?;
    cycle(
        &after,
        victim,
        Allow {
            less_rss: true,
            ..allow
        },
    )?;
    Ok(())
}

/// A target with this pid, which is free; others may take it first.
pub(crate) fn heir_of(pid: u32) -> Result<Victim> {
    for _ in 0..100 {
        let last = "/proc/sys/kernel/ns_last_pid";
        let set = std::fs::write(last, (pid - 1).to_string());
        set.map_err(|error| lacking("checkpoint_restore", &format!("{last}: {error}")))?;
        let victim = Victim::start("memory", &["size=4M"])?;
        if victim.pid() == pid {
            return Ok(victim);
        }
        victim.quit()?;
    }
    Err(format!("somebody else has pid {pid}").into())
}

/// The user without rights.
pub(crate) const NOBODY: u32 = 65534;

/// Copies of the programs and stages where every user can reach them, and a directory
/// for their images.
pub(crate) struct PublicCopy {
    dir: TempDir,
}

impl PublicCopy {
    /// Copies everything.
    pub(crate) fn make() -> Result<Self> {
        let copy = Self {
            dir: tempfile::Builder::new()
                .prefix("memcr-e2e-")
                .tempdir_in("/tmp")?,
        };
        set_mode(copy.dir(), 0o755)?;
        for (name, mode) in [("stages", 0o755), ("images", 0o777)] {
            std::fs::create_dir(copy.dir().join(name))?;
            set_mode(&copy.dir().join(name), mode)?;
        }
        // Journals are for their owner alone.
        std::fs::create_dir(copy.state_dir())?;
        std::os::unix::fs::chown(copy.state_dir(), Some(NOBODY), Some(NOBODY))?;
        set_mode(&copy.state_dir(), 0o700)?;
        copy.put(&place::memcr()?, "memcr")?;
        copy.put(&place::victim()?, "victim")?;
        let stages = match place::stages()? {
            Some(dir) => dir,
            None => {
                let memcr = place::memcr()?;
                let prefix = memcr.ancestors().nth(2).unwrap_or(&memcr);
                prefix.join("lib/memcr/stages")
            }
        };
        for entry in std::fs::read_dir(stages)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("libmemcr_stage_") && name.ends_with(".so") {
                copy.put(&entry.path(), &format!("stages/{name}"))?;
            }
        }
        Ok(copy)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// memcr on `pid` as that user.
    pub(crate) fn memcr(&self, pid: u32, pipeline: &str) -> Memcr {
        self.ours(Memcr::on(pid).store(pipeline, &self.dir().join("images")))
    }

    /// `memcr checkpoint` as that user.
    pub(crate) fn checkpoint(&self, pid: u32, pipeline: &str) -> Memcr {
        self.ours(Memcr::checkpoint(pid).store(pipeline, &self.dir().join("images")))
    }

    /// `memcr restore` as that user.
    pub(crate) fn restore(&self, pid: u32) -> Memcr {
        self.ours(Memcr::restore(pid))
    }

    fn ours(&self, memcr: Memcr) -> Memcr {
        memcr
            .program(&self.dir().join("memcr"))
            .env("MEMCR_STAGE_PATH", self.dir().join("stages"))
            .state_dir(&self.state_dir())
            .as_user(NOBODY)
    }

    fn state_dir(&self) -> std::path::PathBuf {
        self.dir().join("state")
    }

    fn put(&self, from: &Path, name: &str) -> Result {
        copy_program(from, &self.dir().join(name))
    }
}

/// As if the kernel did not know some requests of ptrace(2) yet: `victim older`.
pub(crate) fn on_older_kernel(memcr: Memcr, requests: &str) -> Result<Memcr> {
    let victim = place::victim()?;
    Ok(memcr.via(&[&victim.to_string_lossy(), "older", requests]))
}

/// As where a container may not use the kernel's keyrings: `victim keyless`.
pub(crate) fn without_keyring(memcr: Memcr) -> Result<Memcr> {
    let victim = place::victim()?;
    Ok(memcr.via(&[&victim.to_string_lossy(), "keyless"]))
}

/// Copies a program. Not by ourselves: what another test starts at that moment would have
/// the copy open for writing until it executes, and ours could not be executed (ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: &Path) -> Result {
    let copied = Command::new("cp").arg(from).arg(to).status();
    let copied = copied.context("run cp")?;
    ensure(copied.success(), || {
        format!("cannot copy {} to {}", from.display(), to.display())
    })?;
    set_mode(to, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).context(path.display())
}
