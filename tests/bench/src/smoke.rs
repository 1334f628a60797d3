//! Whether everything here works: each pipeline and each limit once, small. Says nothing
//! about time, so it may run on a busy machine.

use memcr_harness::{Result, Trouble, ensure};

use crate::args::Args;
use crate::bound::Volumes;
use crate::case::Case;
use crate::cycle::{self, Program};
use crate::fleet;
use crate::lab::Lab;
use crate::limits::{Limits, Step};
use crate::peers;
use crate::rounds;
use crate::shapes;

/// Memory of the target, MiB: some sixty chunks.
const SIZE_MIB: u64 = 16;

/// Runs everything once and prints a closing line like that of a test program.
///
/// # Errors
/// When anything failed.
pub(crate) fn run(args: &Args) -> Result {
    let program = Program::find(args.memcr.as_deref())?;
    let mut tally = Tally::default();
    for case in &args.cases() {
        tally.count(&rounds::named(case), one(&program, case, args));
    }
    for &sink in &args.sinks {
        let name = format!("a fleet into {}", sink.name());
        tally.count(&name, fleet::smoke(&program, sink, args));
    }
    for (name, tried) in peers::smoke(&program, args) {
        tally.count(&name, tried);
    }
    tally.count("shapes", shapes::smoke(&program, args));
    let lab = Lab::open(SIZE_MIB, args)?;
    let mut limits = Limits::new(args.n_threads());
    let measured = limits.measure(&lab);
    for (step, what, _) in Step::ALL {
        if let Some(why) = limits.lacking.get(&step) {
            tally.count(what, Err(Trouble::Skipped(why.clone())));
        }
    }
    tally.count("limits", measured);
    tally.close()
}

fn one(program: &Program, case: &Case, args: &Args) -> Result {
    let cycle = cycle::run(program, case, SIZE_MIB, args)?;
    let volumes = Volumes::of(&cycle.report)?;
    // A cycle that moved nothing would have passed so far.
    let taken = volumes.raw_bytes + volumes.zero_bytes;
    ensure(taken >= SIZE_MIB << 20, || {
        format!("memcr took {taken} bytes of {SIZE_MIB} MiB")
    })?;
    ensure(cycle.peak_rss_kib > 0, || "memcr had no memory".into())?;
    ensure(cycle.cost.has_cpu_time(), || "memcr had no CPU".into())
}

#[derive(Debug, Default)]
struct Tally {
    n_passed: u32,
    n_failed: u32,
    n_skipped: u32,
}

impl Tally {
    fn count(&mut self, name: &str, result: Result) {
        let how = match result {
            Ok(()) => {
                self.n_passed += 1;
                "ok".into()
            }
            Err(Trouble::Skipped(why)) => {
                self.n_skipped += 1;
                format!("ignored, {why}")
            }
            Err(Trouble::Failed(why)) => {
                self.n_failed += 1;
                format!("FAILED\n{why}")
            }
        };
        println!("test {name} ... {how}");
    }

    /// # Errors
    /// When anything failed.
    fn close(self) -> Result {
        let Self {
            n_passed,
            n_failed,
            n_skipped,
        } = self;
        let verdict = if n_failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {n_passed} passed; {n_failed} failed; {n_skipped} ignored"
        );
        ensure(n_failed == 0, || "the smoke test failed".into())
    }
}
