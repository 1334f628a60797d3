//! Mode `blocked`: threads inside system calls.
//!
//! ```text
//!   blocked ms=3000 calls=all|NAME,NAME… not=NAME,NAME… leader=1
//!     wake     gives every call that waits for something what it waits for
//!     result   joins all threads, one line per call, then `end`:
//!              NAME right due=MS after=MS        ended by its timeout after so long
//!              NAME right woken after=MS         ended because it was woken
//!              NAME WRONG …                      ended too early, or with EINTR
//! ```
//!
//! Each call runs on a thread of its own, with `leader` the last one on the first thread. No call here may ever return EINTR: the
//! victim has no signal handler, so nothing that an undisturbed kernel does can
//! interrupt it.

mod bare;
mod ipc;
mod sockets;
mod timed;

use crate::opts::Opts;
use crate::sys::now_ns;
use crate::talk::{Victim, Wrong, serve, serve_beside};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What a call answered: return value and `errno`.
pub(crate) type Answer = (i64, i32);
/// Makes the call; runs on its own thread.
pub(crate) type Body = Box<dyn FnOnce() -> Answer + Send>;
/// Ends a call from outside.
pub(crate) type Wake = Box<dyn FnOnce() + Send>;

/// A call that is ready to be made.
pub(crate) struct Call {
    pub(crate) body: Body,
    pub(crate) ends: Ends,
    /// What a right answer looks like.
    pub(crate) right: fn(Answer) -> bool,
}

/// What ends a call.
pub(crate) enum Ends {
    /// Its own timeout, the `ms` of the mode.
    Due,
    /// Somebody else.
    Woken(Wake),
}

type Make = fn(ms: u64) -> io::Result<Call>;

/// All calls, of all files of this directory. `fork` first: the table is made in order.
const CALLS: &[&[(&str, Make)]] = &[ipc::CALLS, sockets::CALLS, timed::CALLS, bare::CALLS];

/// `-1` with errno 0 becomes the real errno; call right behind the system call.
pub(crate) fn answer(ret: i64) -> Answer {
    (ret, if ret == -1 { crate::sys::errno() } else { 0 })
}

/// Runs the mode.
///
/// # Errors
/// When a call cannot be prepared.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let (ms, wanted) = (opts.number("ms", 3000), opts.text("calls", "all"));
    let (unwanted, leader) = (opts.text("not", ""), opts.flag("leader"));
    opts.done();
    let wanted: Vec<&str> = wanted.split(',').collect();
    let chosen: Vec<_> = CALLS
        .iter()
        .copied()
        .flatten()
        .filter(|(name, _)| wanted == ["all"] || wanted.contains(name))
        .filter(|(name, _)| unwanted.split(',').all(|other| other != *name))
        .collect();
    // All are prepared before the first one starts: preparing takes time and forks.
    let calls = chosen.iter().map(|(name, make)| {
        make(ms)
            .map(|call| (*name, call))
            .map_err(|err| named(name, err))
    });
    let calls = calls.collect::<io::Result<Vec<_>>>()?;
    if leader {
        let (blocked, body) = start_with_leader(calls, ms)?;
        serve_beside(Box::new(blocked), body)
    }
    let mut blocked = start(calls, ms)?;
    blocked.await_entry();
    serve(&mut blocked);
    Ok(())
}

fn named(name: &str, err: io::Error) -> io::Error {
    io::Error::other(format!("prepare {name}: {err}"))
}

/// What a thread that makes a call tells.
#[derive(Default)]
struct Slot {
    is_entered: AtomicBool,
    outcome: OnceLock<(Answer, Duration)>,
}

struct Running {
    name: &'static str,
    right: fn(Answer) -> bool,
    due: bool,
    slot: Arc<Slot>,
}

struct Blocked {
    ms: u64,
    running: Vec<Running>,
    wakes: Vec<Wake>,
}

type Named = (&'static str, Call);

/// Starts a thread for each call.
fn start(calls: Vec<Named>, ms: u64) -> io::Result<Blocked> {
    let mut blocked = Blocked {
        ms,
        running: Vec::new(),
        wakes: Vec::new(),
    };
    for call in calls {
        let (name, body) = blocked.add(call);
        let builder = std::thread::Builder::new().name(name.chars().take(15).collect());
        builder.stack_size(128 << 10).spawn(body)?;
    }
    Ok(blocked)
}

/// [`start`], but the last call is left to the first thread.
fn start_with_leader(mut calls: Vec<Named>, ms: u64) -> io::Result<(Blocked, impl FnOnce())> {
    let last = calls.pop().ok_or_else(|| io::Error::other("no calls"))?;
    let mut blocked = start(calls, ms)?;
    let (_, body) = blocked.add(last);
    Ok((blocked, body))
}

impl Blocked {
    /// Takes a call; answers what its thread has to do.
    fn add(&mut self, (name, call): Named) -> (&'static str, impl FnOnce() + Send + use<>) {
        let slot = Arc::new(Slot::default());
        self.running.push(Running {
            name,
            right: call.right,
            due: matches!(call.ends, Ends::Due),
            slot: Arc::clone(&slot),
        });
        if let Ends::Woken(wake) = call.ends {
            self.wakes.push(wake);
        }
        let work = move || {
            slot.is_entered.store(true, Ordering::SeqCst);
            let begin = now_ns();
            let answer = (call.body)();
            // Each slot belongs to one call: it is set once.
            let _ = slot
                .outcome
                .set((answer, Duration::from_nanos(now_ns() - begin)));
        };
        (name, work)
    }

    /// Waits until every thread is about to make its call.
    fn await_entry(&self) {
        while !self
            .running
            .iter()
            .all(|r| r.slot.is_entered.load(Ordering::SeqCst))
        {
            std::thread::yield_now();
        }
    }
}

impl Victim for Blocked {
    /// Right as long as no call ended that should not have.
    fn verify(&mut self) -> Result<u64, Wrong> {
        Ok(self.running.iter().filter(|r| !r.is_over()).count() as u64)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        match word {
            "wake" => {
                // A call that ended by itself before this was not waiting any more.
                let gone: Vec<_> = self
                    .running
                    .iter()
                    .filter(|r| !r.due && r.is_over())
                    .collect();
                if !gone.is_empty() {
                    let names: Vec<_> = gone.iter().map(|r| r.name).collect();
                    return Some(format!(
                        "WRONG at 0x0: ended before they were woken: {}",
                        names.join(" ")
                    ));
                }
                self.wakes.drain(..).for_each(|wake| wake());
                Some("woken".into())
            }
            "result" => {
                let lines: Vec<_> = self
                    .running
                    .drain(..)
                    .map(|running| running.report(self.ms))
                    .collect();
                Some(lines.join("\n") + "\nend")
            }
            _ => None,
        }
    }
}

impl Running {
    fn is_over(&self) -> bool {
        self.slot.outcome.get().is_some()
    }

    /// Waits for the end of the call; the harness has the deadline.
    fn outcome(&self) -> (Answer, Duration) {
        loop {
            if let Some(outcome) = self.slot.outcome.get() {
                return *outcome;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn report(self, ms: u64) -> String {
        let (name, due) = (self.name, self.due);
        let (answer, took) = self.outcome();
        let after = took.as_millis() as u64;
        let (ret, errno) = answer;
        if errno == libc::EINTR {
            return format!("{name} WRONG saw EINTR after {after} ms");
        }
        if !(self.right)(answer) {
            return format!("{name} WRONG answered {ret} errno {errno} after {after} ms");
        }
        // Kernels round a timeout up, never down; one millisecond for our own rounding.
        if due && after + 1 < ms {
            return format!("{name} WRONG ended after {after} ms, was due after {ms} ms");
        }
        if due {
            format!("{name} right due={ms} after={after}")
        } else {
            format!("{name} right woken after={after}")
        }
    }
}
