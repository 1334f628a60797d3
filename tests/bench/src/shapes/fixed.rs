//! Frozen time apart from moving bytes; the head of the room has the definition.

use memcr_harness::{Result, Trouble};
use serde::Serialize;
use serde_json::Value;

use super::series::Series;
use crate::args::Args;
use crate::bound::Volumes;
use crate::cycle::Cycle;
use crate::figures::phases;
use crate::report::print_table;
use crate::stat::{Stat, mib};

/// One shape in one case.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pipeline: String,
    sink: &'static str,
    shape: String,
    /// Pages of the target that were taken, those of zeros too.
    taken_mib: f64,
    n_threads: u64,
    n_vmas: u64,
    checkpoint: Leg,
    restore: Leg,
}

/// A checkpoint or a restore.
#[derive(Debug, Serialize)]
struct Leg {
    /// How long the target stood still.
    frozen_millis: Stat,
    fixed_millis: Stat,
    /// Medians of the phases that memcr reports, ms, in their order.
    phases: Vec<(String, f64)>,
}

/// Which phases of a checkpoint or restore count for what.
struct Split {
    leg: &'static str,
    /// The target stands still from the beginning of the first to the end of the last.
    frozen: (&'static str, &'static str),
    /// Those that move no bytes.
    own: [&'static str; 2],
}

const CHECKPOINT: Split = Split {
    leg: "checkpoint",
    frozen: ("freeze", "drop"),
    own: ["freeze", "map"],
};
const RESTORE: Split = Split {
    leg: "restore",
    frozen: ("open image", "release"),
    own: ["open image", "release"],
};

/// The rows of a series.
///
/// # Errors
/// When a report lacks something.
pub(super) fn rows(series: &Series) -> Result<Vec<Row>> {
    let rows = series.shapes.iter().map(|(shape, cycles)| {
        let first = cycles.first().ok_or("no cycle")?;
        let volumes = Volumes::of(&first.report)?;
        Ok(Row {
            pipeline: series.case.name(),
            sink: series.case.sink.name(),
            shape: shape.name.clone(),
            taken_mib: mib(volumes.raw_bytes + volumes.zero_bytes),
            n_threads: number(&first.report, "n_threads")?,
            n_vmas: number(&first.report, "n_vmas")?,
            checkpoint: leg(series, cycles, &CHECKPOINT)?,
            restore: leg(series, cycles, &RESTORE)?,
        })
    });
    rows.collect()
}

fn number(report: &Value, key: &str) -> Result<u64> {
    let number = report["checkpoint"][key].as_u64();
    number.ok_or_else(|| lacks(key))
}

fn leg(series: &Series, cycles: &[Cycle], split: &Split) -> Result<Leg> {
    let (mut frozen, mut fixed) = (Vec::new(), Vec::new());
    for (cycle, reference) in series.beside_reference(cycles) {
        let (here, there) = (split.times(&cycle.report)?, split.times(&reference.report)?);
        frozen.push(here.frozen);
        fixed.push(here.frozen - there.frozen + there.own);
    }
    Ok(Leg {
        frozen_millis: Stat::of(frozen).ok_or("no cycle")?,
        fixed_millis: Stat::of(fixed).ok_or("no cycle")?,
        phases: phases(cycles, split.leg)?,
    })
}

/// Of one checkpoint or restore, ms.
#[derive(Debug, PartialEq)]
struct Times {
    frozen: f64,
    own: f64,
}

impl Split {
    fn times(&self, report: &Value) -> Result<Times> {
        let list = report[self.leg]["phases"].as_array();
        let list = list.ok_or_else(|| lacks(self.leg))?;
        let place = |name: &str| {
            let found = list.iter().position(|phase| phase["name"] == name);
            found.ok_or_else(|| lacks(name))
        };
        let millis = |phase: &Value| phase["millis"].as_f64().unwrap_or_default();
        let (from, to) = self.frozen;
        let frozen = list[place(from)?..=place(to)?].iter().map(millis).sum();
        let mut own = 0.0;
        for name in self.own {
            own += millis(&list[place(name)?]);
        }
        Ok(Times { frozen, own })
    }
}

fn lacks(what: &str) -> Trouble {
    Trouble::Failed(format!("no `{what}` in the report"))
}

/// Prints a table of checkpoints and one of restores.
pub(super) fn print(rows: &[Row], args: &Args) {
    print_leg("checkpoint", rows, |row| &row.checkpoint, args);
    print_leg("restore", rows, |row| &row.restore, args);
}

fn print_leg(name: &str, rows: &[Row], leg: fn(&Row) -> &Leg, args: &Args) {
    let mut head = vec![format!("{name}, ms, {} runs", args.runs)];
    head.extend(["MiB taken", "threads", "mappings", "frozen", "fixed"].map(str::to_owned));
    // None of the shapes has huge pages, so all have the same phases.
    let phases = rows.first().map(|row| &leg(row).phases[..]);
    head.extend(
        phases
            .unwrap_or_default()
            .iter()
            .map(|(name, _)| name.clone()),
    );
    let mut table = vec![head];
    for row in rows {
        let leg = leg(row);
        let mut line = vec![
            format!("{} → {}: {}", row.pipeline, row.sink, row.shape),
            format!("{:.1}", row.taken_mib),
            row.n_threads.to_string(),
            row.n_vmas.to_string(),
            leg.frozen_millis.text(),
            leg.fixed_millis.text(),
        ];
        line.extend(leg.phases.iter().map(|(_, millis)| format!("{millis:.1}")));
        // What is missing was in no report.
        line.resize(table[0].len(), String::new());
        table.push(line);
    }
    print_table(&table);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{CHECKPOINT, RESTORE, Times};
    use serde_json::json;

    #[test]
    fn phases_are_summed() {
        let phase = |name: &str, millis: f64| json!({ "name": name, "millis": millis });
        let report = json!({
            "checkpoint": { "phases": [
                phase("prepare", 100.0), phase("freeze", 1.0), phase("map", 2.0),
                phase("scan and store", 30.0), phase("commit", 4.0), phase("drop", 5.0),
            ]},
            "restore": { "phases": [
                phase("open image", 1.0), phase("populate", 20.0), phase("release", 2.0),
                phase("remove image", 100.0),
            ]},
        });
        let times = |frozen, own| Times { frozen, own };
        assert_eq!(CHECKPOINT.times(&report).unwrap(), times(42.0, 3.0));
        assert_eq!(RESTORE.times(&report).unwrap(), times(23.0, 3.0));
        assert!(RESTORE.times(&json!({})).is_err());
    }
}
