//! The configuration: from files and flags to the pipeline that is to be built.
//!
//! ```text
//! pipeline.toml ──file::parse──▶ File ─┐
//! built-in copy ──file::parse──▶ File ─┴─under──▶ Config ──select::pipeline──▶ Choice
//!                                     flags, --set ──────────────┘
//! ```
//!
//! Nothing here looks at plugins: whether a stage exists and has the parameters it is
//! given is for the pipeline room to say, which gets the place of each along.

mod daemon;
mod error;
mod file;
mod origin;
mod select;

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use daemon::{Daemon, DaemonFile, OnStop, TcpTrust, gid};
pub use error::ConfigError;
pub use file::{File, Given, Param, Stage, parse};
pub use origin::Origin;
pub use select::{Choice, named, overrides, pipeline, stage, workers};

/// Longest configuration that is read, bytes. The annotated default has 6 KiB; the
/// limit keeps `--config /dev/zero` from eating the machine.
const MAX_LEN_BYTES: u64 = 1 << 20;

/// The default, as it lies at the top of the repository.
const BUILT_IN: &str = include_str!("../../../../pipeline.toml");

/// The settings in force, before flags.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file they were read from; `None`: the built-in copy alone.
    pub path: Option<PathBuf>,
    /// The settings; every one that the built-in copy has is present.
    pub settings: File,
}

/// Where files are looked for: what the environment and our own place in the file
/// system say.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// The running program.
    pub exe: Option<PathBuf>,
}

impl Places {
    /// Those of this process. `secure`: the program has more rights than its caller, so
    /// that the caller's environment does not count.
    #[must_use]
    pub fn of_process(secure: bool) -> Self {
        let var = |name| {
            std::env::var_os(name)
                .filter(|value| !secure && !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            xdg_config_home: var("XDG_CONFIG_HOME"),
            home: var("HOME"),
            exe: std::env::current_exe().ok(),
        }
    }

    /// The files to try, in order. The XDG specification says that a relative
    /// `$XDG_CONFIG_HOME` is to be ignored; the working directory is never searched.
    #[must_use]
    pub fn candidates(&self) -> Vec<PathBuf> {
        let xdg = self.xdg_config_home.clone().filter(|dir| dir.is_absolute());
        let home = self
            .home
            .as_ref()
            .filter(|dir| dir.is_absolute())
            .map(|home| home.join(".config"));
        let beside = self
            .exe
            .as_ref()
            .and_then(|exe| Some(exe.parent()?.parent()?.join("share/memcr")));
        [
            xdg.or(home).map(|dir| dir.join("memcr")),
            Some(PathBuf::from("/etc/memcr")),
            beside,
        ]
        .into_iter()
        .flatten()
        .map(|dir| dir.join("pipeline.toml"))
        .collect()
    }
}

impl Config {
    /// Reads `explicit` (`--config`), else the first file found, over the built-in copy.
    ///
    /// # Errors
    /// When the file cannot be read or something in it is wrong.
    pub fn load(explicit: Option<&Path>, places: &Places) -> Result<Self, ConfigError> {
        let found = match explicit {
            Some(path) => Some((
                path.to_owned(),
                open(path).map_err(|source| unreadable(path, source))?,
            )),
            None => first_found(places)?,
        };
        let built_in = file::parse(Path::new("built-in pipeline.toml"), BUILT_IN)?;
        let Some((path, opened)) = found else {
            return Ok(Self {
                path: None,
                settings: built_in,
            });
        };
        let settings = file::parse(&path, &read(&path, opened)?)?.over(built_in);
        clash(&settings)?;
        settings.daemon.check(&settings.pipelines)?;
        Ok(Self {
            path: Some(path),
            settings,
        })
    }

    /// The file, or that there is none, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(
            || "the built-in configuration".into(),
            |path| path.display().to_string(),
        )
    }
}

impl File {
    /// These settings, and where they are silent those of `base`. A stage or pipeline
    /// named here replaces the whole one of that name.
    #[must_use]
    fn over(self, mut base: Self) -> Self {
        base.pipelines.extend(self.pipelines);
        base.stages.extend(self.stages);
        Self {
            pipeline: self.pipeline.or(base.pipeline),
            stage_path: self.stage_path.or(base.stage_path),
            state_dir: self.state_dir.or(base.state_dir),
            workers: self.workers.or(base.workers),
            idle: self.idle.or(base.idle),
            stall_limit: self.stall_limit.or(base.stall_limit),
            chunk: self.chunk.or(base.chunk),
            pipelines: base.pipelines,
            stages: base.stages,
            daemon: self.daemon.over(base.daemon),
        }
    }
}

/// A name that is both a pipeline and a stage would mean now one, now the other.
fn clash(settings: &File) -> Result<(), ConfigError> {
    match settings
        .pipelines
        .iter()
        .find(|(name, _)| settings.stages.contains_key(*name))
    {
        None => Ok(()),
        Some((name, list)) => Err(ConfigError::Entry {
            origin: list.origin.clone(),
            message: format!("`{name}` is the name of a pipeline and of a stage, [stage.{name}]"),
        }),
    }
}

type Found = (PathBuf, std::fs::File);

fn first_found(places: &Places) -> Result<Option<Found>, ConfigError> {
    use std::io::ErrorKind::PermissionDenied;
    for path in places.candidates() {
        match open(&path) {
            Ok(file) => return trusted(&path, &file).map(|()| Some((path, file))),
            Err(error) if is_absent(&error) => {}
            // The home of somebody else, as `su` and services leave it in the environment:
            // whatever is there is not for us.
            Err(_)
                if path
                    .metadata()
                    .is_err_and(|error| error.kind() == PermissionDenied) => {}
            // A file that is there and cannot be read may say "encrypt": going on
            // without it would do something else than was configured.
            Err(source) => return Err(unreadable(&path, source)),
        }
    }
    Ok(None)
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::open(path)
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A file that nobody named must not be one that just anybody may write: it decides
/// where the memory of processes goes.
fn trusted(path: &Path, file: &std::fs::File) -> Result<(), ConfigError> {
    let meta = file.metadata().map_err(|source| unreadable(path, source))?;
    let why = if meta.mode() & 0o002 != 0 {
        format!(
            "is refused: everybody may write it (mode {:04o})",
            meta.mode() & 0o7777
        )
    } else if meta.uid() != 0 && meta.uid() != rustix::process::getuid().as_raw() {
        format!(
            "is refused: it belongs to uid {}, neither root nor you",
            meta.uid()
        )
    } else {
        return Ok(());
    };
    Err(ConfigError::Unfit {
        path: path.to_owned(),
        why,
    })
}

fn read(path: &Path, file: std::fs::File) -> Result<String, ConfigError> {
    let unfit = |why| ConfigError::Unfit {
        path: path.to_owned(),
        why,
    };
    let mut bytes = Vec::new();
    file.take(MAX_LEN_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > MAX_LEN_BYTES {
        return Err(unfit(format!("is longer than {MAX_LEN_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        unfit(format!(
            "is not UTF-8 at byte {}",
            error.utf8_error().valid_up_to()
        ))
    })
}

fn unreadable(path: &Path, source: std::io::Error) -> ConfigError {
    ConfigError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn places(dir: &Path) -> Places {
        Places {
            xdg_config_home: Some(dir.join("xdg")),
            home: None,
            exe: Some(dir.join("bin/memcr")),
        }
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }

    #[test]
    fn the_built_in_copy_says_everything() {
        let built_in = file::parse(Path::new("pipeline.toml"), BUILT_IN).unwrap();
        assert_eq!(built_in.pipeline.unwrap().value, "compress,file");
        assert!(
            built_in.workers.is_some()
                && built_in.idle == Some(false)
                && built_in.chunk.is_some()
                && built_in.stage_path.is_some()
        );
    }

    #[test]
    fn files_are_tried_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        write(&dir.path().join("share/memcr/pipeline.toml"), "workers = 3");
        assert_eq!(
            Config::load(None, &places)
                .unwrap()
                .settings
                .workers
                .unwrap()
                .value,
            3
        );
        write(&dir.path().join("xdg/memcr/pipeline.toml"), "workers = 4");
        assert_eq!(
            Config::load(None, &places)
                .unwrap()
                .settings
                .workers
                .unwrap()
                .value,
            4
        );
        let explicit = dir.path().join("mine.toml");
        write(&explicit, "workers = 5");
        assert_eq!(
            Config::load(Some(&explicit), &places)
                .unwrap()
                .settings
                .workers
                .unwrap()
                .value,
            5
        );
    }

    #[test]
    fn what_a_file_does_not_say_is_built_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        write(&path, "[stage.file]\ndir = '/x'\n[pipelines]\nmine = 'a,b'");
        let config = Config::load(Some(&path), &Places::default()).unwrap();
        assert_eq!(config.settings.pipeline.unwrap().value, "compress,file");
        assert_eq!(config.settings.stages["compress"].plugin, "lz4");
        assert_eq!(config.settings.stages["file"].params[0].value, "/x");
    }

    #[test]
    fn a_file_that_anybody_may_write_is_not_found_but_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xdg/memcr/pipeline.toml");
        write(&path, "workers = 3");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = Config::load(None, &places(dir.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("is refused: everybody may write it (mode 0666)"),
            "{error}"
        );
        assert!(
            Config::load(Some(&path), &Places::default()).is_ok(),
            "named by the user, it is hers to judge"
        );
    }

    #[test]
    fn what_is_no_text_or_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, b"a\xff").unwrap();
        let error = |path: &Path| {
            Config::load(Some(path), &Places::default())
                .unwrap_err()
                .to_string()
        };
        assert!(error(&path).ends_with("is not UTF-8 at byte 1"));
        assert!(error(Path::new("/dev/zero")).ends_with("is longer than 1048576 bytes"));
    }

    #[test]
    fn a_relative_xdg_directory_is_ignored() {
        let places = Places {
            xdg_config_home: Some("x".into()),
            home: Some("/h".into()),
            exe: None,
        };
        assert_eq!(
            places.candidates()[0],
            Path::new("/h/.config/memcr/pipeline.toml")
        );
    }

    #[test]
    fn one_name_for_two_things_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        write(&path, "[pipelines]\ncompress = 'lz4,file'");
        let error = Config::load(Some(&path), &Places::default())
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(
            "p.toml:2:12: `compress` is the name of a pipeline and of a stage, [stage.compress]"
        ));
    }
}
