//! The figures: memcr beside the limits, at each size.

use std::collections::BTreeMap;
use std::path::Path;

use memcr_harness::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Args;
use crate::bound::{Bound, Volumes};
use crate::case::Case;
use crate::cost;
use crate::cycle::{Cycle, Program};
use crate::lab::Lab;
use crate::limits::{Limits, Step};
use crate::machine::Machine;
use crate::stat::{Stat, mib};
use crate::{report, rounds};

/// Memory on which limits are measured, MiB: far beyond the caches, and done in seconds.
const LAB_MIB: u64 = 128;

/// Checkpoint or restore of one case.
#[derive(Debug, Serialize)]
pub(crate) struct Leg {
    pub(crate) millis: Stat,
    /// Memory of the target over the median.
    pub(crate) mib_per_s: f64,
    /// Absent when a limit is not known.
    pub(crate) bound: Option<Bound>,
    /// The bound over the time, run by run, with what was stolen in that run; the median: 1 is as
    /// fast as the machine.
    pub(crate) of_bound: Option<f64>,
    /// What every CPU lost to the host meanwhile, in the mean of all runs.
    pub(crate) stolen_millis: f64,
}

/// Everything about one case at one size.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) pipeline: String,
    pub(crate) sink: &'static str,
    pub(crate) volumes: Volumes,
    pub(crate) checkpoint: Leg,
    pub(crate) restore: Leg,
    /// From Enter until memcr had exited.
    pub(crate) exit_millis: Stat,
    /// How long the target stood still until it was held, as memcr tells it.
    pub(crate) frozen_millis: Stat,
    pub(crate) peak_rss_mib: Stat,
    pub(crate) cost: cost::Row,
    /// Medians of the phases that memcr reports, ms, in their order.
    pub(crate) checkpoint_phases: Vec<(String, f64)>,
    pub(crate) restore_phases: Vec<(String, f64)>,
}

/// Everything at one size.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) content: String,
    pub(crate) size_mib: u64,
    /// ms/GiB.
    pub(crate) limits: BTreeMap<Step, Limit>,
    pub(crate) rows: Vec<Row>,
}

/// One limit, ms/GiB.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    pub(crate) one_thread: Stat,
    pub(crate) all_threads: Stat,
}

/// Measures, prints a table per size, and writes everything to a file if asked to.
///
/// # Errors
/// When anything fails: figures of a part would be taken for those of the whole.
pub(crate) fn run(args: &Args) -> Result {
    let program = Program::find(args.memcr.as_deref())?;
    let machine = Machine::here();
    println!("{}: {machine}", program.version());
    let programs = [program];
    rounds::try_all(&programs, args)?;
    let mut sizes = Vec::new();
    for args in &args.by_content() {
        for &size_mib in &args.sizes {
            let figures = at_size(&programs, size_mib, args)?;
            report::print(&figures, args);
            sizes.push(figures);
        }
    }
    let [program] = programs;
    write_json(args.json.as_deref(), || {
        json!({
            "memcr": program.version(),
            "machine": machine,
            "mhz": cost::mhz(),
            "n_threads": args.n_threads(),
            "runs": args.runs,
            "sizes": sizes,
        })
    })
}

/// Writes `value` to the file that the user named, if any.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_json(path: Option<&Path>, value: impl FnOnce() -> Value) -> Result {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(&value()).context("the figures as JSON")?;
    std::fs::write(path, text + "\n").context(path.display())
}

fn at_size(programs: &[Program], size_mib: u64, args: &Args) -> Result<Figures> {
    let lab = Lab::open(LAB_MIB, args)?;
    let mut limits = Limits::new(args.n_threads());
    let series = rounds::run(programs, size_mib, args, || limits.measure(&lab))?;
    for (step, why) in &limits.lacking {
        eprintln!("no limit for {step:?}: {why}");
    }
    let cases = args.cases();
    let rows = cases
        .iter()
        .zip(&series)
        .map(|(case, series)| row(case, &series[0], size_mib, &limits))
        .collect::<Result<_>>()?;
    Ok(Figures {
        content: args.content().to_owned(),
        size_mib,
        limits: by_step(&limits),
        rows,
    })
}

fn by_step(limits: &Limits) -> BTreeMap<Step, Limit> {
    let steps = Step::ALL.iter().filter_map(|&(step, ..)| {
        let (one_thread, all_threads) = (limits.one(step)?, limits.all(step)?);
        Some((
            step,
            Limit {
                one_thread,
                all_threads,
            },
        ))
    });
    steps.collect()
}

fn row(case: &Case, cycles: &[Cycle], size_mib: u64, limits: &Limits) -> Result<Row> {
    let first = cycles.first().ok_or("no cycle")?;
    let volumes = Volumes::of(&first.report).context(rounds::named(case))?;
    let stat = |value: fn(&Cycle) -> f64| {
        let stat = Stat::of(cycles.iter().map(value));
        stat.ok_or("no cycle")
    };
    let leg = |which: usize, millis: fn(&Cycle) -> f64, bound: Option<Bound>| -> Result<Leg> {
        let of_bound = bound.as_ref().and_then(|bound| {
            let of = |cycle| bound.with_stolen(Cycle::stolen(cycle, which)) / millis(cycle);
            Stat::of(cycles.iter().map(of))
        });
        // The clock of it is coarse.
        let stolen: f64 = cycles.iter().map(|cycle| cycle.stolen(which)).sum();
        let millis = stat(millis)?;
        Ok(Leg {
            millis,
            mib_per_s: size_mib as f64 / millis.median * 1e3,
            of_bound: of_bound.map(|stat| stat.median),
            stolen_millis: stolen / cycles.len() as f64,
            bound,
        })
    };
    let frozen = cycles.iter().map(|cycle| {
        let millis = cycle.report["checkpoint"]["frozen_millis"].as_f64();
        millis.ok_or("no checkpoint.frozen_millis in the report")
    });
    let frozen = frozen.collect::<std::result::Result<Vec<f64>, _>>()?;
    Ok(Row {
        pipeline: case.name(),
        sink: case.sink.name(),
        volumes,
        checkpoint: leg(
            0,
            |cycle| cycle.checkpoint_millis,
            Bound::of_checkpoint(case, volumes, limits),
        )?,
        restore: leg(
            1,
            |cycle| cycle.restore_millis,
            Bound::of_restore(case, volumes, limits),
        )?,
        exit_millis: stat(|cycle| cycle.exit_millis)?,
        frozen_millis: Stat::of(frozen).ok_or("no cycle")?,
        peak_rss_mib: stat(|cycle| mib(cycle.peak_rss_kib << 10))?,
        cost: cost::Row::of(cycles, case.sink, volumes).ok_or("no cycle")?,
        checkpoint_phases: phases(cycles, "checkpoint")?,
        restore_phases: phases(cycles, "restore")?,
    })
}

/// The median of each phase of a checkpoint or restore, ms, in their order.
///
/// # Errors
/// When a report has none, or others than the first one.
pub(crate) fn phases(cycles: &[Cycle], of: &str) -> Result<Vec<(String, f64)>> {
    // Every run has the same phases, in the same order.
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for cycle in cycles {
        let list = cycle.report[of]["phases"].as_array();
        let list = list.ok_or_else(|| format!("no {of}.phases in the report"))?;
        for (i, phase) in list.iter().enumerate() {
            let name = phase["name"].as_str().unwrap_or_default();
            let millis = phase["millis"].as_f64().unwrap_or_default();
            if phases.len() == i {
                phases.push((name.to_owned(), Vec::new()));
            }
            ensure(phases[i].0 == name, || {
                format!("phase {i} of a {of} is `{}` and `{name}`", phases[i].0)
            })?;
            phases[i].1.push(millis);
        }
    }
    let median = |values: Vec<f64>| Stat::of(values).map_or(0.0, |stat| stat.median);
    Ok(phases
        .into_iter()
        .map(|(name, values)| (name, median(values)))
        .collect())
}
