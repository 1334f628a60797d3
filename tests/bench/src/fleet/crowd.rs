//! Many targets at once through one daemon, against one at a time.
//!
//! ```text
//!   one at a time   client 1: ▓▓▓ client 2: ▓▓▓ …          the sum, from the first request
//!   at once         client 1: ▓▓▓▓▓▓▓                      from the first request
//!                   client 2: ▓▓▓▓▓▓▓▓▓                    to the last answer
//!                   …
//! ```
//!
//! The daemon lets as many checkpoints move bytes at once as there are CPUs, and the others
//! wait. At once is to cost no more for each byte than one at a time: a ratio above 1 would
//! mean that they are in each other's way, one below 1 that some filled what others left
//! idle. Both are measured on the same targets in each run, right after one another, and
//! the first one changes from run to run.

use std::time::Instant;

use memcr_client::{Choice, Client, ClientError, Subject};
use memcr_harness::{Context, Result, Victim};
use serde::Serialize;

use super::Place;
use crate::args::Args;
use crate::cycle::start_victim;
use crate::report::print_table;
use crate::stat::{Stat, millis};
use crate::team;
use crate::warm::warm;

/// So many targets, checkpointed and restored.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    sink: &'static str,
    size_mib: u64,
    n: usize,
    checkpoint: Pair,
    restore: Pair,
}

/// Milliseconds for each MiB of all targets.
#[derive(Debug, Serialize)]
struct Pair {
    one_at_a_time: Stat,
    at_once: Stat,
    /// At once over one at a time, run by run.
    ratio: Stat,
}

/// Milliseconds for all of them.
#[derive(Debug, Clone, Copy)]
struct Took {
    checkpoint: f64,
    restore: f64,
}

/// One run: one at a time, and at once.
struct Run {
    one_at_a_time: Took,
    at_once: Took,
}

/// What each client asks for.
type Ask = fn(&mut Client, Subject) -> std::result::Result<(), ClientError>;

/// Checkpoints and restores `n` targets of `size_mib`, `n_runs` times.
pub(super) fn measure(place: &Place<'_>, size_mib: u64, n: usize, n_runs: u32) -> Result<Row> {
    let daemon = place.daemon().start()?;
    let start = |_| start_victim(size_mib, place.args.content());
    let mut victims = (0..n).map(start).collect::<Result<Vec<_>>>()?;
    let clients = (0..n).map(|_| daemon.client());
    let mut crowd = Crowd {
        clients: clients.collect::<Result<_>>()?,
        subjects: victims.iter().map(subject).collect(),
        len_bytes: (size_mib << 20) as usize * n,
    };
    // One to and fro that does not count: what is loaded once is not lost for each.
    crowd.in_turn(checkpoint)?;
    crowd.in_turn(restore)?;
    let runs = (0..n_runs).map(|run| {
        eprintln!("{}: {n} at once, run {}", place.sink.name(), run + 1);
        crowd.run(run % 2 == 1)
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    if !place.args.no_verify {
        for victim in &mut victims {
            victim.verify()?;
        }
    }
    daemon.stop()?;
    place.rig.expect_clean()?;
    let of_all = (size_mib.max(1) * n as u64) as f64;
    let pair = |of: fn(Took) -> f64| pair(&runs, of, of_all).ok_or("no runs");
    Ok(Row {
        sink: place.sink.name(),
        size_mib,
        n,
        checkpoint: pair(|took| took.checkpoint)?,
        restore: pair(|took| took.restore)?,
    })
}

fn subject(victim: &Victim) -> Subject {
    Subject::Pid(victim.pid().cast_signed())
}

fn checkpoint(client: &mut Client, subject: Subject) -> std::result::Result<(), ClientError> {
    client
        .checkpoint(subject, Choice::default(), None)
        .map(drop)
}

fn restore(client: &mut Client, subject: Subject) -> std::result::Result<(), ClientError> {
    client.restore(subject, None).map(drop)
}

/// A client for each target.
struct Crowd {
    clients: Vec<Client>,
    subjects: Vec<Subject>,
    len_bytes: usize,
}

impl Crowd {
    fn run(&mut self, at_once_first: bool) -> Result<Run> {
        let early = at_once_first.then(|| self.there_and_back(Self::together));
        let early = early.transpose()?;
        let one_at_a_time = self.there_and_back(Self::in_turn)?;
        let at_once = match early {
            Some(took) => took,
            None => self.there_and_back(Self::together)?,
        };
        Ok(Run {
            one_at_a_time,
            at_once,
        })
    }

    fn there_and_back(&mut self, go: fn(&mut Self, Ask) -> Result<f64>) -> Result<Took> {
        // The images.
        warm(self.len_bytes)?;
        let checkpoint = go(self, checkpoint)?;
        // The pages of the targets.
        warm(self.len_bytes)?;
        let restore = go(self, restore)?;
        Ok(Took {
            checkpoint,
            restore,
        })
    }

    /// One after the other; answers the ms from the first request to the last answer.
    fn in_turn(&mut self, ask: Ask) -> Result<f64> {
        let begin = Instant::now();
        for (client, subject) in self.clients.iter_mut().zip(&self.subjects) {
            ask(client, subject.clone()).context(format!("{subject:?}"))?;
        }
        Ok(millis(begin.elapsed()))
    }

    /// All at once; answers the ms from the first request to the last answer.
    fn together(&mut self, ask: Ask) -> Result<f64> {
        let shares = self.clients.iter_mut().zip(&self.subjects).collect();
        team::timed(shares, |(client, subject): (&mut Client, &Subject)| {
            ask(client, subject.clone()).context(format!("{subject:?}"))
        })
    }
}

fn pair(runs: &[Run], of: fn(Took) -> f64, of_all_mib: f64) -> Option<Pair> {
    let each = |took: fn(&Run) -> Took| Stat::of(runs.iter().map(|run| of(took(run)) / of_all_mib));
    Some(Pair {
        one_at_a_time: each(|run| run.one_at_a_time)?,
        at_once: each(|run| run.at_once)?,
        ratio: Stat::of(
            runs.iter()
                .map(|run| of(run.at_once) / of(run.one_at_a_time)),
        )?,
    })
}

pub(super) fn print(rows: &[Row], args: &Args) {
    let title = format!("ms per MiB, {}, {} runs", args.content(), args.runs);
    let head = [
        &title,
        "checkpoint: one at a time",
        "at once",
        "ratio",
        "restore: one at a time",
        "at once",
        "ratio",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let mut line = vec![format!("{} of {} MiB → {}", row.n, row.size_mib, row.sink)];
        for pair in [&row.checkpoint, &row.restore] {
            line.extend([&pair.one_at_a_time, &pair.at_once, &pair.ratio].map(text));
        }
        table.push(line);
    }
    print_table(&table);
}

/// Hundredths count here.
fn text(stat: &Stat) -> String {
    let Stat {
        median, min, max, ..
    } = stat;
    format!("{median:.2} ({min:.2}–{max:.2})")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Run, Took, pair};

    #[test]
    fn ratios_are_of_runs() {
        let took = |checkpoint| Took {
            checkpoint,
            restore: 1.0,
        };
        let run = |one, many| Run {
            one_at_a_time: took(one),
            at_once: took(many),
        };
        let runs = [run(100.0, 50.0), run(200.0, 100.0), run(100.0, 200.0)];
        let pair = pair(&runs, |took| took.checkpoint, 10.0).unwrap();
        assert_eq!(
            (pair.one_at_a_time.median, pair.at_once.median),
            (10.0, 10.0)
        );
        assert_eq!((pair.ratio.median, pair.ratio.max), (0.5, 2.0));
    }
}
