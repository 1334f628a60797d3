//! Rounds of all shapes: everything once, then everything once more.

use memcr_harness::{Context, Result};

use super::plan::{Group, Part, Plan, Shape};
use crate::args::Args;
use crate::case::Case;
use crate::cycle::{self, Cycle, Program};
use crate::rounds;

/// The cycles of a group in one case.
pub(super) struct Series {
    pub(super) part: Part,
    pub(super) case: Case,
    /// Each shape with its cycles; the n-th of all belong together. The first one is the
    /// reference.
    pub(super) shapes: Vec<(Shape, Vec<Cycle>)>,
}

/// Measures `args.runs` rounds.
///
/// # Errors
/// When anything fails.
pub(super) fn measure(program: &Program, plan: &Plan, args: &Args) -> Result<Vec<Series>> {
    run(program, plan, args, args.runs)
}

/// Measures one round.
///
/// # Errors
/// When anything fails.
pub(super) fn once(program: &Program, plan: &Plan, args: &Args) -> Result<Vec<Series>> {
    run(program, plan, args, 1)
}

fn run(program: &Program, plan: &Plan, args: &Args, n: u32) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = plan.groups.iter().flat_map(Series::of).collect();
    for round in 0..n {
        for series in &mut all {
            if n > 1 {
                eprintln!("round {} of {n}: {}", round + 1, series.text());
            }
            series.round(program, round, args)?;
        }
    }
    Ok(all)
}

impl Series {
    /// One for each case.
    fn of(group: &Group) -> impl Iterator<Item = Self> {
        let shapes = group.shapes.iter().map(|shape| (shape.clone(), Vec::new()));
        let shapes: Vec<_> = shapes.collect();
        group.cases.iter().map(move |case| Self {
            part: group.part,
            case: case.clone(),
            shapes: shapes.clone(),
        })
    }

    fn round(&mut self, program: &Program, round: u32, args: &Args) -> Result {
        for i in rounds::order(self.shapes.len(), round) {
            let (shape, cycles) = &mut self.shapes[i];
            let start = || shape.start(args.content());
            let cycle = cycle::run_on(program, &self.case, shape.size_mib, args, start)
                .and_then(|cycle| shape.expect(&cycle).map(|()| cycle))
                .context(format!("{}, {}", shape.name, rounds::named(&self.case)))?;
            cycles.push(cycle);
        }
        Ok(())
    }

    /// `shape, shape, … into case`.
    fn text(&self) -> String {
        let names = self.shapes.iter().map(|(shape, _)| &*shape.name);
        let names = names.collect::<Vec<_>>().join("; ");
        format!("{}: {names}", rounds::named(&self.case))
    }

    /// Each cycle of a shape beside that of the reference in the same round.
    pub(super) fn beside_reference<'a>(
        &'a self,
        cycles: &'a [Cycle],
    ) -> impl Iterator<Item = (&'a Cycle, &'a Cycle)> {
        let reference = self.shapes.first().map_or(&[][..], |(_, cycles)| cycles);
        cycles.iter().zip(reference)
    }
}
