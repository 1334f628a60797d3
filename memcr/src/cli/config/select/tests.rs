//! Command lines and configurations, and the pipelines that come of them.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::cli::args::Args;
use crate::cli::config::Places;
use clap::Parser;

const CONFIG: &str = "pipeline = 'compress,file'\n\
    [stage.compress]\nplugin = 'lz4'\nacceleration = 7\n\
    [stage.box]\nplugin = 'tmpfs'\n\
    [pipelines]\nsmall = 'zstd, box'\n";

/// The pipeline of a command line as `alias:plugin{key=value}` words.
fn chosen(line: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, CONFIG).unwrap();
    let config = Config::load(Some(&path), &Places::default()).unwrap();
    let args = Args::try_parse_from(line.split(' ')).unwrap();
    let choice = pipeline(&config, &args.job, &args.common.set).map_err(|e| e.to_string())?;
    let spec = &choice.spec;
    let word = |stage: &StageSpec| {
        let params: Vec<_> = stage
            .params
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        format!("{}:{}{{{}}}", stage.alias, stage.plugin, params.join(" "))
    };
    Ok(spec.stages.iter().map(word).collect::<Vec<_>>().join(" "))
}

#[test]
fn flags_choose_the_stages() {
    let file = "file:file{dir=/tmp}";
    for (line, want) in [
        ("m -p1", format!("compress:lz4{{acceleration=7}} {file}")),
        ("m -p1 -z", format!("lz4:lz4{{}} {file}")),
        (
            "m -p1 -z zstd -c",
            format!("md5:md5{{}} zstd:zstd{{}} {file}"),
        ),
        (
            "m -p1 -e -c -z",
            format!("md5:md5{{}} lz4:lz4{{}} encrypt:encrypt{{cipher=aes-128-cbc}} {file}"),
        ),
        ("m -p1 --pipeline small", "zstd:zstd{} box:tmpfs{}".into()),
        (
            "m -p1 --pipeline small -d /x",
            "zstd:zstd{} box:tmpfs{dir=/x}".into(),
        ),
        (
            "m -p1 --pipeline lz4,box --set box.size=1 --set lz4.acceleration=2",
            "lz4:lz4{acceleration=2} box:tmpfs{size=1}".into(),
        ),
        (
            "m -p1 --set lz4.acceleration=2 -d/x",
            "compress:lz4{acceleration=2} file:file{dir=/x}".into(),
        ),
        (
            "m -p1 --set file.dir=/y -d/x",
            "compress:lz4{acceleration=7} file:file{dir=/y}".into(),
        ),
        (
            "m -p1 --pipeline /a/libmemcr_stage_own.so,file --set own.a=b.c=d",
            format!("own:/a/libmemcr_stage_own.so{{a=b.c=d}} {file}"),
        ),
    ] {
        assert_eq!(chosen(line).unwrap(), want, "{line}");
    }
}

#[test]
fn a_flag_or_the_configuration_makes_it_idle() {
    for (line, text, want) in [
        ("m -p1", "", false),
        ("m -p1", "idle = false", false),
        ("m -p1 --idle", "idle = false", true),
        ("m -p1", "idle = true", true),
        ("m checkpoint 1 --idle", "", true),
    ] {
        let text = format!("pipeline = 'file'\n{text}");
        let config = Config {
            path: None,
            settings: super::super::parse(Path::new("p"), &text).unwrap(),
        };
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let choice = super::pipeline(&config, &args.job, &[]).unwrap();
        assert_eq!(choice.idle, want, "{line} {text}");
    }
}

#[test]
fn a_flag_or_the_configuration_tells_the_workers() {
    for (line, text, want) in [
        ("m verify x", "", None),
        ("m verify x", "workers = 0", None),
        ("m verify x", "workers = 3", Some(3)),
        ("m verify x --workers 2", "workers = 3", Some(2)),
    ] {
        let config = Config {
            path: None,
            settings: super::super::parse(Path::new("p"), text).unwrap(),
        };
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let workers = super::workers(&config, &args.job).map(NonZeroUsize::get);
        assert_eq!(workers, want, "{line} {text}");
    }
}

#[test]
fn a_client_chooses_the_compression_and_nothing_else() {
    for (pipeline, stage, want) in [
        ("lz4,encrypt,file", Some("zstd"), "zstd encrypt file"),
        ("lz4,encrypt,file", None, "encrypt file"),
        ("md5,encrypt,file", Some("lz4"), "md5 lz4 encrypt file"),
        ("md5,file", Some("zstd"), "md5 zstd file"),
        ("file", Some("lz4"), "lz4 file"),
        ("compress,file", Some("lz4"), "compress file"),
        ("compress,file", Some("zstd"), "zstd file"),
        ("compress,file", None, "file"),
    ] {
        let config = Config {
            path: None,
            settings: super::super::parse(Path::new("p"), CONFIG).unwrap(),
        };
        let words = ["m", "-p1", "--pipeline", pipeline];
        let args = Args::try_parse_from(words).unwrap();
        let mut choice = super::pipeline(&config, &args.job, &[]).unwrap();
        choice.compress_with(stage);
        let stages = &choice.spec.stages;
        let names: Vec<&str> = stages.iter().map(|it| it.alias.as_str()).collect();
        assert_eq!(names.join(" "), want, "{pipeline} {stage:?}");
    }
}

#[test]
fn mistakes_are_named() {
    for (line, want) in [
        (
            "m -p1 --pipeline=",
            "pipeline `` (from --pipeline): no stages; at least a sink is needed, as in `file` or `compress,file`",
        ),
        (
            "m -p1 --pipeline a,,b",
            "pipeline `a,,b` (from --pipeline): a stage has no name",
        ),
        ("m -p1 --set a", "--set a: STAGE.KEY=VALUE is needed"),
        (
            "m -p1 --set a=b",
            "--set a=b: STAGE.KEY=VALUE is needed, as in lz4.acceleration=4",
        ),
        (
            "m -p1 --set zstd.level=3",
            "--set zstd.level=3: the pipeline `compress,file` has no stage `zstd`",
        ),
    ] {
        assert_eq!(chosen(line).unwrap_err(), want);
    }
}
