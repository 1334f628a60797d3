//! A daemon that holds many targets: the memory that is won, and how long a client waits
//! for a target to come back.
//!
//! ```text
//!   memory     MemAvailable ─ n checkpoints ─ sync ─ MemAvailable      what the machine has won
//!                                   └ smaps of each session's process  what it has cost
//!   latency    client ──restore──▶ daemon ─▶ target runs ─▶ answer     idle, and while others
//!              8 others ──checkpoint, restore, checkpoint, …           keep the queue filled
//!   crowd      n clients ──checkpoint, then restore──▶ daemon          at once, and one at a time
//! ```
//!
//! What the machine has won is what counts: it has everything in it, the image in a tmpfs
//! and the kernel's own memory too. It also has everybody else in it, so it means
//! something on a quiet machine only; what processes cost is counted for each of them.

mod crowd;
mod latency;
mod memory;

use memcr_harness::{Memcr, Result, Rig, Setup, ensure};
use serde_json::json;

use crate::args::Args;
use crate::case::Sink;
use crate::cycle::Program;
use crate::figures::write_json;
use crate::machine::Machine;

/// Stage before the sink: what the default pipeline has.
const STAGE: &str = "lz4";

/// How much of everything.
#[derive(Debug, Clone)]
struct Plan {
    size_mib: u64,
    /// Targets held at once.
    n_held: Vec<usize>,
    /// The same, of targets with next to no memory: the rest is what a session costs.
    n_tiny: Vec<usize>,
    n_samples: usize,
    /// Targets that are to go, and to come back, at once.
    n_crowd: usize,
}

impl Plan {
    fn full(args: &Args) -> Self {
        Self {
            size_mib: 64,
            n_held: vec![1, 10, 50],
            n_tiny: vec![1, 200],
            n_samples: args.samples as usize,
            n_crowd: args.crowd.unwrap_or(20).into(),
        }
    }

    fn small() -> Self {
        Self {
            size_mib: 2,
            n_held: vec![2],
            n_tiny: vec![3],
            n_samples: 4,
            n_crowd: 3,
        }
    }
}

/// Measures, prints, and writes everything to a file if asked to.
///
/// # Errors
/// When anything fails, up to a wrong byte in a target.
pub(crate) fn run(args: &Args) -> Result {
    let program = Program::find(args.memcr.as_deref())?;
    let (machine, plan) = (Machine::here(), Plan::full(args));
    println!("{}: {machine}", program.version());
    let (mut memory, mut latency, mut crowd) = (Vec::new(), Vec::new(), Vec::new());
    for &sink in &args.sinks {
        let place = Place::new(&program, sink, args)?;
        memory.extend(memory::measure(&place, &plan)?);
        latency.extend(latency::measure(&place, &plan)?);
        crowd.push(crowd::measure(
            &place,
            plan.size_mib,
            plan.n_crowd,
            args.runs,
        )?);
    }
    memory::print(&memory, args);
    latency::print(&latency, &plan, args);
    crowd::print(&crowd, args);
    write_json(args.json.as_deref(), || {
        json!({
            "memcr": program.version(),
            "machine": machine,
            "stage": STAGE,
            "content": args.content(),
            "runs": args.runs,
            "size_mib": plan.size_mib,
            "memory": memory,
            "latency": latency,
            "crowd": crowd,
        })
    })
}

/// Measures the crowd alone.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_crowd(args: &Args) -> Result {
    let program = Program::find(args.memcr.as_deref())?;
    let (machine, plan) = (Machine::here(), Plan::full(args));
    println!("{}: {machine}", program.version());
    let rows = args.sinks.iter().map(|&sink| {
        let place = Place::new(&program, sink, args)?;
        crowd::measure(&place, plan.size_mib, plan.n_crowd, args.runs)
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    crowd::print(&rows, args);
    write_json(args.json.as_deref(), || {
        json!({
            "memcr": program.version(),
            "machine": machine,
            "stage": STAGE,
            "content": args.content(),
            "runs": args.runs,
            "crowd": rows,
        })
    })
}

/// Everything once, small, into one sink.
///
/// # Errors
/// When anything failed.
pub(crate) fn smoke(program: &Program, sink: Sink, args: &Args) -> Result {
    let plan = Plan::small();
    let place = Place::new(program, sink, args)?;
    let memory = memory::once(&place, plan.size_mib, 2)?;
    ensure(memory.private_kib.median > 0.0, || {
        "a session's process that has no memory".into()
    })?;
    memory::once(&place, 0, plan.n_tiny[0])?;
    latency::measure(&place, &plan)?;
    crowd::measure(&place, plan.size_mib, plan.n_crowd, 1).map(drop)
}

/// What is measured, and where it stores.
struct Place<'a> {
    program: &'a Program,
    sink: Sink,
    args: &'a Args,
    rig: Rig,
}

impl<'a> Place<'a> {
    fn new(program: &'a Program, sink: Sink, args: &'a Args) -> Result<Self> {
        let rig = Rig::below(sink.dir(args), &format!("{STAGE},{}", sink.name()))?;
        Ok(Self {
            program,
            sink,
            args,
            rig,
        })
    }

    /// A daemon in the making.
    fn daemon(&self) -> Setup {
        let workers = |memcr: Memcr| match self.args.workers {
            Some(n) => memcr.args(["--workers", &n.to_string()]),
            None => memcr,
        };
        Setup::new(&self.rig).memcr(|memcr| workers(self.program.run_by(memcr)))
    }
}
