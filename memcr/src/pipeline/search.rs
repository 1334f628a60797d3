//! Where stage plugins are looked for, and what is there.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use memcr_plugin_api::abi::MAX_NAME_LEN;
use memcr_plugin_api::stage::is_name;

use crate::pipeline::load::Plugin;
use crate::pipeline::{LoadError, StageDescription};
use crate::sys;

/// What plugin files are called: `libmemcr_stage_NAME.so`.
const PREFIX: &str = "libmemcr_stage_";
const SUFFIX: &str = ".so";

/// The directories that are searched for stage plugins, first match wins. The working
/// directory is never one of them: whoever writes where memcr happens to be started
/// would otherwise run code in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPath {
    dirs: Vec<PathBuf>,
}

impl SearchPath {
    /// The usual places: `config_dirs` (`stage_path` of the configuration),
    /// `MEMCR_STAGE_PATH` (ignored where the kernel says that this program has more
    /// rights than its caller), `$exe/../lib/memcr/stages`, `/usr/lib/memcr/stages`.
    #[must_use]
    pub fn standard(config_dirs: &[PathBuf]) -> Self {
        let mut dirs = config_dirs.to_vec();
        if !sys::is_secure()
            && let Some(path) = std::env::var_os("MEMCR_STAGE_PATH")
        {
            dirs.extend(std::env::split_paths(&path));
        }
        if let Ok(exe) = std::env::current_exe()
            && let Some(prefix) = exe.parent().and_then(Path::parent)
        {
            dirs.push(prefix.join("lib/memcr/stages"));
        }
        dirs.push(PathBuf::from("/usr/lib/memcr/stages"));
        Self::new(dirs)
    }

    /// Exactly these directories, each once. Relative ones are dropped: they would mean
    /// the working directory.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        let mut seen = HashSet::new();
        let dirs = dirs
            .into_iter()
            .filter(|dir| dir.is_absolute() && seen.insert(dir.clone()));
        Self {
            dirs: dirs.collect(),
        }
    }

    /// The directories, in order.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The file of a plugin: `name_or_path` itself when it holds a `/`, else the first
    /// `libmemcr_stage_NAME.so` in the directories.
    pub(super) fn locate(&self, name_or_path: &str) -> Result<PathBuf, LoadError> {
        let what = || format!("cannot load stage `{name_or_path}`");
        if name_or_path.contains('/') {
            return Ok(PathBuf::from(name_or_path));
        }
        if !is_name(name_or_path) {
            return Err(LoadError {
                what: what(),
                detail: format!("a name is 1 to {MAX_NAME_LEN} of the characters a-z, 0-9 and _"),
                hint: "a plugin file is named by a path with a `/`".into(),
            });
        }
        let file = file_name(name_or_path);
        let candidates = self.dirs.iter().map(|dir| dir.join(&file));
        candidates
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| LoadError {
                what: what(),
                detail: format!(
                    "there is no {file} in {}",
                    list(self.dirs.iter().map(|dir| dir.display().to_string()))
                ),
                hint: self.not_found_hint(),
            })
    }

    fn not_found_hint(&self) -> String {
        let mut names: Vec<_> = files(self)
            .into_iter()
            .filter_map(|path| stage_name(&path))
            .collect();
        names.sort_unstable();
        names.dedup();
        match names.is_empty() {
            true => "no stages are installed there: set `stage_path` in pipeline.toml or MEMCR_STAGE_PATH".into(),
            false => format!("stages found there: {}", names.join(", ")),
        }
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

/// Every `libmemcr_stage_*.so` in the directories, in search order, then by name. Each
/// is loaded and stays so: call this where a listing is the purpose, not on the way to
/// a checkpoint.
#[must_use]
pub fn find_all(search: &SearchPath) -> Vec<FoundStage> {
    let mut names = HashSet::new();
    let found = files(search).into_iter().map(|path| {
        let stage = Plugin::load_file(&path).map(|plugin| plugin.description().clone());
        let shadowed = stage_name(&path).is_some_and(|name| !names.insert(name));
        FoundStage {
            path,
            stage,
            shadowed,
        }
    });
    found.collect()
}

/// The name in `libmemcr_stage_NAME.so`.
pub(super) fn stage_name(path: &Path) -> Option<String> {
    let file = path.file_name().and_then(OsStr::to_str)?;
    let name = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    Some(name.to_owned())
}

pub(super) fn file_name(name: &str) -> String {
    format!("{PREFIX}{name}{SUFFIX}")
}

/// `a, b, c`, or `no directory` when there is nothing.
fn list(words: impl Iterator<Item = String>) -> String {
    let words: Vec<_> = words.collect();
    if words.is_empty() {
        "no directory".into()
    } else {
        words.join(", ")
    }
}

/// A directory that cannot be read holds no plugins: most of them do not exist.
fn files(search: &SearchPath) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for dir in &search.dirs {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| stage_name(path).is_some())
            .collect();
        files.sort_unstable();
        all.append(&mut files);
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn relative_and_repeated_directories_are_dropped() {
        let dirs = ["/a", "b", ".", "", "/a", "/c"].map(PathBuf::from).to_vec();
        assert_eq!(
            SearchPath::new(dirs).dirs(),
            [PathBuf::from("/a"), PathBuf::from("/c")]
        );
    }

    #[test]
    fn the_usual_places_end_with_those_of_the_installation() {
        let path = SearchPath::standard(&[PathBuf::from("/x")]);
        assert_eq!(path.dirs().first().unwrap(), Path::new("/x"));
        assert_eq!(
            path.dirs().last().unwrap(),
            Path::new("/usr/lib/memcr/stages")
        );
        assert!(
            path.dirs()
                .iter()
                .any(|dir| dir.ends_with("lib/memcr/stages"))
        );
    }

    #[test]
    fn a_missing_stage_names_the_directories_and_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libmemcr_stage_other.so"), b"").unwrap();
        let search = SearchPath::new(vec![dir.path().into()]);
        let error = search.locate("lz5").unwrap_err();
        assert_eq!(error.what, "cannot load stage `lz5`");
        assert_eq!(
            error.detail,
            format!(
                "there is no libmemcr_stage_lz5.so in {}",
                dir.path().display()
            )
        );
        assert_eq!(error.hint, "stages found there: other");
        let error = SearchPath::default().locate("lz5").unwrap_err();
        assert!(error.detail.ends_with("no directory"), "{error}");
        assert!(search.locate("Lz4").unwrap_err().detail.contains("a-z"));
    }

    #[test]
    fn broken_files_are_rows_with_their_reason() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&first, &second] {
            std::fs::write(dir.path().join("libmemcr_stage_bad.so"), b"no library").unwrap();
        }
        std::fs::write(first.path().join("libother.so"), b"").unwrap();
        let found = find_all(&SearchPath::new(vec![
            first.path().into(),
            second.path().into(),
        ]));
        assert_eq!(found.len(), 2);
        assert_eq!(
            found.iter().map(|stage| stage.shadowed).collect::<Vec<_>>(),
            [false, true]
        );
        let error = found[0].stage.as_ref().unwrap_err();
        assert!(error.detail.contains("libmemcr_stage_bad.so"), "{error}");
    }
}
