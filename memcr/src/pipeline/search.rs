//! Where stage plugins are looked for.

use std::path::PathBuf;

use crate::pipeline::{LoadError, StageDescription};

/// The directories that are searched for stage plugins, first match wins. The working
/// directory is never one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPath {
    dirs: Vec<PathBuf>,
}

impl SearchPath {
    /// The usual places: `config_dirs` (`stage_path` of the configuration),
    /// `MEMCR_STAGE_PATH` (ignored where the kernel says that this program has more
    /// rights than its caller), `$exe/../lib/memcr/stages`, `/usr/lib/memcr/stages`.
    #[must_use]
    pub fn standard(_config_dirs: &[PathBuf]) -> Self {
        unimplemented!()
    }

    /// Exactly these directories. Relative ones are dropped.
    #[must_use]
    pub fn new(_dirs: Vec<PathBuf>) -> Self {
        unimplemented!()
    }

    /// The directories, in order.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }
}

/// A file that looks like a stage plugin.
#[derive(Debug, Clone)]
pub struct FoundStage {
    /// The file.
    pub path: PathBuf,
    /// What it says of itself, or why it cannot be used.
    pub stage: Result<StageDescription, LoadError>,
    /// A file of the same name in a directory before this one is used instead.
    pub shadowed: bool,
}

/// Every `libmemcr_stage_*.so` in the directories, in search order, then by name.
#[must_use]
pub fn find_all(_search: &SearchPath) -> Vec<FoundStage> {
    unimplemented!()
}
