//! A place for one test's images and sessions, and memcr told about it.
//!
//! ```text
//!   DIR/pages-PID.img     images, when the sink is `file` or `tmpfs`
//!   DIR/state/            the state directory: journals
//! ```

use crate::{Memcr, Result, ensure, place};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The pipeline of tests that are not about pipelines: fast, and every byte is looked at.
pub const PIPELINE: &str = "lz4,crc32,file";

/// A directory for images and one for journals, and the pipeline that ends there.
#[derive(Debug)]
pub struct Rig {
    dir: TempDir,
    pipeline: String,
}

impl Rig {
    /// The usual pipeline, a fresh directory.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new() -> Result<Self> {
        Self::with(PIPELINE)
    }

    /// Another pipeline; it ends in `file` or `tmpfs`.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn with(pipeline: &str) -> Result<Self> {
        let above = match sink(pipeline) {
            "tmpfs" => PathBuf::from("/dev/shm"),
            _ => place::scratch(),
        };
        Self::below(&above, pipeline)
    }

    /// The same in a directory below `above`.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn below(above: &Path, pipeline: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("memcr-e2e-")
            .tempdir_in(above)?;
        std::fs::create_dir(dir.path().join("state"))?;
        Ok(Self {
            dir,
            pipeline: pipeline.to_owned(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory as text, for arguments of victims.
    #[must_use]
    pub fn dir_text(&self) -> String {
        self.dir().display().to_string()
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// `memcr -p PID`, storing here.
    #[must_use]
    pub fn memcr(&self, pid: u32) -> Memcr {
        self.stored(Memcr::on(pid))
    }

    /// `memcr checkpoint PID`, storing here.
    #[must_use]
    pub fn checkpoint(&self, pid: u32) -> Memcr {
        self.stored(Memcr::checkpoint(pid))
    }

    /// `memcr restore PID` of what was stored here.
    #[must_use]
    pub fn restore(&self, pid: u32) -> Memcr {
        Memcr::restore(pid).state_dir(&self.state_dir())
    }

    /// `memcr recover PID` of what was stored here.
    #[must_use]
    pub fn recover(&self, pid: u32) -> Memcr {
        Memcr::recover(pid).state_dir(&self.state_dir())
    }

    /// `memcr recover --all` of what was stored here.
    #[must_use]
    pub fn recover_all(&self) -> Memcr {
        Memcr::new()
            .args(["recover", "--all"])
            .state_dir(&self.state_dir())
    }

    /// The sessions here, as `memcr list --json` answers them.
    ///
    /// # Errors
    /// When memcr does not exit with 0, or answers no JSON.
    pub fn list(&self) -> Result<serde_json::Value> {
        let finished = Memcr::list().state_dir(&self.state_dir()).run()?;
        finished.expect(0)?;
        finished.json()
    }

    fn stored(&self, memcr: Memcr) -> Memcr {
        let set = format!("{}.dir={}", sink(&self.pipeline), self.dir_text());
        memcr
            .args(["--pipeline", &self.pipeline, "--set", &set])
            .state_dir(&self.state_dir())
    }

    /// Where the image of `pid` is while it is held.
    #[must_use]
    pub fn image(&self, pid: u32) -> PathBuf {
        self.dir().join(format!("pages-{pid}.img"))
    }

    /// Images and journals that are here.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let mut left = names(self.dir());
        left.retain(|name| name.contains("pages-"));
        let journals = names(&self.state_dir());
        // The lock of a daemon stays, as locks do: who removes one may remove that of the next.
        let journals = journals.iter().filter(|name| *name != "daemon.lock");
        left.extend(journals.map(|name| format!("state/{name}")));
        left
    }

    /// Removes the images and journals that are here, as a person would.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn wipe(&self) -> Result {
        for name in self.left() {
            std::fs::remove_file(self.dir().join(name))?;
        }
        Ok(())
    }

    /// Fails if any image or journal is left.
    ///
    /// # Errors
    /// What is left.
    pub fn expect_clean(&self) -> Result {
        let left = self.left();
        ensure(left.is_empty(), || {
            format!("left behind in {}: {left:?}", self.dir_text())
        })
    }
}

/// The last stage of a pipeline.
fn sink(pipeline: &str) -> &str {
    pipeline.rsplit(',').next().unwrap_or_default()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}
