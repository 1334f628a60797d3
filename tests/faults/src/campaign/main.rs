//! The campaign: memcr is killed and failed everywhere, and its targets must not notice.
//!
//! ```text
//!   memcr-campaign [--quick] [--seed N] [--moments N] [--seconds N] [--only MODE,…]
//!
//!            ┌────────── one trial ──────────────────────────────────────────────┐
//!   patrol ──┤ checkpoint │ hold │ restore   ✗ SIGKILL, an error, a stray signal │
//!            │ memcr recover PID                                                 │
//!            └─ right? the same? nothing left? ──▶ one count in the table ───────┘
//! ```
//!
//! The target is the victim `patrol`, whose threads check their memory all the time and
//! tell at once when a byte is wrong. It lives on from trial to trial: what a trial
//! leaves behind, a later one sees.
//!
//! | mode      | what is done                                                             |
//! |-----------|--------------------------------------------------------------------------|
//! | `points`  | SIGKILL at every fault point of `-p`, `checkpoint`, `restore`, `recover` |
//! | `moments` | SIGKILL at random moments of the same, and while held                    |
//! | `errors`  | ENOSPC and EIO at every write, an error at every point                   |
//! | `crowd`   | SIGKILL of one of twenty sessions, of all of them                        |
//! | `ends`    | SIGKILL of the target at every point, held, and parked                   |
//! | `stray`   | SIGCONT to a parked target that forks, moves or drops its memory         |
//! | `upgrade` | one build restores what another one has stored                           |
//! | `cycles`  | again and again: nothing leaks, nothing drifts                           |
//! | `storm`   | a hundred clients over one daemon, SIGKILL of that and of its sessions   |

mod args;
mod crowd;
mod cycles;
mod ends;
mod errors;
mod kill;
mod phase;
mod random;
mod storm;
mod stray;
mod subject;
mod table;
mod upgrade;

use args::Args;
use memcr_harness::Result;
use random::Random;
use std::process::ExitCode;
use std::time::Instant;
use table::Table;

/// What the modes work with.
struct Campaign {
    args: Args,
    random: Random,
    table: Table,
}

/// A mode: its name, and what it does.
type Mode = (&'static str, fn(&mut Campaign) -> Result);

const MODES: &[Mode] = &[
    ("points", kill::points),
    ("moments", kill::moments),
    ("errors", errors::run),
    ("crowd", crowd::run),
    ("ends", ends::run),
    ("stray", stray::run),
    ("upgrade", upgrade::run),
    ("cycles", cycles::run),
    ("storm", storm::run),
];

fn main() -> ExitCode {
    let names: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
    let args = match Args::parse(std::env::args().skip(1), &names) {
        Ok(args) => args,
        Err(what) => {
            eprintln!("memcr-campaign: {what}");
            return ExitCode::from(2);
        }
    };
    // Whoever sees a failure can have the same moments again, as far as time repeats.
    println!("seed {}", args.seed);
    let mut campaign = Campaign {
        random: Random::new(args.seed),
        table: Table::default(),
        args,
    };
    for (name, mode) in MODES {
        campaign.run(name, *mode);
    }
    println!("\n{}", campaign.table);
    println!("{}", campaign.table.closing_line());
    if campaign.table.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Campaign {
    /// Runs one mode if it was asked for; that it could not be run is a failure too.
    fn run(&mut self, name: &str, mode: fn(&mut Self) -> Result) {
        if !self.args.wants(name) {
            return;
        }
        let begin = Instant::now();
        if let Err(trouble) = mode(self) {
            self.table.broken(name, &trouble);
        }
        eprintln!("{name}: {:.0} s", begin.elapsed().as_secs_f64());
    }
}
