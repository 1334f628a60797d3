//! The two commands of the README, and what they are made of.
//!
//! ```text
//!   cargo xtask demo    host(build) → artifacts(release) → prefix → victim + memcr
//!   cargo xtask test    host(tests) → fmt, clippy, doc → artifacts(ci) → prefix → unit, e2e, bench, fuzz
//!   cargo xtask stage   host(build) → artifacts(release) → prefix
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
  stage          build memcr and its stages and put them together in target/memcr";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["demo"] => demo::run(),
        ["test", ref parts @ ..] => suite::run(parts),
        ["stage"] => stage(),
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

fn stage() -> run::Done {
    host::ready_to_build()?;
    let prefix = artifacts::build(artifacts::RELEASE, false)?.stage()?;
    println!("{}", prefix.memcr().display());
    Ok(())
}
