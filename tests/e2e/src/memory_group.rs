//! A target, or memcr, with little memory to have.

use memcr_harness::require::lacking;
use memcr_harness::wait::until;
use memcr_harness::{Finished, Memcr, Result, Victim, place};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A cgroup with a limit of memory, of whichever version there is; removed on drop.
pub(crate) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    pub(crate) fn new(limit: u64) -> Result<Self> {
        Self::named(limit, b"")
    }

    /// One whose name ends so.
    pub(crate) fn named(limit: u64, end: &[u8]) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let top = match root.join("memory").is_dir() {
            true => root.join("memory"),
            false => root.to_owned(),
        };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Relaxed);
        let name = format!("memcr-e2e-ram-{}-{n}", std::process::id());
        let name = [name.as_bytes(), end].concat();
        let dir = top.join(OsStr::from_bytes(&name));
        let made = std::fs::create_dir(&dir);
        let group = Self(dir);
        made.and_then(|()| group.set(limit))
            .map_err(|error| lacking("cgroup", &format!("{}: {error}", group.0.display())))?;
        Ok(group)
    }

    /// Changes the limit, bytes.
    pub(crate) fn set(&self, limit: u64) -> io::Result<()> {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|name| self.0.join(name));
        let file = files.iter().find(|file| file.exists());
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        std::fs::write(file, limit.to_string())
    }

    /// A victim of mode `memory` within it.
    pub(crate) fn victim(&self, args: &[&str]) -> Result<Victim> {
        self.victim_of("memory", args)
    }

    /// A victim within it.
    pub(crate) fn victim_of(&self, mode: &str, args: &[&str]) -> Result<Victim> {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(self.enter())
            .arg("sh")
            .arg(place::victim()?)
            .arg(mode)
            .args(args);
        Victim::talk(command, "a victim in a cgroup")
    }

    /// Runs memcr within it.
    pub(crate) fn run(&self, memcr: Memcr) -> Result<Finished> {
        let enter = self.enter();
        let enter = enter.to_str().ok_or("a name that is not UTF-8")?;
        memcr.via(&["sh", "-c", enter, "sh"]).run()
    }

    /// What a shell does first, that is then another program.
    fn enter(&self) -> OsString {
        let mut script = OsString::from("echo $$ > ");
        script.push(self.0.join("cgroup.procs"));
        script.push(" && exec \"$@\"");
        script
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Whoever was in it has ended, or is about to.
        let _ = until("the cgroup to be empty", || {
            std::fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}
