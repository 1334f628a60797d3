//! A `pipeline.toml` that may be anything, and what a command line makes of it.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use memcr::cli::args::Args;
use memcr::cli::config::{Config, parse, pipeline};

static ARGS: LazyLock<[Args; 2]> = LazyLock::new(|| {
    let plain = ["memcr", "-p", "1"];
    let full = ["memcr", "-p", "1", "-z", "zstd", "-c", "-e", "-d", "/dir"];
    let args = |words: &[&str]| Args::try_parse_from(words).expect("these are good");
    [args(&plain), args(&full)]
});

fuzz_target!(|text: &str| {
    let Ok(settings) = parse(Path::new("pipeline.toml"), text) else {
        return;
    };
    let config = Config {
        path: None,
        settings,
    };
    for args in &*ARGS {
        for sets in [
            vec![],
            vec!["encrypt.key_fd=3".to_owned()],
            vec![text.to_owned()],
        ] {
            if let Ok(choice) = pipeline(&config, &args.job, &sets) {
                assert!(!choice.spec.stages.is_empty(), "a pipeline without a stage");
            }
        }
    }
});
