//! Two memcr, run by run: is the other one faster?
//!
//! ```text
//!   round 1   A this other   B this other   …
//!   round 2   A other this   B other this   …
//! ```
//!
//! Each run is compared with its neighbour and not with the whole: what the machine does
//! to one it does to the other. A ratio below 1 means that the other one is faster; one
//! whose extremes lie on both sides of 1 means nothing.

use std::path::Path;

use memcr_harness::Result;
use serde::Serialize;
use serde_json::json;

use crate::args::Args;
use crate::case::Case;
use crate::cycle::{Cycle, Program};
use crate::figures::write_json;
use crate::machine::Machine;
use crate::report::print_table;
use crate::rounds::{self, Series};
use crate::stat::Stat;

/// Checkpoint or restore of one case by both.
#[derive(Debug, Serialize)]
struct Pair {
    this_millis: Stat,
    other_millis: Stat,
    /// Other over this, run by run.
    ratio: Stat,
}

#[derive(Debug, Serialize)]
struct Row {
    pipeline: String,
    sink: &'static str,
    checkpoint: Pair,
    restore: Pair,
}

/// Compares, prints a table per size, and writes everything to a file if asked to.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(args: &Args, other: &Path) -> Result {
    let programs = [
        Program::find(args.memcr.as_deref())?,
        Program::find(Some(other))?,
    ];
    let machine = Machine::here();
    println!("{machine}");
    for (name, program) in ["this", "other"].iter().zip(&programs) {
        println!(
            "{name:5} {} ({})",
            program.path.display(),
            program.version()
        );
    }
    rounds::try_all(&programs, args)?;
    let mut sizes = Vec::new();
    for &size_mib in &args.sizes {
        let series = rounds::run(&programs, size_mib, args, || Ok(()))?;
        let cases = args.cases();
        let rows: Option<Vec<Row>> = cases.iter().zip(&series).map(row).collect();
        let rows = rows.ok_or("no runs, no figures")?;
        print(&rows, size_mib, args);
        sizes.push(json!({ "size_mib": size_mib, "rows": rows }));
    }
    write_json(args.json.as_deref(), || {
        json!({
            "machine": machine,
            "this": programs[0].path,
            "other": programs[1].path,
            "content": args.content(),
            "runs": args.runs,
            "sizes": sizes,
        })
    })
}

fn row((case, series): (&Case, &Series)) -> Option<Row> {
    Some(Row {
        pipeline: case.name(),
        sink: case.sink.name(),
        checkpoint: pair(series, |cycle| cycle.checkpoint_millis)?,
        restore: pair(series, |cycle| cycle.restore_millis)?,
    })
}

fn pair(series: &Series, millis: fn(&Cycle) -> f64) -> Option<Pair> {
    let [this, other] = &series[..] else {
        return None;
    };
    let ratios = this
        .iter()
        .zip(other)
        .map(|(this, other)| millis(other) / millis(this));
    Some(Pair {
        this_millis: Stat::of(this.iter().map(millis))?,
        other_millis: Stat::of(other.iter().map(millis))?,
        ratio: Stat::of(ratios)?,
    })
}

fn print(rows: &[Row], size_mib: u64, args: &Args) {
    let title = format!("{size_mib} MiB of {}, {} runs", args.content(), args.runs);
    let head = [
        &title,
        "checkpoint: this",
        "other",
        "other/this",
        "restore: this",
        "other",
        "other/this",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let mut line = vec![format!("{} → {}", row.pipeline, row.sink)];
        for pair in [&row.checkpoint, &row.restore] {
            let Stat {
                median, min, max, ..
            } = pair.ratio;
            line.push(pair.this_millis.text());
            line.push(pair.other_millis.text());
            line.push(format!("{median:.2} ({min:.2}–{max:.2})"));
        }
        table.push(line);
    }
    print_table(&table);
}
