//! What is measured: a pipeline into a sink.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use crate::args::Args;

/// Where images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sink {
    /// A tmpfs that is there.
    Tmpfs,
    /// A file system.
    File,
}

impl Sink {
    /// The sink's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::File => "file",
        }
    }

    /// The directory given for it.
    pub(crate) fn dir(self, args: &Args) -> &Path {
        match self {
            Self::Tmpfs => args.tmpfs_dir(),
            Self::File => &args.file_dir,
        }
    }
}

/// A pipeline into a sink.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Stages before the sink, in encode order.
    pub(crate) stages: Vec<String>,
    pub(crate) sink: Sink,
}

impl Case {
    /// From the words of the command line; `plain` stands for no stage at all.
    pub(crate) fn new(stages: &str, sink: Sink) -> Self {
        let stages = match stages {
            "plain" => Vec::new(),
            _ => stages.split(',').map(str::to_owned).collect(),
        };
        Self { stages, sink }
    }

    /// Its stages as people write them.
    pub(crate) fn name(&self) -> String {
        match self.stages[..] {
            [] => "plain".into(),
            _ => self.stages.join(","),
        }
    }

    /// Where memcr puts the image of a process.
    pub(crate) fn image(&self, pid: u32, args: &Args) -> PathBuf {
        self.sink.dir(args).join(format!("pages-{pid}.img"))
    }

    /// What memcr must be told to use it.
    pub(crate) fn words(&self, args: &Args) -> Vec<OsString> {
        let sink = self.sink.name();
        let stages = self.stages.iter().map(String::as_str).chain([sink]);
        let pipeline = stages.collect::<Vec<_>>().join(",");
        let mut dir = OsString::from(format!("{sink}.dir="));
        dir.push(self.sink.dir(args));
        let mut words: Vec<OsString> = ["--pipeline", &pipeline, "--set"].map(Into::into).into();
        words.push(dir);
        if self.sink == Sink::Tmpfs {
            // It refuses what saves no memory; here only the time matters.
            words.extend(["--set", "tmpfs.allow_plain=true"].map(Into::into));
        }
        if let Some(n) = args.workers {
            words.extend(["--workers".into(), n.to_string().into()]);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[test]
    fn a_case_becomes_words() {
        let args = Args::parse_from(["bench", "--workers", "2", "--file-dir", "/d"]);
        let case = Case::new("md5,lz4", Sink::File);
        let words = [
            "--pipeline",
            "md5,lz4,file",
            "--set",
            "file.dir=/d",
            "--workers",
            "2",
        ];
        assert_eq!(case.words(&args), words);
        let plain = Case::new("plain", Sink::Tmpfs);
        assert_eq!(plain.name(), "plain");
        assert_eq!(plain.words(&args)[1], "tmpfs");
    }
}
