//! Others that take a process's memory away, beside memcr.
//!
//! ```text
//!   round 1   memcr plain   memcr lz4   zram ×1   zram ×n   CRIU
//!   round 2   …
//!                                                          first word     all read
//!   target fills ─ warm ─┬─ out ─┬─ away ─ warm ─┬─ back ────┴──────────────┴─ verify
//!     memcr              program starts … held   Enter
//!     zram               MADV_PAGEOUT … in swap  (it has never stopped)
//!     CRIU               dump … it is gone       restore
//! ```
//!
//! The three do not do the same: zram's pages come back one by one when they are touched,
//! and a target that CRIU took away is no process meanwhile. So not only the way back until
//! the target runs is timed, but up to the moment when it has read each of its pages once,
//! which is the same work for all. What the machine has won, by MemAvailable, is the same
//! measure for all, too.

mod criu;
mod ours;
mod zram;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use memcr_harness::{Context, Result, Trouble, Victim, ensure};
use serde::Serialize;
use serde_json::json;

use crate::args::Args;
use crate::case::{Case, Sink};
use crate::cost::ram::Ram;
use crate::cycle::{Program, start_victim};
use crate::figures::write_json;
use crate::machine::Machine;
use crate::report::print_table;
use crate::stat::{Stat, mib, millis};
use crate::warm::warm;

/// Size at which each is tried before anything is timed, MiB.
const TRIAL_MIB: u64 = 16;

/// Who takes the memory away.
#[derive(Debug, Clone)]
enum Peer {
    Memcr(Case),
    /// A zram device, filled by so many threads at once.
    Zram(usize),
    /// CRIU, by the name of its program.
    Criu(PathBuf),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memcr(case) => write!(f, "memcr {} → {}", case.name(), case.sink.name()),
            Self::Zram(1) => f.write_str("zram lz4, MADV_PAGEOUT by 1 thread"),
            Self::Zram(n) => write!(f, "zram lz4, MADV_PAGEOUT by {n} threads"),
            Self::Criu(_) => f.write_str("CRIU → tmpfs"),
        }
    }
}

/// One time there and back.
#[derive(Debug, Clone)]
struct Trip {
    /// Until the memory was away.
    out_millis: f64,
    /// From the call back until the target said something.
    word_millis: f64,
    /// From the call back until it had read every page.
    read_millis: f64,
    /// RAM that what was taken away lies in meanwhile, bytes.
    held_bytes: u64,
    /// How much more was available meanwhile, KiB.
    won_kib: i64,
}

/// All trips with one of them.
#[derive(Debug, Serialize)]
struct Row {
    peer: String,
    out_millis: Stat,
    word_millis: Stat,
    read_millis: Stat,
    held_mib: Stat,
    won_mib: Stat,
}

/// Measures, prints a table per size, and writes everything to a file if asked to.
///
/// # Errors
/// When anything fails, up to a wrong byte in a target; not when another one than memcr
/// does not work here at all: that is told, and the others are measured.
pub(crate) fn run(args: &Args) -> Result {
    let program = Program::find(args.memcr.as_deref())?;
    let machine = Machine::here();
    println!("{}: {machine}", program.version());
    let (mut peers, mut left_out) = (Vec::new(), Vec::new());
    for peer in all(args) {
        match trip(&program, &peer, TRIAL_MIB, args) {
            Ok(_) => peers.push(peer),
            Err(why) if matches!(peer, Peer::Memcr(_)) => return Err(why),
            Err(Trouble::Skipped(why) | Trouble::Failed(why)) => {
                println!("left out: {peer}: {why}");
                left_out.push(json!({ "peer": peer.to_string(), "why": why }));
            }
        }
    }
    let criu = peers.iter().find_map(|peer| match peer {
        Peer::Criu(program) => criu::version(program),
        _ => None,
    });
    let mut sizes = Vec::new();
    for &size_mib in &args.sizes {
        let rows = at_size(&program, &peers, size_mib, args)?;
        print(&rows, size_mib, args);
        sizes.push(json!({ "size_mib": size_mib, "rows": rows }));
    }
    if let Some(version) = &criu {
        println!("CRIU: {version}");
    }
    write_json(args.json.as_deref(), || {
        json!({
            "memcr": program.version(),
            "criu": criu,
            "machine": machine,
            "content": args.content(),
            "runs": args.runs,
            "left_out": left_out,
            "sizes": sizes,
        })
    })
}

/// Each of the others once, small: name and outcome, for the smoke test. What this machine
/// cannot do is skipped.
pub(crate) fn smoke(program: &Program, args: &Args) -> Vec<(String, Result)> {
    let others = all(args).into_iter().filter_map(|peer| {
        let tried = trip(program, &peer, TRIAL_MIB, args).map(drop);
        let tried = match (&peer, tried) {
            (Peer::Memcr(_), _) => return None,
            // A CRIU that does not know this kernel is no fault of ours.
            (Peer::Criu(_), Err(Trouble::Failed(why))) => Err(Trouble::Skipped(why)),
            (_, tried) => tried,
        };
        Some((peer.to_string(), tried))
    });
    others.collect()
}

fn all(args: &Args) -> Vec<Peer> {
    let mut zram = vec![1, args.n_threads()];
    zram.dedup();
    let memcr = ["plain", "lz4"].map(|stages| Peer::Memcr(Case::new(stages, Sink::Tmpfs)));
    let mut peers = memcr.to_vec();
    peers.extend(zram.into_iter().map(Peer::Zram));
    peers.push(Peer::Criu(args.criu.clone()));
    peers
}

fn at_size(program: &Program, peers: &[Peer], size_mib: u64, args: &Args) -> Result<Vec<Row>> {
    let mut trips = vec![Vec::new(); peers.len()];
    for round in 0..args.runs {
        eprintln!("{size_mib} MiB: round {} of {}", round + 1, args.runs);
        for (peer, trips) in peers.iter().zip(&mut trips) {
            trips.push(trip(program, peer, size_mib, args).context(peer)?);
        }
    }
    let rows = peers.iter().zip(&trips).map(row);
    let rows: Option<Vec<Row>> = rows.collect();
    Ok(rows.ok_or("no runs, no figures")?)
}

fn trip(program: &Program, peer: &Peer, size_mib: u64, args: &Args) -> Result<Trip> {
    match peer {
        Peer::Memcr(case) => ours::trip(program, case, size_mib, args),
        Peer::Zram(n_threads) => zram::trip(*n_threads, size_mib, args),
        Peer::Criu(program) => criu::trip(program, size_mib, args),
    }
}

/// A target, and what was available before anybody touched it.
struct Traveller {
    victim: Victim,
    /// Where its memory is, and how long.
    addr: usize,
    len_bytes: usize,
    before: Ram,
}

impl Traveller {
    /// A target, with as much free memory as any way out needs.
    fn ready(size_mib: u64, args: &Args) -> Result<Self> {
        let mut victim = start_victim(size_mib, args.content())?;
        let addr = victim.ask("where")?;
        let addr = usize::from_str_radix(addr.trim_start_matches("0x"), 16)
            .context(format!("an address from `{addr}`"))?;
        let len_bytes = (size_mib << 20) as usize;
        warm(len_bytes)?;
        Ok(Self {
            victim,
            addr,
            len_bytes,
            before: Ram::now()?,
        })
    }

    /// Its memory is away: how much is won; then as much free memory as the way back needs.
    fn away(&mut self) -> Result<i64> {
        let won_kib = Ram::now()?.available_kib - self.before.available_kib;
        warm(self.len_bytes)?;
        Ok(won_kib)
    }

    /// Says a word to it, which it hears when it runs.
    fn call(&mut self) -> Result {
        // Any question will do; this one is answered without touching the memory.
        self.victim.tell("where")
    }

    /// Called, and coming back since `begin`: ms until it answers, and until it has read every page.
    fn back(&mut self, begin: Instant) -> Result<(f64, f64)> {
        self.victim.answer()?;
        let word_millis = millis(begin.elapsed());
        let read = self.victim.ask("read")?;
        let read_millis = millis(begin.elapsed());
        ensure(read.starts_with("read "), || format!("it read: `{read}`"))?;
        Ok((word_millis, read_millis))
    }

    fn verify(&mut self, args: &Args) -> Result {
        if args.no_verify {
            return Ok(());
        }
        self.victim.verify().map(drop)
    }
}

fn row((peer, trips): (&Peer, &Vec<Trip>)) -> Option<Row> {
    let stat = |of: fn(&Trip) -> f64| Stat::of(trips.iter().map(of));
    Some(Row {
        peer: peer.to_string(),
        out_millis: stat(|trip| trip.out_millis)?,
        word_millis: stat(|trip| trip.word_millis)?,
        read_millis: stat(|trip| trip.read_millis)?,
        held_mib: stat(|trip| mib(trip.held_bytes))?,
        won_mib: stat(|trip| trip.won_kib as f64 / 1024.0)?,
    })
}

fn print(rows: &[Row], size_mib: u64, args: &Args) {
    let title = format!("{size_mib} MiB of {}, {} runs", args.content(), args.runs);
    let head = [
        &title,
        "out ms",
        "back: first word ms",
        "back: all read ms",
        "held in RAM MiB",
        "RAM won MiB",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let mut line = vec![row.peer.clone()];
        let stats = [
            row.out_millis,
            row.word_millis,
            row.read_millis,
            row.held_mib,
            row.won_mib,
        ];
        line.extend(stats.iter().map(Stat::text));
        table.push(line);
    }
    print_table(&table);
}
