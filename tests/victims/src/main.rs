//! Targets that prove themselves.
//!
//! ```text
//!   victim MODE [key=value…]
//!
//!   harness ──stdin──▶ verify | stat | quit | words of the mode
//!           ◀─stdout── ready                     once, when everything is set up
//!                      ok N bytes                every byte is what the rule says
//!                      WRONG at 0xADDR: …        it is not, or a call was seen to fail
//! ```
//!
//! A victim fills memory by a rule (`fill`) and can therefore check it without a
//! second copy; it watches its own registers, signals and system calls, and says loudly
//! what an undisturbed process would never see. It ends when its stdin does, so that
//! none outlives the test that started it.

mod blocked;
mod busy;
mod churn;
mod crew;
mod fill;
mod hardship;
mod mapped;
mod memory;
mod odd;
mod older;
mod opts;
mod patrol;
mod region;
mod regs;
mod rseq;
mod seccomp;
mod shape;
mod shy;
mod signals;
mod sleepers;
mod sys;
mod talk;
mod witness;
mod xsk;

use opts::Opts;

/// A mode: sets itself up, then talks until stdin ends.
type Mode = fn(&Opts) -> std::io::Result<()>;

const MODES: &[(&str, Mode)] = &[
    ("memory", memory::run),
    ("maps", mapped::run),
    ("blocked", blocked::run),
    ("vector", crew::run_vector),
    ("storm", signals::run_storm),
    ("handlers", signals::run_handlers),
    ("sigtrap", signals::run_sigtrap),
    ("clones", churn::run_clones),
    ("exits", churn::run_exits),
    ("execs", churn::run_execs),
    ("forks", churn::run_forks),
    ("leap", churn::run_leap),
    ("strict", seccomp::run_strict),
    ("filter", seccomp::run_filter),
    ("answers", seccomp::run_answers),
    ("dispatch", seccomp::run_dispatch),
    ("rseq", rseq::run),
    ("uring", busy::run_uring),
    ("aio", busy::run_aio),
    ("xsk", xsk::run),
    ("vfork", odd::run_vfork),
    ("sharedvm", odd::run_shared_vm),
    ("leader", odd::run_leader_exited),
    ("fdclose", odd::run_fd_watch),
    ("opener", odd::run_opener),
    ("witness", witness::run),
    ("patrol", patrol::run),
    ("shape", shape::run),
    ("shy", shy::run),
];

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    if name == "older" {
        talk::die(&format!("older: {}", older::become_program(args)));
    }
    if name == "keyless" {
        talk::die(&format!("keyless: {}", seccomp::become_keyless(args)));
    }
    let Some((_, mode)) = MODES.iter().find(|(mode, _)| *mode == name) else {
        let known: Vec<_> = MODES.iter().map(|(mode, _)| *mode).collect();
        talk::die(&format!(
            "unknown mode `{name}`, known: {}",
            known.join(" ")
        ));
    };
    let opts = match Opts::parse(args) {
        Ok(opts) => opts,
        Err(what) => talk::die(&what),
    };
    if let Err(err) = mode(&opts) {
        talk::die(&format!("mode {name}: {err}"));
    }
}
