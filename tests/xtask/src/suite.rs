//! All tests, in the order in which they fail fastest, and one closing line.

use std::process::Command;
use std::time::Instant;

use crate::artifacts::{self, Built, Prefix};
use crate::host;
use crate::run::{self, Done};
use crate::tally::Tally;

/// What the parts test.
struct World {
    built: Built,
    prefix: Prefix,
}

/// A part of the suite: its name, and what it does.
type Part = (&'static str, fn(&World) -> (Done, Tally));

const PARTS: &[Part] = &[
    ("fmt", |_| {
        check(run::cargo().args(["fmt", "--all", "--check"]))
    }),
    ("clippy", |world| {
        let mut clippy = world.cargo("clippy");
        // With the code that only tests have.
        clippy.args(["--workspace", "--features", "memcr/fault-points"]);
        check(clippy.args(["--all-targets", "--", "-Dwarnings"]))
    }),
    ("doc", |world| {
        let mut doc = world.cargo("doc");
        check(
            doc.args(["--workspace", "--no-deps"])
                .env("RUSTDOCFLAGS", "-Dwarnings"),
        )
    }),
    ("unit", |world| {
        tests(world.cargo("test").args(["--workspace", "--no-fail-fast"]))
    }),
    ("e2e", |world| tests(&mut world.program("memcr-e2e"))),
    ("faults", |world| {
        tests(world.program("memcr-campaign").arg("--quick"))
    }),
    // Whether the bench works, not how fast anything is: that is for a quiet machine.
    ("bench", |world| {
        tests(world.program("memcr-bench").arg("--smoke"))
    }),
    // The corpus and a few seconds of mutation: what a change broke, not a hunt.
    ("fuzz", |world| {
        let mut fuzz = Command::new(run::root().join("tests/fuzz/run"));
        tests(fuzz.arg("20").env("MEMCR_TEST_PREFIX", world.prefix.path()))
    }),
];

/// Runs the parts named, or all, and prints `N passed, N failed, N skipped`.
///
/// # Errors
/// When anything failed.
pub(crate) fn run(names: &[&str]) -> Done {
    if let Some(unknown) = names
        .iter()
        .find(|name| !PARTS.iter().any(|(part, _)| part == *name))
    {
        let known: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "no part `{unknown}`; there are {}",
            known.join(", ")
        ));
    }
    host::ready_to_test()?;
    let built = artifacts::build(artifacts::CI, true)?;
    let prefix = built.stage()?;
    let world = World { built, prefix };
    let mut total = Tally::default();
    let mut summary = Vec::new();
    for (name, part) in PARTS
        .iter()
        .filter(|(name, _)| names.is_empty() || names.contains(name))
    {
        let begin = Instant::now();
        println!("\n== {name}");
        let (done, tally) = part(&world);
        total += tally;
        let how = done.err().unwrap_or_else(|| "ok".into());
        summary.push(format!(
            "{name:8} {:5.0} s  {tally}  {how}",
            begin.elapsed().as_secs_f64()
        ));
    }
    println!("\n{}\n\n{total}", summary.join("\n"));
    if total.failed == 0 {
        Ok(())
    } else {
        Err("there were failures".into())
    }
}

/// The whole campaign of kills and failures, with its own arguments.
///
/// # Errors
/// When a target was not right in the end.
pub(crate) fn campaign(args: &[&str]) -> Done {
    host::ready_to_test()?;
    let built = artifacts::build(artifacts::CI, true)?;
    let prefix = built.stage()?;
    let world = World { built, prefix };
    run::visibly(world.program("memcr-campaign").args(args))
}

impl World {
    /// Cargo with the profile that was built already, told where the installation is.
    fn cargo(&self, verb: &str) -> Command {
        let mut command = run::cargo();
        command.args([verb, "--profile", artifacts::CI.name]);
        command.env("MEMCR_TEST_PREFIX", self.prefix.path());
        command
    }

    /// A test program that was built with everything else. Not by `cargo run`, which
    /// would build it again with the features that it alone needs of its libraries.
    ///
    /// Its targets are ended by signals that nohup(1) and a shell's `&` have us ignore: env(1)
    /// sees to it that they are not.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,QUIT");
        command.arg(self.built.dir().join(name));
        command.current_dir(run::root());
        command.env("MEMCR_TEST_PREFIX", self.prefix.path());
        command
    }
}

/// One command, one check.
fn check(command: &mut Command) -> (Done, Tally) {
    let done = run::visibly(command);
    let mut tally = Tally::default();
    tally.check(done.is_ok());
    (done, tally)
}

/// A command that runs test programs. One that fails without a failed test (it crashed,
/// it did not build) counts as one.
fn tests(command: &mut Command) -> (Done, Tally) {
    let mut tally = Tally::default();
    let done = run::watched(command, |line| tally.read(line));
    if done.is_err() && tally.failed == 0 {
        tally.check(false);
    }
    (done, tally)
}
