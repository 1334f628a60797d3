//! What a byte costs: checkpoint and restore over the pages taken.

use memcr_harness::Result;
use serde::Serialize;

use super::series::Series;
use crate::args::Args;
use crate::bound::Volumes;
use crate::cycle::Cycle;
use crate::figures::phases;
use crate::report::print_table;
use crate::stat::{Stat, gib, mib};

/// One shape in one case.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pipeline: String,
    sink: &'static str,
    shape: String,
    /// Pages of the target that were taken, those of zeros too.
    taken_mib: f64,
    checkpoint: Leg,
    restore: Leg,
    peak_rss_mib: Stat,
}

/// A checkpoint or a restore, from outside.
#[derive(Debug, Serialize)]
struct Leg {
    millis: Stat,
    millis_per_gib: Stat,
    /// To the reference of the same round.
    ratio: Stat,
    /// Medians of the phases that memcr reports, ms, in their order.
    phases: Vec<(String, f64)>,
}

/// The rows of a series, the reference first.
///
/// # Errors
/// When a report lacks something.
pub(super) fn rows(series: &Series) -> Result<Vec<Row>> {
    series
        .shapes
        .iter()
        .map(|(shape, cycles)| {
            let first = cycles.first().ok_or("no cycle")?;
            let rss = cycles.iter().map(|cycle| mib(cycle.peak_rss_kib << 10));
            Ok(Row {
                pipeline: series.case.name(),
                sink: series.case.sink.name(),
                shape: shape.name.clone(),
                taken_mib: mib(taken_bytes(first)?),
                checkpoint: leg(series, cycles, "checkpoint", |cycle| {
                    cycle.checkpoint_millis
                })?,
                restore: leg(series, cycles, "restore", |cycle| cycle.restore_millis)?,
                peak_rss_mib: Stat::of(rss).ok_or("no cycle")?,
            })
        })
        .collect()
}

fn leg(series: &Series, cycles: &[Cycle], name: &str, millis: fn(&Cycle) -> f64) -> Result<Leg> {
    let per_gib =
        |cycle: &Cycle| Ok::<_, memcr_harness::Trouble>(millis(cycle) / gib(taken_bytes(cycle)?));
    let (mut costs, mut ratios) = (Vec::new(), Vec::new());
    for (cycle, reference) in series.beside_reference(cycles) {
        let cost = per_gib(cycle)?;
        costs.push(cost);
        ratios.push(cost / per_gib(reference)?);
    }
    Ok(Leg {
        millis: Stat::of(cycles.iter().map(millis)).ok_or("no cycle")?,
        millis_per_gib: Stat::of(costs).ok_or("no cycle")?,
        ratio: Stat::of(ratios).ok_or("no cycle")?,
        phases: phases(cycles, name)?,
    })
}

fn taken_bytes(cycle: &Cycle) -> Result<u64> {
    let volumes = Volumes::of(&cycle.report)?;
    Ok(volumes.raw_bytes + volumes.zero_bytes)
}

/// Prints a table, and where the time went.
pub(super) fn print(title: &str, rows: &[Row], args: &Args) {
    let title = format!("{title}, {} runs", args.runs);
    let columns = [
        &*title,
        "MiB taken",
        "checkpoint ms",
        "ms per GiB",
        "to the first",
        "restore ms",
        "ms per GiB",
        "to the first",
        "peak RSS MiB",
    ];
    let mut table = vec![columns.map(str::to_owned).to_vec()];
    for row in rows {
        let mut line = vec![
            format!("{} → {}: {}", row.pipeline, row.sink, row.shape),
            format!("{:.1}", row.taken_mib),
        ];
        for leg in [&row.checkpoint, &row.restore] {
            line.extend([
                leg.millis.text(),
                leg.millis_per_gib.text(),
                times(&leg.ratio),
            ]);
        }
        line.push(format!("{:.1}", row.peak_rss_mib.max));
        table.push(line);
    }
    print_table(&table);
    println!("phases as memcr tells them, ms:");
    for row in rows {
        println!("  {} → {}: {}", row.pipeline, row.sink, row.shape);
        for leg in [&row.checkpoint, &row.restore] {
            let phases = leg.phases.iter();
            let words = phases.map(|(name, millis)| format!("{name} {millis:.1}"));
            println!("    {}", words.collect::<Vec<_>>().join(", "));
        }
    }
    println!();
}

/// A ratio, `median (min–max)`.
fn times(ratio: &Stat) -> String {
    let Stat {
        median, min, max, ..
    } = ratio;
    format!("{median:.2} ({min:.2}–{max:.2})")
}
