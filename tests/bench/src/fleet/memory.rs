//! What is won by holding targets, and what that costs.

use std::fs;

use memcr_client::{Choice, Client, Subject};
use memcr_harness::{Context, Daemon, Result, Victim, ensure, proc};
use serde::Serialize;

use super::{Place, Plan};
use crate::args::Args;
use crate::cost::ram::Ram;
use crate::cycle::start_victim;
use crate::report::print_table;
use crate::stat::Stat;

/// Some targets held once.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// More that is available than before, KiB; less, if they cost more than they had.
    won_kib: i64,
    /// Of that: what is free, and no page cache.
    freed_kib: i64,
    /// Resident memory that the targets have lost, KiB.
    given_kib: i64,
    /// Images, KiB.
    image_kib: i64,
    /// Private memory of each session's process, and its page tables, KiB.
    pub(super) private_kib: Stat,
    page_tables_kib: Stat,
    /// The same of the daemon.
    daemon_kib: u64,
}

/// So many targets of one size, held again and again; figures per target.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    sink: &'static str,
    size_mib: u64,
    n: usize,
    /// By MemAvailable: everything is in it.
    won_kib: Stat,
    /// By MemFree: without what became page cache.
    freed_kib: Stat,
    given_kib: Stat,
    image_kib: Stat,
    /// What was given, less what was won, less the image if that is in RAM: the session,
    /// the kernel's memory for it included.
    cost_kib: Stat,
    /// As `smaps_rollup` counts it, over all processes of all runs.
    private_kib: Stat,
    page_tables_kib: Stat,
    /// Of the daemon itself, for all of them.
    daemon_kib: Stat,
}

/// Holds as many as the plan says, `args.runs` times.
pub(super) fn measure(place: &Place<'_>, plan: &Plan) -> Result<Vec<Row>> {
    let large = plan.n_held.iter().map(|n| (plan.size_mib, *n));
    let tiny = plan.n_tiny.iter().map(|n| (0, *n));
    let mut rows = Vec::new();
    for (size_mib, n) in large.chain(tiny) {
        let runs = (0..place.args.runs).map(|run| {
            let sink = place.sink.name();
            eprintln!("{sink}: {n} of {size_mib} MiB held, run {}", run + 1);
            once(place, size_mib, n)
        });
        rows.push(row(place, size_mib, n, &runs.collect::<Result<Vec<_>>>()?)?);
    }
    Ok(rows)
}

/// Holds `n` targets and lets them go.
pub(super) fn once(place: &Place<'_>, size_mib: u64, n: usize) -> Result<Held> {
    let daemon = place.daemon().start()?;
    let start = |_| start_victim(size_mib, place.args.content());
    let mut victims = (0..n).map(start).collect::<Result<Vec<_>>>()?;
    let mut client = daemon.client()?;
    // One to and fro that does not count: what is loaded once is not lost for each.
    let first = [start(0)?];
    hold(&mut client, &first)?;
    restore(&mut client, &first)?;
    drop(first);

    rustix::fs::sync();
    let before = Ram::now()?;
    hold(&mut client, &victims)?;
    // What is not written yet is not available, and would be soon.
    rustix::fs::sync();
    let after = Ram::now()?;
    let held = held(&daemon, &before, &after, n)?;

    restore(&mut client, &victims)?;
    if !place.args.no_verify {
        for victim in &mut victims {
            victim.verify()?;
        }
    }
    daemon.stop()?;
    place.rig.expect_clean()?;
    Ok(held)
}

fn hold(client: &mut Client, victims: &[Victim]) -> Result {
    for victim in victims {
        let subject = Subject::Pid(victim.pid().cast_signed());
        let held = client.checkpoint(subject, Choice::default(), None);
        held.context(format!("checkpoint {}", victim.pid()))?;
    }
    Ok(())
}

fn restore(client: &mut Client, victims: &[Victim]) -> Result {
    for victim in victims {
        let subject = Subject::Pid(victim.pid().cast_signed());
        let restored = client.restore(subject, None);
        restored.context(format!("restore {}", victim.pid()))?;
    }
    Ok(())
}

fn held(daemon: &Daemon, before: &Ram, after: &Ram, n: usize) -> Result<Held> {
    let sessions = daemon.list()?;
    let processes = daemon.children();
    ensure(sessions.len() == n && processes.len() == n, || {
        let (n_sessions, n_processes) = (sessions.len(), processes.len());
        format!("{n} targets, {n_sessions} sessions and {n_processes} processes")
    })?;
    let kib = |key: &str| {
        let all = sessions.iter().map(|it| it[key].as_i64().unwrap_or(0));
        all.sum::<i64>() / 1024
    };
    let mut image_kib = 0;
    for session in &sessions {
        let path = session["image"].as_str().unwrap_or_default();
        // What it takes, not how long it is.
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).context(path)?);
        image_kib += (blocks / 2).cast_signed();
    }
    let costs = processes.iter().map(|pid| cost_of(*pid));
    let costs = costs.collect::<Result<Vec<_>>>()?;
    let stat = |of: fn(&(u64, u64)) -> u64| {
        let stat = Stat::of(costs.iter().map(|cost| of(cost) as f64));
        stat.ok_or("no session's process")
    };
    let (private, page_tables) = cost_of(daemon.pid())?;
    Ok(Held {
        won_kib: after.available_kib - before.available_kib,
        freed_kib: after.free_kib - before.free_kib,
        given_kib: kib("rss_before_bytes") - kib("rss_held_bytes"),
        image_kib,
        private_kib: stat(|cost| cost.0)?,
        page_tables_kib: stat(|cost| cost.1)?,
        daemon_kib: private + page_tables,
    })
}

/// Memory that a process alone has, and its page tables, KiB.
fn cost_of(pid: u32) -> Result<(u64, u64)> {
    let rollup = proc::text(pid, "smaps_rollup")?;
    let status = proc::text(pid, "status")?;
    // Clean private pages are the page cache's, which has them anyway.
    Ok((
        proc::kib(&rollup, "Private_Dirty")?,
        proc::kib(&status, "VmPTE")?,
    ))
}

fn row(place: &Place<'_>, size_mib: u64, n: usize, runs: &[Held]) -> Result<Row> {
    let stat = |of: &dyn Fn(&Held) -> f64| Stat::of(runs.iter().map(of)).ok_or("no runs");
    let each = |of: &dyn Fn(&Held) -> i64| stat(&|held| of(held) as f64 / n as f64);
    let is_in_ram = place.sink == crate::case::Sink::Tmpfs;
    let cost = |held: &Held| {
        let image_kib = if is_in_ram { held.image_kib } else { 0 };
        held.given_kib - image_kib - held.won_kib
    };
    Ok(Row {
        sink: place.sink.name(),
        size_mib,
        n,
        won_kib: each(&|held| held.won_kib)?,
        freed_kib: each(&|held| held.freed_kib)?,
        given_kib: each(&|held| held.given_kib)?,
        image_kib: each(&|held| held.image_kib)?,
        cost_kib: each(&cost)?,
        private_kib: over_all(runs, |held| held.private_kib)?,
        page_tables_kib: over_all(runs, |held| held.page_tables_kib)?,
        daemon_kib: stat(&|held| held.daemon_kib as f64)?,
    })
}

/// The median of medians, and the extremes of all.
fn over_all(runs: &[Held], of: fn(&Held) -> Stat) -> Result<Stat> {
    let stats: Vec<Stat> = runs.iter().map(of).collect();
    let all = |of: fn(&Stat) -> f64| Stat::of(stats.iter().map(of)).ok_or("no runs");
    Ok(Stat {
        median: all(|stat| stat.median)?.median,
        min: all(|stat| stat.min)?.min,
        max: all(|stat| stat.max)?.max,
        n: stats.iter().map(|stat| stat.n).sum(),
    })
}

pub(super) fn print(rows: &[Row], args: &Args) {
    let title = format!("KiB per target, {}, {} runs", args.content(), args.runs);
    let head = [
        &title,
        "won (available)",
        "won (free)",
        "given by the target",
        "image",
        "session, by difference",
        "its private memory",
        "page tables",
        "daemon, in all",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let size = match row.size_mib {
            0 => "next to nothing".into(),
            mib => format!("{mib} MiB"),
        };
        let mut line = vec![format!("{} of {size} → {}", row.n, row.sink)];
        let stats = [
            row.won_kib,
            row.freed_kib,
            row.given_kib,
            row.image_kib,
            row.cost_kib,
            row.private_kib,
            row.page_tables_kib,
            row.daemon_kib,
        ];
        line.extend(stats.iter().map(text));
        table.push(line);
    }
    print_table(&table);
}

/// Parts of a KiB mean nothing here.
fn text(stat: &Stat) -> String {
    let Stat {
        median, min, max, ..
    } = stat;
    format!("{median:.0} ({min:.0} … {max:.0})")
}
