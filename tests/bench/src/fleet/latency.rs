//! How long a client waits for its target, while nobody else wants anything, and while
//! others have checkpoints made all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use memcr_client::{Choice, Client, ClientError, Subject};
use memcr_harness::wait::until;
use memcr_harness::{Context, Daemon, Result, Victim, ensure};
use serde::Serialize;

use super::{Place, Plan};
use crate::args::Args;
use crate::cycle::start_victim;
use crate::report::print_table;
use crate::stat::{Stat, millis};
use crate::warm::warm;

/// Checkpoints of others that are queued or under way whenever a restore is asked for.
const N_QUEUED: u64 = 4;
/// How many others it takes: each has its own target restored in between.
const N_OTHERS: usize = 8;

/// Restores through a daemon.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    sink: &'static str,
    under_load: bool,
    /// From the request until the target ran, as it says itself, ms.
    runs: Spread,
    /// From the request until the answer, ms.
    answered: Spread,
    /// Checkpoints of others that were queued or under way at the request.
    queued: Stat,
}

/// Many times the same.
#[derive(Debug, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    min: f64,
    max: f64,
    n: usize,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Result<Self> {
        values.sort_by(f64::total_cmp);
        // The least one that so many of a hundred do not exceed.
        let rank = |percent: usize| (values.len() * percent).div_ceil(100).max(1) - 1;
        let at = |percent| values.get(rank(percent)).copied().ok_or("no samples");
        Ok(Self {
            p50: at(50)?,
            p99: at(99)?,
            min: at(0)?,
            max: at(100)?,
            n: values.len(),
        })
    }

    fn texts(&self) -> [String; 3] {
        let Self { p50, p99, max, .. } = self;
        [p50, p99, max].map(|value| format!("{value:.1}"))
    }
}

/// Restores one target as often as the plan says, idle and under load.
pub(super) fn measure(place: &Place<'_>, plan: &Plan) -> Result<[Row; 2]> {
    let daemon = place.daemon().start()?;
    eprintln!("{}: {} restores", place.sink.name(), plan.n_samples);
    let idle = samples(place, plan, &daemon, false)?;
    let is_over = AtomicBool::new(false);
    let clients = (0..N_OTHERS).map(|_| daemon.client());
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let loaded = std::thread::scope(|scope| {
        let others: Vec<_> = clients
            .into_iter()
            .map(|client| scope.spawn(|| other(place, plan, client, &is_over)))
            .collect();
        eprintln!(
            "{}: {} restores under load",
            place.sink.name(),
            plan.n_samples
        );
        let loaded = samples(place, plan, &daemon, true);
        is_over.store(true, Ordering::Release);
        for other in others {
            let joined = other.join();
            joined.unwrap_or_else(|_| Err("another client has panicked".into()))?;
        }
        loaded
    })?;
    daemon.stop()?;
    place.rig.expect_clean()?;
    Ok([idle, loaded])
}

/// Has its own target checkpointed and restored until it is over.
fn other(place: &Place<'_>, plan: &Plan, mut client: Client, is_over: &AtomicBool) -> Result {
    let mut victim = start_victim(plan.size_mib, place.args.content())?;
    let subject = Subject::Pid(victim.pid().cast_signed());
    while !is_over.load(Ordering::Acquire) {
        checkpoint(&mut client, &subject)?;
        let restored = client.restore(subject.clone(), None);
        restored.context("restore another target")?;
    }
    verify(place, &mut victim)
}

fn samples(place: &Place<'_>, plan: &Plan, daemon: &Daemon, under_load: bool) -> Result<Row> {
    let mut victim = start_victim(plan.size_mib, place.args.content())?;
    let mut client = daemon.client()?;
    let (mut runs, mut answered, mut queued) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.n_samples {
        let subject = Subject::Pid(victim.pid().cast_signed());
        checkpoint(&mut client, &subject)?;
        // The pages of the target.
        warm((plan.size_mib << 20) as usize)?;
        // Any question will do; this one is answered without touching the memory.
        victim.tell("where")?;
        if under_load {
            queued.push(await_load(&mut client)?);
        }
        let sample = sample(&mut client, &mut victim)?;
        runs.push(sample.0);
        answered.push(sample.1);
    }
    verify(place, &mut victim)?;
    Ok(Row {
        sink: place.sink.name(),
        under_load,
        runs: Spread::of(runs)?,
        answered: Spread::of(answered)?,
        queued: Stat::of(queued).unwrap_or(Stat {
            median: 0.0,
            min: 0.0,
            max: 0.0,
            n: 0,
        }),
    })
}

/// Milliseconds until the target runs, and until the client knows.
fn sample(client: &mut Client, victim: &mut Victim) -> Result<(f64, f64)> {
    let subject = Subject::Pid(victim.pid().cast_signed());
    std::thread::scope(|scope| {
        let asked = scope.spawn(move || {
            let begin = Instant::now();
            let answer = client.restore(subject, None);
            (begin, begin.elapsed(), answer)
        });
        victim.answer()?;
        let runs = Instant::now();
        let (begin, took, answer) = asked.join().map_err(|_| "the client has panicked")?;
        let answer = answer.context("restore")?;
        ensure(
            answer
                .object
                .get("outcome")
                .is_some_and(|it| it == "restored"),
            || format!("a restore that was none: {:?}", answer.object),
        )?;
        Ok((millis(runs.duration_since(begin)), millis(took)))
    })
}

fn checkpoint(client: &mut Client, subject: &Subject) -> Result {
    let held = client.checkpoint(subject.clone(), Choice::default(), None);
    held.context(format!("checkpoint {subject:?}")).map(drop)
}

/// Waits until others have enough checkpoints queued or under way; answers how many.
fn await_load(client: &mut Client) -> Result<f64> {
    let mut n = Ok(0);
    until("others to want checkpoints", || {
        n = n_checkpoints(client);
        !matches!(n, Ok(0..N_QUEUED))
    })?;
    Ok(n.context("the state of the daemon")? as f64)
}

fn n_checkpoints(client: &mut Client) -> std::result::Result<u64, ClientError> {
    let answer = client.status(None)?;
    let sessions = answer.object.get("sessions");
    let n = |state: &str| sessions.and_then(|it| it[state].as_u64()).unwrap_or(0);
    Ok(n("queued") + n("storing"))
}

fn verify(place: &Place<'_>, victim: &mut Victim) -> Result {
    if place.args.no_verify {
        return Ok(());
    }
    victim.verify().map(drop)
}

pub(super) fn print(rows: &[Row], plan: &Plan, args: &Args) {
    let title = format!(
        "restore of {} MiB of {} through the daemon, {} samples, ms",
        plan.size_mib,
        args.content(),
        plan.n_samples
    );
    let head = [
        &title,
        "runs: p50",
        "p99",
        "max",
        "answered: p50",
        "p99",
        "max",
        "others' checkpoints",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let load = if row.under_load { "under load" } else { "idle" };
        let mut line = vec![format!("{load} → {}", row.sink)];
        line.extend(row.runs.texts());
        line.extend(row.answered.texts());
        line.push(row.queued.text());
        table.push(line);
    }
    print_table(&table);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Spread;

    #[test]
    fn ranks_are_samples() {
        let of = |n: u32| Spread::of((1..=n).rev().map(f64::from).collect()).unwrap();
        let spread = of(200);
        assert_eq!((spread.p50, spread.p99), (100.0, 198.0));
        assert_eq!((spread.min, spread.max, spread.n), (1.0, 200.0, 200));
        // Of few, the longest is the 99th of a hundred too.
        assert_eq!((of(10).p50, of(10).p99), (5.0, 10.0));
        assert!(Spread::of(Vec::new()).is_err());
    }
}
