//! Modes about signals: a storm of them, handlers that look at memory, odd SIGTRAPs.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::regs::{Level, Watch};
use crate::sys::{check, fork, page_len, pipe};
use crate::talk::{Victim, Wrong, die, serve, serve_beside};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs `handler` for `signal`.
pub(crate) fn handle(signal: i32, handler: Handler, flags: i32) -> io::Result<()> {
    // SAFETY: all zeros is a valid action; the handlers below only use atomics and
    // memory that is never freed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | flags;
        check(libc::sigaction(signal, &raw const action, null_mut())).map(drop)
    }
}

/// The disposition of `signal`.
fn disposition(signal: i32) -> usize {
    // SAFETY: only reads the action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, null(), &raw mut action);
        action.sa_sigaction
    }
}

/// Blocks or unblocks signals in the calling thread.
fn mask(how: i32, signals: &[i32]) {
    // SAFETY: all zeros is an empty set; the numbers are valid signals.
    unsafe {
        let mut set = std::mem::zeroed();
        signals.iter().for_each(|&signal| {
            libc::sigaddset(&raw mut set, signal);
        });
        libc::pthread_sigmask(how, &raw const set, null_mut());
    }
}

/// Whether the calling thread has `signal` blocked.
fn is_blocked(signal: i32) -> bool {
    // SAFETY: only reads the mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, null(), &raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

// ---- storm ----------------------------------------------------------------

/// Signals of the storm, beside SIGALRM: numbered from SIGRTMIN.
const N_QUEUED: usize = 4;
/// Blocked all the time, to have a mask whose real-time part matters.
const ALWAYS_BLOCKED: [i32; 3] = [9, 17, 29];

static N_ALARMS: AtomicU64 = AtomicU64::new(0);
static N_RECEIVED: [AtomicU64; N_QUEUED] = [const { AtomicU64::new(0) }; N_QUEUED];
static OUT_OF_ORDER: AtomicBool = AtomicBool::new(false);
static OFF_STACK: AtomicBool = AtomicBool::new(false);
static ALT_STACK: AtomicUsize = AtomicUsize::new(0);
const ALT_STACK_LEN: usize = 256 << 10;

extern "C" fn on_alarm(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    check_stack();
    N_ALARMS.fetch_add(1, SeqCst);
}

/// Queued signals carry consecutive numbers: a lost, doubled or overtaken one shows.
extern "C" fn on_queued(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    check_stack();
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, filled by sigqueue.
    let got = unsafe { (*info).si_value() }.sival_ptr.addr() as u64;
    let counter = &N_RECEIVED[(signal - libc::SIGRTMIN()) as usize];
    if counter.fetch_add(1, SeqCst) != got {
        OUT_OF_ORDER.store(true, SeqCst);
    }
}

/// Handlers must run on the alternative stack, and on no other.
fn check_stack() {
    let here = (&raw const OFF_STACK).addr();
    let local = 0u8;
    let at = (&raw const local)
        .addr()
        .wrapping_sub(ALT_STACK.load(SeqCst));
    if at >= ALT_STACK_LEN && here != 0 {
        OFF_STACK.store(true, SeqCst);
    }
}

/// Mode `storm`: SIGALRM at 1 kHz and real-time signals queued by a child as fast as
/// the queue takes them, to a thread whose registers are live, on an alternative stack;
/// with `leader=1` to the first thread.
pub(crate) fn run_storm(opts: &Opts) -> io::Result<()> {
    let leader = opts.flag("leader");
    opts.done();
    let queued: Vec<i32> = (0..N_QUEUED as i32).map(|i| libc::SIGRTMIN() + i).collect();
    let blocked: Vec<i32> = ALWAYS_BLOCKED
        .iter()
        .map(|i| libc::SIGRTMIN() + i)
        .collect();
    mask(
        libc::SIG_BLOCK,
        &[&queued[..], &blocked[..], &[libc::SIGALRM]].concat(),
    );
    handle(libc::SIGALRM, on_alarm, libc::SA_ONSTACK | libc::SA_RESTART)?;
    for &signal in &queued {
        handle(signal, on_queued, libc::SA_ONSTACK | libc::SA_RESTART)?;
    }
    let sender = Sender::start()?;
    let tick = libc::timeval {
        tv_sec: 0,
        tv_usec: 1000,
    };
    let timer = libc::itimerval {
        it_interval: tick,
        it_value: tick,
    };
    // SAFETY: a readable timer value.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut()) })?;
    let mut storm = Storm { sender };
    if leader {
        serve_beside(Box::new(storm), move || receive(&queued));
    }
    std::thread::spawn(move || receive(&queued));
    storm
        .wait_for_more()
        .map_err(|wrong| io::Error::other(wrong.to_string()))?;
    serve(&mut storm);
    Ok(())
}

/// The only thread that takes the signals; its registers are live nearly always.
fn receive(queued: &[i32]) {
    let Ok(stack) = Region::anon(ALT_STACK_LEN) else {
        die("no alternative stack")
    };
    ALT_STACK.store(stack.addr(), SeqCst);
    let alt = libc::stack_t {
        ss_sp: stack.ptr(),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    // SAFETY: the stack is ours and never unmapped.
    unsafe { libc::sigaltstack(&raw const alt, null_mut()) };
    let blocked: Vec<i32> = ALWAYS_BLOCKED
        .iter()
        .map(|i| libc::SIGRTMIN() + i)
        .collect();
    let mut watch = Watch::new(99, Level::best(), 50_000);
    mask(libc::SIG_UNBLOCK, &[queued, &[libc::SIGALRM]].concat());
    loop {
        if let Err(wrong) = watch.round() {
            die(&wrong.to_string());
        }
        if let Some(lost) = blocked.iter().find(|&&signal| !is_blocked(signal)) {
            die(&format!("signal {lost} is not blocked any more"));
        }
    }
}

/// The child that queues signals, and the pipe on which it tells how many.
struct Sender {
    stop: Option<OwnedFd>,
    report: File,
}

impl Sender {
    fn start() -> io::Result<Self> {
        let (stop_end, stop) = pipe()?;
        let (report, report_end) = pipe()?;
        // SAFETY: no preconditions.
        let parent = unsafe { libc::getpid() };
        let stop_number = std::os::fd::AsRawFd::as_raw_fd(&stop);
        fork(move || {
            // SAFETY: the child's copy of the write end; open, it would hide the end.
            unsafe { libc::close(stop_number) };
            let n_sent = queue_until_stopped(parent, &stop_end);
            let text: Vec<String> = n_sent.iter().map(u64::to_string).collect();
            let written =
                io::Write::write_all(&mut File::from(report_end), text.join(" ").as_bytes());
            i32::from(written.is_err())
        })?;
        Ok(Self {
            stop: Some(stop),
            report: report.into(),
        })
    }

    /// Stops the child and answers how many signals of each number it has queued.
    fn finish(&mut self) -> io::Result<Vec<u64>> {
        self.stop = None;
        let mut text = String::new();
        self.report.read_to_string(&mut text)?;
        Ok(text.split(' ').filter_map(|n| n.parse().ok()).collect())
    }
}

fn queue_until_stopped(parent: i32, stop: &OwnedFd) -> [u64; N_QUEUED] {
    let mut n_sent = [0u64; N_QUEUED];
    let mut request = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(stop),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one writable request. 1 ms per round makes some 1000 signals a second of
    // each number, also while the target is held: they must wait in its queue.
    while unsafe { libc::poll(&raw mut request, 1, 1) } == 0 {
        for (i, n) in n_sent.iter_mut().enumerate() {
            let value = libc::sigval {
                sival_ptr: std::ptr::without_provenance_mut(*n as usize),
            };
            // SAFETY: a signal to our parent, which handles it. A full queue (EAGAIN) is
            // tried again in the next round.
            if unsafe { libc::sigqueue(parent, libc::SIGRTMIN() + i as i32, value) } == 0 {
                *n += 1;
            }
        }
    }
    n_sent
}

struct Storm {
    sender: Sender,
}

impl Storm {
    /// Waits until more alarms and more queued signals have come.
    fn wait_for_more(&self) -> Result<(), Wrong> {
        let before = (N_ALARMS.load(SeqCst), N_RECEIVED[0].load(SeqCst));
        let deadline = Instant::now() + Duration::from_secs(20);
        while N_ALARMS.load(SeqCst) < before.0 + 5 || N_RECEIVED[0].load(SeqCst) < before.1 + 5 {
            if Instant::now() > deadline {
                return Err(Wrong::state("no more signals arrive"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Wrong> {
        self.wait_for_more()?;
        if OUT_OF_ORDER.load(SeqCst) {
            return Err(Wrong::state(
                "a queued signal was lost, doubled or overtaken",
            ));
        }
        if OFF_STACK.load(SeqCst) {
            return Err(Wrong::state(
                "a handler ran outside of the alternative stack",
            ));
        }
        Ok(())
    }

    /// Stops the sender and counts what has arrived.
    fn settle(&mut self) -> Result<String, Wrong> {
        let n_sent = self
            .sender
            .finish()
            .map_err(|err| Wrong::state(format!("ask the sender: {err}")))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let n_received: Vec<u64> = N_RECEIVED.iter().map(|n| n.load(SeqCst)).collect();
            if n_received == n_sent {
                return Ok(format!("settled {n_received:?}"));
            }
            if Instant::now() > deadline {
                return Err(Wrong::state(format!(
                    "sent {n_sent:?}, received {n_received:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Victim for Storm {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.check().map(|()| N_ALARMS.load(SeqCst))
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        (word == "settle").then(|| self.settle().unwrap_or_else(|wrong| wrong.to_string()))
    }
}

// ---- handlers that look at memory -----------------------------------------

static WATCHED: OnceLock<(Region, Rule)> = OnceLock::new();
static N_HANDLED: [AtomicU64; 65] = [const { AtomicU64::new(0) }; 65];
static N_WRONG: AtomicU64 = AtomicU64::new(0);

/// Counts the signal and checks all memory: a handler that runs before the restore sees
/// what is missing.
extern "C" fn on_watched(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    N_HANDLED[signal as usize].fetch_add(1, SeqCst);
    let Some((region, rule)) = WATCHED.get() else {
        return;
    };
    // No allocation in a handler. Pages here are at most 64 KiB.
    let mut scratch = [0u8; 64 << 10];
    let scratch = &mut scratch[..page_len()];
    if rule
        .check_with(region.addr() as u64, region.addr(), region.bytes(), scratch)
        .is_err()
    {
        N_WRONG.fetch_add(1, SeqCst);
    }
}

/// Mode `handlers`: `signals=15,10,17 size=32M content=dense`: handlers that check memory.
pub(crate) fn run_handlers(opts: &Opts) -> io::Result<()> {
    let signals: Vec<i32> = opts
        .text("signals", "15")
        .split(',')
        .filter_map(|n| n.parse().ok())
        .collect();
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: opts.number("seed", 1),
    };
    let mut region = Region::anon(opts.len("size", 32 << 20))?;
    opts.done();
    region.fill(rule);
    WATCHED.get_or_init(|| (region, rule));
    for &signal in &signals {
        handle(signal, on_watched, libc::SA_RESTART)?;
    }
    serve(&mut Handlers {
        region,
        rule,
        signals,
    });
    Ok(())
}

struct Handlers {
    region: Region,
    rule: Rule,
    signals: Vec<i32>,
}

impl Victim for Handlers {
    fn verify(&mut self) -> Result<u64, Wrong> {
        match N_WRONG.load(SeqCst) {
            0 => self.region.check(self.rule),
            n => Err(Wrong::state(format!("{n} handlers found wrong memory"))),
        }
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        let count = |&signal: &i32| format!("{signal}={}", N_HANDLED[signal as usize].load(SeqCst));
        (word == "stat").then(|| self.signals.iter().map(count).collect::<Vec<_>>().join(" "))
    }
}

// ---- SIGTRAP ----------------------------------------------------------------

static N_TRAPS: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    N_TRAPS.fetch_add(1, SeqCst);
}

/// Mode `sigtrap`: `how=blocked|pending|ignored|handled size=8M`.
pub(crate) fn run_sigtrap(opts: &Opts) -> io::Result<()> {
    let how = opts.text("how", "blocked");
    let rule = Rule {
        content: Content::Random,
        seed: 5,
    };
    let mut region = Region::anon(opts.len("size", 8 << 20))?;
    opts.done();
    region.fill(rule);
    match how.as_str() {
        "blocked" | "pending" => mask(libc::SIG_BLOCK, &[libc::SIGTRAP]),
        // SAFETY: no handler is called.
        "ignored" => drop(unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) }),
        "handled" => handle(libc::SIGTRAP, on_trap, libc::SA_RESTART)?,
        _ => die(&format!("unknown way `{how}` to treat SIGTRAP")),
    }
    if how == "pending" {
        raise_trap();
    }
    serve(&mut Trap {
        how,
        region,
        rule,
        n_raised: 0,
    });
    Ok(())
}

fn raise_trap() {
    // SAFETY: no preconditions.
    unsafe { libc::raise(libc::SIGTRAP) };
}

/// Whether a SIGTRAP waits to be unblocked.
fn trap_is_pending() -> bool {
    // SAFETY: only reads the set.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, libc::SIGTRAP) == 1
    }
}

struct Trap {
    how: String,
    region: Region,
    rule: Rule,
    n_raised: i32,
}

impl Trap {
    fn state(&self) -> Result<(), Wrong> {
        let (blocked, pending, action) = (
            is_blocked(libc::SIGTRAP),
            trap_is_pending(),
            disposition(libc::SIGTRAP),
        );
        let right = match self.how.as_str() {
            "blocked" => blocked && !pending && action == libc::SIG_DFL,
            "pending" => blocked && pending && action == libc::SIG_DFL,
            "ignored" => !blocked && !pending && action == libc::SIG_IGN,
            _ => !blocked && !pending && action == on_trap as *const () as usize,
        };
        let found = format!(
            "SIGTRAP was {}, is blocked={blocked} pending={pending} action={action:#x}",
            self.how
        );
        if right {
            Ok(())
        } else {
            Err(Wrong::state(found))
        }
    }
}

impl Victim for Trap {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.state()?;
        // Ignored and handled ones are raised for real: the target must survive its own.
        if matches!(self.how.as_str(), "ignored" | "handled") {
            raise_trap();
            self.n_raised += 1;
        }
        let want = if self.how == "handled" {
            self.n_raised
        } else {
            0
        };
        let got = N_TRAPS.load(SeqCst);
        if got != want {
            return Err(Wrong::state(format!(
                "the SIGTRAP handler ran {got} times, want {want}"
            )));
        }
        self.region.check(self.rule)
    }
}
