//! What the shape of a target costs, beside plain memory: threads, mappings, holes, size.
//!
//! ```text
//!   round 1                                          round 2
//!   plain │ reference, shape, shape, … │ reference …  the same, backwards
//!   lz4   │ reference, shape, shape, … │ reference …
//!             └───────┴── compared with each other: both met the same machine
//! ```
//!
//! **Frozen apart from moving bytes.** How long a target stands still is memcr's own
//! figure: `frozen_millis` of a checkpoint, which ends when it is held, and of a restore
//! all phases up to `release`. A part of that moves bytes and cannot be less (see
//! `bound`); the rest is fixed. The phases do not tell them apart: `scan and store` has
//! the walk through the page tables in it, `drop` the journal, the guard, and something
//! for each thread, `populate` a piece for each mapping. So the fixed part is told by
//! comparing with a reference, a target of the same bytes in one mapping of one thread:
//!
//! ```text
//!   fixed(shape) = frozen(shape) − frozen(reference) + own(reference)
//!   own          = freeze + map               of a checkpoint
//!                  open image + release       of a restore
//! ```
//!
//! each in the same round, and then the median over the rounds. Of a reference itself
//! that is its own part alone. This leaves out what is fixed in its other phases (the
//! commit, the journal, the guard): the target of 0 MiB shows it, for it moves next to
//! nothing, and all of the time that it stands still is fixed.
//! The stacks of threads are bytes too. A target with threads therefore has less memory
//! beside them; "MiB taken" shows that all of a group are alike.
//!
//! **Cost per byte.** A checkpoint and a restore, timed from outside as everywhere here,
//! over the bytes of the pages taken (those of zeros too), and its ratio to that of the
//! reference in the same round. Programs start and load stages in that time, so small
//! targets cost more per byte even where all else is in proportion.
//!
//! None of the shapes is in huge pages, and neither are their references. Only the sizes
//! are plain memory as everywhere here: in huge pages where the kernel uses them by itself.

mod fixed;
mod per_byte;
mod plan;
mod series;

use memcr_harness::Result;
use serde_json::json;

use crate::args::Args;
use crate::cycle::Program;
use crate::figures::write_json;
use crate::machine::Machine;
use crate::rounds;
pub(crate) use plan::Part;
use plan::Plan;
use series::Series;

/// Measures, prints a table for each part, and writes everything to a file if asked to.
///
/// # Errors
/// When anything fails, up to a wrong byte in a target.
pub(crate) fn run(args: &Args) -> Result {
    let programs = [Program::find(args.memcr.as_deref())?];
    let machine = Machine::here();
    println!("{}: {machine}", programs[0].version());
    rounds::try_all(&programs, args)?;
    let plan = Plan::full(args);
    for note in &plan.skipped {
        println!("skipped: {note}");
    }
    let series = series::measure(&programs[0], &plan, args)?;
    let tables = Tables::of(&series)?;
    for part in &args.shapes {
        match part {
            Part::Fixed => fixed::print(&tables.fixed, args),
            Part::Fragments => per_byte::print("fragments", &tables.fragments, args),
            Part::Sizes => per_byte::print("sizes", &tables.sizes, args),
        }
    }
    write_json(args.json.as_deref(), || {
        json!({
            "memcr": programs[0].version(),
            "machine": machine,
            "n_threads": args.n_threads(),
            "content": args.content(),
            "runs": args.runs,
            "skipped": plan.skipped,
            "fixed": tables.fixed,
            "fragments": tables.fragments,
            "sizes": tables.sizes,
        })
    })
}

/// Everything once, small.
///
/// # Errors
/// When anything failed, or a target had not the shape it was to have.
pub(crate) fn smoke(program: &Program, args: &Args) -> Result {
    let plan = Plan::small(args);
    let series = series::once(program, &plan, args)?;
    Tables::of(&series).map(drop)
}

/// The figures of each part.
struct Tables {
    fixed: Vec<fixed::Row>,
    fragments: Vec<per_byte::Row>,
    sizes: Vec<per_byte::Row>,
}

impl Tables {
    fn of(series: &[Series]) -> Result<Self> {
        let mut tables = Self {
            fixed: Vec::new(),
            fragments: Vec::new(),
            sizes: Vec::new(),
        };
        for series in series {
            match series.part {
                Part::Fixed => tables.fixed.extend(fixed::rows(series)?),
                Part::Fragments => tables.fragments.extend(per_byte::rows(series)?),
                Part::Sizes => tables.sizes.extend(per_byte::rows(series)?),
            }
        }
        Ok(tables)
    }
}
