//! Rounds: everything once, then everything once more, so that a machine that gets
//! slower or faster meanwhile does so for all alike.

use memcr_harness::Result;

use crate::args::Args;
use crate::case::Case;
use crate::cycle::{self, Cycle, Program};

/// The cycles of one case, one list per program; the n-th of each belong together.
pub(crate) type Series = Vec<Vec<Cycle>>;

/// Size at which everything is tried before anything is timed, MiB.
const TRIAL_MIB: u64 = 16;

/// Runs each program on each case once, small: what does not work shows at once, and
/// programs and plugins are in the page cache when the clock runs.
///
/// # Errors
/// When anything fails.
pub(crate) fn try_all(programs: &[Program], args: &Args) -> Result {
    for case in &args.cases() {
        for program in programs {
            cycle::run(program, case, TRIAL_MIB, args)?;
        }
    }
    Ok(())
}

/// Runs `args.runs` rounds at one size; before each, `first`.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(
    programs: &[Program],
    size_mib: u64,
    args: &Args,
    mut first: impl FnMut() -> Result,
) -> Result<Vec<Series>> {
    let cases = args.cases();
    let mut series = vec![vec![Vec::new(); programs.len()]; cases.len()];
    for round in 0..args.runs {
        eprintln!("{size_mib} MiB: round {} of {}", round + 1, args.runs);
        first()?;
        for (case, series) in cases.iter().zip(&mut series) {
            for i in order(programs.len(), round) {
                series[i].push(cycle::run(&programs[i], case, size_mib, args)?);
            }
        }
    }
    Ok(series)
}

/// Forwards and backwards in turn: who comes first finds another machine than who
/// comes second.
pub(crate) fn order(n: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// The failure of a case, with its name.
pub(crate) fn named(case: &Case) -> String {
    format!("{} into {}", case.name(), case.sink.name())
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn the_first_is_the_last_in_the_next_round() {
        assert_eq!(order(2, 0), [0, 1]);
        assert_eq!(order(2, 1), [1, 0]);
        assert_eq!(order(1, 1), [0]);
    }
}
