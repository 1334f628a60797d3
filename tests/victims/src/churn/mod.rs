//! Modes that change under the tracer's hands: threads and children that come and go, a
//! process that exits or becomes another program.

mod execs;
mod forks;
mod leap;

pub(crate) use execs::run_execs;
pub(crate) use forks::run_forks;
pub(crate) use leap::run_leap;

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::talk::{Victim, Wrong, die, serve, serve_beside};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

static N_BORN: AtomicU64 = AtomicU64::new(0);
static N_DONE: AtomicU64 = AtomicU64::new(0);
static N_LIVE: AtomicI64 = AtomicI64::new(0);
static QUIET: AtomicBool = AtomicBool::new(false);
/// Threads that may live at the same time.
const MAX_LIVE: i64 = 50;

/// Mode `clones`: `rate=1000 size=16M spawners=2 leader=1`: threads that are born, look at memory
/// and die, so many in a second.
pub(crate) fn run_clones(opts: &Opts) -> io::Result<()> {
    let (rate, n_spawners) = (opts.number("rate", 1000), opts.number("spawners", 2));
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: opts.number("seed", 1),
    };
    let mut region = Region::anon(opts.len("size", 16 << 20))?;
    let leader = opts.flag("leader");
    opts.done();
    region.fill(rule);
    let pause = Duration::from_micros(1_000_000 * n_spawners / rate);
    for _ in usize::from(leader)..n_spawners as usize {
        std::thread::spawn(move || spawn_for_ever(region, rule, pause));
    }
    let mut clones = Clones { region, rule };
    if leader {
        serve_beside(Box::new(clones), move || {
            spawn_for_ever(region, rule, pause)
        })
    }
    clones
        .more()
        .map_err(|wrong| io::Error::other(wrong.to_string()))?;
    serve(&mut clones);
    Ok(())
}

fn spawn_for_ever(region: Region, rule: Rule, pause: Duration) {
    loop {
        std::thread::sleep(pause);
        if QUIET.load(Ordering::SeqCst) || N_LIVE.load(Ordering::SeqCst) >= MAX_LIVE {
            continue;
        }
        N_LIVE.fetch_add(1, Ordering::SeqCst);
        let n = N_BORN.fetch_add(1, Ordering::SeqCst);
        let builder = std::thread::Builder::new()
            .name(format!("clone {n}"))
            .stack_size(64 << 10);
        if let Err(err) = builder.spawn(move || live(region, rule, n)) {
            die(&format!("start thread {n}: {err}"));
        }
    }
}

/// A short life: one page of the memory and a piece of the own stack must be right.
fn live(region: Region, rule: Rule, n: u64) {
    let mut stack = [0u8; 4096];
    let own = Rule {
        content: Content::Random,
        seed: n,
    };
    own.fill(n, &mut stack);
    let page_len = crate::sys::page_len();
    let page = region.part(
        n as usize * 7 % (region.len() / page_len) * page_len,
        page_len,
    );
    let checked = page
        .check(rule)
        .and_then(|_| own.check(n, stack.as_ptr().addr(), &stack));
    if let Err(wrong) = checked {
        die(&format!("{wrong} (thread {n})"));
    }
    N_DONE.fetch_add(1, Ordering::SeqCst);
    N_LIVE.fetch_sub(1, Ordering::SeqCst);
}

struct Clones {
    region: Region,
    rule: Rule,
}

impl Clones {
    /// Waits until more threads were born and are done.
    fn more(&self) -> Result<(), Wrong> {
        wait(
            || N_DONE.load(Ordering::SeqCst),
            N_DONE.load(Ordering::SeqCst) + 20,
        )
    }

    /// Waits until every thread that was born is done: none is lost.
    fn settle(&self) -> Result<u64, Wrong> {
        QUIET.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(20);
        while N_LIVE.load(Ordering::SeqCst) > 0 {
            if Instant::now() > deadline {
                let (born, done) = (N_BORN.load(Ordering::SeqCst), N_DONE.load(Ordering::SeqCst));
                return Err(Wrong::state(format!(
                    "{born} threads were born, {done} are done"
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        QUIET.store(false, Ordering::SeqCst);
        Ok(N_BORN.load(Ordering::SeqCst))
    }
}

fn wait(now: impl Fn() -> u64, want: u64) -> Result<(), Wrong> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while now() < want {
        if Instant::now() > deadline {
            return Err(Wrong::state(format!("stuck at {}, want {want}", now())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Victim for Clones {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.more()?;
        self.region.check(self.rule)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        (word == "settle").then(|| match self.settle() {
            Ok(n) => format!("settled {n}"),
            Err(wrong) => wrong.to_string(),
        })
    }
}

/// Mode `exits`: `threads=8 after=MICROSECONDS status=3`: on the word `go` it exits after
/// that time, with all its threads.
pub(crate) fn run_exits(opts: &Opts) -> io::Result<()> {
    let (n_threads, after) = (
        opts.len("threads", 8),
        Duration::from_micros(opts.number("after", 1000)),
    );
    let status = opts.number("status", 3) as i32;
    opts.done();
    for _ in 0..n_threads {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
    }
    serve(&mut Exits { after, status });
    Ok(())
}

struct Exits {
    after: Duration,
    status: i32,
}

impl Victim for Exits {
    fn verify(&mut self) -> Result<u64, Wrong> {
        Ok(0)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        let (after, status) = (self.after, self.status);
        (word == "go").then(|| {
            std::thread::spawn(move || {
                std::thread::sleep(after);
                std::process::exit(status);
            });
            "going".into()
        })
    }
}
