//! How fast memcr is, beside what the machine can do.
//!
//! ```text
//!   round 1          round 2          …            per size, so that drift hits all alike
//!   limits A B C …   limits A B C …
//!     │    └ cycle: victim fills ─ warm ─ memcr ─┬─ held ─ warm ─ Enter ─┬─ runs ─ exit ─ verify
//!     │             └───────── checkpoint ───────┘       └── restore ────┘
//!     └ lab: each system call and codec alone, on one thread and on all
//!                                  │
//!   bound: the sum of the limits for the bytes that a pipeline moves ──▶ "of limit"
//! ```
//!
//! Everything is timed from outside, with one clock: a checkpoint from the start of the
//! program to the line that says the target is held, a restore from Enter to the first
//! word of the target. What memcr says about its phases is shown beside, not counted.
//! What a cycle takes beside time, RAM and CPU, is in [`cost`].
//! `--fleet` measures the daemon with many targets instead, and `--crowd` many at once:
//! [`fleet`]; `--peers` zram and CRIU beside memcr: [`peers`]; `--shapes` targets that are
//! not plain memory: [`shapes`].
//! `docs/performance.md` tells how to read the figures.

mod args;
mod bound;
mod case;
mod cost;
mod cycle;
mod figures;
mod fleet;
mod lab;
mod limits;
mod machine;
mod own_tmpfs;
mod peers;
mod raw;
mod report;
mod rounds;
mod shapes;
mod smoke;
mod stat;
mod stolen;
mod team;
mod versus;
mod warm;

use std::process::ExitCode;

use args::Args;
use clap::Parser;
use memcr_harness::{Result, ensure};
use own_tmpfs::OwnTmpfs;

fn main() -> ExitCode {
    match measure(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("bench: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// Where images of the sink tmpfs go is the same for all that is measured.
fn measure(mut args: Args) -> Result {
    let own = match args.tmpfs_dir {
        Some(_) => None,
        None => OwnTmpfs::mount()?,
    };
    if let Some(own) = &own {
        args.tmpfs_dir = Some(own.path().to_owned());
    }
    run(&args)
}

fn run(args: &Args) -> Result {
    let is_table = !args.smoke && !args.fleet && args.crowd.is_none() && !args.peers;
    let is_table = is_table && args.shapes.is_empty() && args.vs.is_none();
    ensure(is_table || args.contents.len() == 1, || {
        "only the table of pipelines is made for several --content".into()
    })?;
    if args.smoke {
        return smoke::run(args);
    }
    if args.fleet {
        return fleet::run(args);
    }
    if args.crowd.is_some() {
        return fleet::run_crowd(args);
    }
    if args.peers {
        return peers::run(args);
    }
    if !args.shapes.is_empty() {
        return shapes::run(args);
    }
    match &args.vs {
        Some(other) => versus::run(args, other),
        None => figures::run(args),
    }
}
