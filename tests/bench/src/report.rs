//! Tables for people.

use crate::args::Args;
use crate::cost;
use crate::figures::{Figures, Leg};
use crate::limits::Step;
use crate::stat::mib;

/// Prints the limits, the cases and their phases at one size.
pub(crate) fn print(figures: &Figures, args: &Args) {
    let mut limits = vec![columns([
        "limit, ms per GiB",
        "one thread",
        &format!("{} threads", args.n_threads()),
    ])];
    for (step, what, _) in Step::ALL {
        if let Some(limit) = figures.limits.get(&step) {
            limits.push(columns([
                what,
                &limit.one_thread.text(),
                &limit.all_threads.text(),
            ]));
        }
    }
    print_table(&limits);

    let title = format!(
        "{} MiB of {}, {} runs",
        figures.size_mib,
        args.content(),
        args.runs
    );
    let mut cases = vec![columns([
        &title,
        "checkpoint ms",
        "MiB/s",
        "limit",
        "of it",
        "restore ms",
        "MiB/s",
        "limit",
        "of it",
        "exit ms",
        "image MiB",
        "peak RSS MiB",
    ])];
    for row in &figures.rows {
        let mut line = vec![format!("{} → {}", row.pipeline, row.sink)];
        line.extend(leg(&row.checkpoint));
        line.extend(leg(&row.restore));
        line.push(format!("{:.0}", row.exit_millis.median));
        line.push(format!("{:.0}", mib(row.volumes.image_bytes)));
        line.push(format!("{:.1}", row.peak_rss_mib.max));
        cases.push(line);
    }
    print_table(&cases);
    cost::print(figures);
    print_phases(figures);
}

fn leg(leg: &Leg) -> [String; 4] {
    let bound = leg.bound.as_ref();
    [
        leg.millis.text(),
        format!("{:.0}", leg.mib_per_s),
        bound.map_or("?".into(), |bound| format!("{:.0}", bound.millis)),
        leg.of_bound
            .map_or("?".into(), |of| format!("{:.0} %", of * 100.0)),
    ]
}

fn print_phases(figures: &Figures) {
    println!("phases as memcr tells them, ms:");
    for row in &figures.rows {
        println!(
            "  {} → {}: frozen {}",
            row.pipeline,
            row.sink,
            row.frozen_millis.text()
        );
        for phases in [&row.checkpoint_phases, &row.restore_phases] {
            let words = phases
                .iter()
                .map(|(name, millis)| format!("{name} {millis:.1}"));
            println!("    {}", words.collect::<Vec<_>>().join(", "));
        }
        let stolen = [row.checkpoint.stolen_millis, row.restore.stolen_millis];
        if stolen != [0.0; 2] {
            let [out, back] = stolen;
            println!("    stolen of every CPU: {out:.1} out, {back:.1} back");
        }
    }
    println!();
}

fn columns<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// Prints rows of equal length, the first column to the left, the others to the right.
pub(crate) fn print_table(rows: &[Vec<String>]) {
    let n_columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max();
    let widths: Vec<usize> = (0..n_columns).map(|i| width(i).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (cell, width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("{}", cells.collect::<Vec<_>>().join("  "));
    }
    println!();
}
