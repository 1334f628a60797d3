//! Threads at work: each checks its own stack, registers and sleep, for ever.

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::regs::{Level, Watch};
use crate::talk::{Victim, Wrong, die, serve, serve_beside};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of its own stack that each thread fills and checks.
const STACK_FILL_LEN: usize = 16 << 10;
/// Thread stacks are small, so that 500 threads are not a memory test.
const STACK_LEN: usize = 128 << 10;
/// How long a thread may need for one round before it counts as lost. Generous: the
/// machine may be busy.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// What the threads do between checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) level: Level,
    /// Turns of the register spin per round.
    pub(crate) n_spins: u64,
    /// Sleep after each round, µs; 0 for none. A sleep that ends early is reported.
    pub(crate) nap_us: u64,
}

/// The threads and their counters.
pub(crate) struct Crew {
    rounds: Vec<Arc<AtomicU64>>,
}

impl Crew {
    /// Starts `n` threads and waits until each has done its first round.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(n: usize, work: Work) -> io::Result<Self> {
        let mut rounds = Vec::with_capacity(n);
        for i in 0..n {
            let counter = Arc::new(AtomicU64::new(0));
            rounds.push(Arc::clone(&counter));
            let builder = std::thread::Builder::new()
                .name(format!("crew {i} (R) 1"))
                .stack_size(STACK_LEN);
            builder.spawn(move || toil(i as u64, work, &counter))?;
        }
        let crew = Self { rounds };
        crew.progress()
            .map_err(|wrong| io::Error::other(wrong.to_string()))?;
        Ok(crew)
    }

    /// Waits until every thread has done one more whole round.
    ///
    /// # Errors
    /// The number of a thread that does not go on.
    pub(crate) fn progress(&self) -> Result<u64, Wrong> {
        let before: Vec<u64> = self
            .rounds
            .iter()
            .map(|c| c.load(Ordering::Acquire))
            .collect();
        let deadline = Instant::now() + LOST_AFTER;
        for (i, counter) in self.rounds.iter().enumerate() {
            // Two, because the first may have begun before we looked.
            while counter.load(Ordering::Acquire) < before[i] + 2 {
                if Instant::now() > deadline {
                    return Err(Wrong::state(format!("thread {i} does not go on")));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(self.rounds.len() as u64)
    }
}

/// A thread of the crew; damage ends the whole victim.
fn toil(seed: u64, work: Work, counter: &AtomicU64) {
    let rule = Rule {
        content: Content::Random,
        seed,
    };
    let mut stack = [0u8; STACK_FILL_LEN];
    let addr = stack.as_ptr().addr();
    rule.fill(seed, &mut stack);
    let mut scratch = vec![0; crate::sys::page_len()];
    let mut watch = Watch::new(seed, work.level, work.n_spins);
    loop {
        let checked = watch
            .round()
            .and_then(|()| rule.check_with(seed, addr, &stack, &mut scratch).map(drop));
        if let Err(wrong) = checked {
            die(&format!("{wrong} (thread {seed}, own stack and registers)"));
        }
        if work.nap_us > 0
            && let Err(err) = crate::sys::nap_us(work.nap_us)
        {
            die(&format!(
                "WRONG at 0x0: thread {seed}: nanosleep was interrupted: {err}"
            ));
        }
        counter.fetch_add(1, Ordering::Release);
    }
}

/// Mode `vector`: `threads=2 level=best|avx512|avx|sse spins=… leader=1`: registers live
/// nearly always; with `leader` also those of the first thread.
pub(crate) fn run_vector(opts: &Opts) -> io::Result<()> {
    let level = Level::parse(&opts.text("level", "best"));
    let n_threads = opts.len("threads", 2);
    let work = Work {
        level,
        n_spins: opts.number("spins", 300_000),
        nap_us: 0,
    };
    let leader = opts.flag("leader");
    opts.done();
    let mut crew = Crew::start(n_threads, work)?;
    if !leader {
        serve(&mut Spinning { crew, level });
        return Ok(());
    }
    let counter = Arc::new(AtomicU64::new(0));
    crew.rounds.push(Arc::clone(&counter));
    serve_beside(Box::new(Spinning { crew, level }), move || {
        toil(n_threads as u64, work, &counter)
    })
}

struct Spinning {
    crew: Crew,
    level: Level,
}

impl Victim for Spinning {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.crew.progress()
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        (word == "stat").then(|| format!("level {:?}", self.level).to_lowercase())
    }
}
