//! The two commands of the README, and what they are made of.
//!
//! ```text
//!   cargo xtask demo      host(build) → artifacts(release) → prefix → victim + memcr
//!   cargo xtask test      host(tests) → fmt, clippy, doc → artifacts(ci) → prefix → unit, e2e, faults, bench, fuzz
//!   cargo xtask campaign  host(tests) → artifacts(ci) → prefix → memcr-campaign
//!   cargo xtask stage     host(build) → artifacts(release) → prefix
//!   cargo xtask bench     host(build) → artifacts(release) → prefix → bench
//! ```
//!
//! This program depends on nothing, so that it builds where the rest does not yet: what
//! is missing (OpenSSL's headers, a C compiler, the programs used as targets) it
//! installs first.

mod artifacts;
mod demo;
mod host;
mod run;
mod suite;
mod tally;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND
  demo           take 256 MiB from a sample process and give them back
  test [PART..]  run all tests, or these parts of them (see the list at the end of a run)
  campaign [ARG..]
                 kill and fail memcr everywhere; some half an hour, with --quick a minute
  bench [ARG..]  measure memcr beside the machine, with --fleet its daemon with many targets
                 or --peers zram and CRIU beside it (`bench --help` tells the arguments)
  stage          build memcr and its stages and put them together in target/memcr";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["demo"] => demo::run(),
        ["test", ref parts @ ..] => suite::run(parts),
        ["campaign", ref args @ ..] => suite::campaign(args),
        ["bench", ref args @ ..] => bench(args),
        ["stage"] => stage().map(|prefix| println!("{}", prefix.memcr().display())),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn stage() -> run::Done<artifacts::Prefix> {
    host::ready_to_build()?;
    artifacts::build(artifacts::RELEASE, false)?.stage()
}

fn bench(args: &[&str]) -> run::Done {
    let prefix = stage()?;
    let mut bench = run::cargo();
    bench.args(["run", "--release", "--package", "memcr-bench", "--"]);
    run::visibly(bench.args(args).env("MEMCR_TEST_PREFIX", prefix.path()))
}
