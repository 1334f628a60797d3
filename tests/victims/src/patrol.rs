//! Mode `patrol`: threads that walk their part of the memory for ever, check every page
//! and rewrite some, so that wrong memory is seen at the very moment when it is read.
//!
//! ```text
//!   memory       │ part of thread 0 │ part of thread 1 │ …     page p: rule(seed + generation[p])
//!   generation   │ one number a page, that of its last rewriting
//!   DIR/seen     │ shared with a file: 0, or the address of what was seen wrong
//! ```
//!
//! A page that comes back from an older image is as wrong as one of zeros: its generation
//! is another. `seen` is mapped shared: it tells even if the victim is killed in the
//! moment after.
//!
//! Options: `size=64M threads=4 seed=1 dir=DIR habit=none|mremap|onto|grow|dontneed|munmap vmas=1`.
//! A habit is one more thread, which also moves, drops or unmaps memory of its own without end, `onto`
//! to where other memory was; or lets it `grow`, and the kernel write into what is new. With `threads=0`
//! the first thread walks alone, and never sleeps. The memory, and that which is dropped, is as
//! many mappings as `vmas` says.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sys::page_len;
use crate::talk::{Victim, Wrong, die, serve, serve_without_rest};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages between two naps, and the nap: a thread checks some 200 MiB a second, and a
/// machine with two CPUs is not busy with the victim alone.
const N_PAGES_PER_BEAT: usize = 64;
const NAP: Duration = Duration::from_millis(1);
/// Every so many pages one is rewritten.
const REWRITE_EVERY: usize = 61;
/// Length of the memory that a habit moves or drops.
const HABIT_LEN: usize = 2 << 20;
/// How long a round may take before the thread counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// Runs the mode.
///
/// # Errors
/// When memory, threads or the file cannot be had.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let (len, n_threads) = (opts.len("size", 64 << 20), opts.len("threads", 4));
    let rule = Rule {
        content: Content::Dense,
        seed: opts.number("seed", 1) << 32,
    };
    let (dir, habit) = (opts.text("dir", ""), opts.text("habit", "none"));
    let n_vmas = opts.len("vmas", 1);
    opts.done();
    let seen = Seen::open(&dir)?;
    let whole = Region::anon(len)?;
    split(whole, n_vmas)?;
    if n_threads == 0 {
        serve_without_rest(&mut Beat::new(whole, rule, seen));
        return Ok(());
    }
    let part_len = len / n_threads / page_len() * page_len();
    let mut rounds = Vec::new();
    for i in 0..n_threads {
        let mut beat = Beat::new(whole.part(i * part_len, part_len), rule, seen);
        rounds.push(spawn(move || beat.round(NAP))?);
    }
    match habit.as_str() {
        "none" => {}
        "mremap" => rounds.push(spawn(mover(rule, seen)?)?),
        "onto" => rounds.push(spawn(settler(rule, seen)?)?),
        "grow" => rounds.push(spawn(grower(rule, seen)?)?),
        "munmap" => rounds.push(spawn(unmapper(rule, seen, n_vmas)?)?),
        "dontneed" => rounds.push(spawn(dropper(rule, seen, n_vmas)?)?),
        _ => die(&format!("unknown habit `{habit}`")),
    }
    let mut patrol = Patrol {
        rounds,
        whole,
        len_bytes: (part_len * n_threads) as u64,
    };
    patrol
        .verify()
        .map_err(|wrong| io::Error::other(wrong.to_string()))?;
    serve(&mut patrol);
    Ok(())
}

/// Makes mappings of `region` that touch and cannot be merged: every other one is not forked.
fn split(region: Region, n_vmas: usize) -> io::Result<()> {
    let len = part_len(region, n_vmas);
    let others = (len..region.len()).step_by(2 * len);
    others
        .map(|at| region.part(at, len.min(region.len() - at)))
        .try_for_each(|part| part.advise(libc::MADV_DONTFORK))
}

fn part_len(region: Region, n_vmas: usize) -> usize {
    (region.len() / n_vmas.max(1)).next_multiple_of(page_len())
}

/// A thread that makes rounds for ever, and their count.
fn spawn(mut round: impl FnMut() + Send + 'static) -> io::Result<Arc<AtomicU64>> {
    let counter = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&counter);
    std::thread::Builder::new().spawn(move || {
        loop {
            round();
            shared.fetch_add(1, Ordering::Release);
        }
    })?;
    Ok(counter)
}

/// The word that outlives the victim.
#[derive(Clone, Copy)]
struct Seen(Region);

impl Seen {
    /// `DIR/seen`; without a directory nobody reads it.
    fn open(dir: &str) -> io::Result<Self> {
        let (prot, len) = (libc::PROT_READ | libc::PROT_WRITE, page_len());
        if dir.is_empty() {
            return Region::anon(len).map(Self);
        }
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(Path::new(dir).join("seen"))?;
        file.set_len(len as u64)?;
        Region::map(len, prot, libc::MAP_SHARED, Some((file.as_fd(), 0))).map(Self)
    }

    /// Writes down what was seen, then says it: the second may not be possible any more.
    fn tell(self, wrong: &Wrong) -> ! {
        // SAFETY: a mapping of one page that is never unmapped; whoever writes it too
        // has seen something wrong as well.
        unsafe {
            self.0
                .ptr()
                .cast::<u64>()
                .write_volatile(wrong.addr as u64 | 1)
        };
        die(&format!("{wrong} (seen by a patrol)"))
    }
}

/// What one thread walks.
struct Beat {
    part: Region,
    generations: Vec<u64>,
    rule: Rule,
    seen: Seen,
    scratch: Vec<u8>,
    n_rounds: usize,
}

impl Beat {
    fn new(mut part: Region, rule: Rule, seen: Seen) -> Self {
        part.fill(rule);
        Self {
            part,
            generations: vec![0; part.len() / page_len()],
            rule,
            seen,
            scratch: vec![0; page_len()],
            n_rounds: 0,
        }
    }

    /// Checks every page once, and rewrites some.
    fn round(&mut self, nap: Duration) {
        for n in 0..self.generations.len() {
            self.check(n);
            if (n + self.n_rounds).is_multiple_of(REWRITE_EVERY) {
                self.rewrite(n);
            }
            if n % N_PAGES_PER_BEAT == 0 && !nap.is_zero() {
                std::thread::sleep(nap);
            }
        }
        self.n_rounds += 1;
    }

    fn page(&self, n: usize) -> Region {
        self.part.part(n * page_len(), page_len())
    }

    fn rule_of(&self, n: usize) -> Rule {
        Rule {
            seed: self.rule.seed + self.generations[n],
            ..self.rule
        }
    }

    fn check(&mut self, n: usize) {
        let (page, rule) = (self.page(n), self.rule_of(n));
        let key = page.addr() as u64;
        if let Err(wrong) = rule.check_with(key, page.addr(), page.bytes(), &mut self.scratch) {
            self.seen.tell(&wrong);
        }
    }

    fn rewrite(&mut self, n: usize) {
        self.generations[n] += 1;
        let (mut page, rule) = (self.page(n), self.rule_of(n));
        rule.page(page.addr() as u64, page.bytes_mut());
    }
}

impl Victim for Beat {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.round(Duration::ZERO);
        Ok(self.part.len() as u64)
    }
}

/// Rounds of a thread that moves its memory to and fro. What it holds follows from the
/// first address, wherever it lies now.
fn mover(rule: Rule, seen: Seen) -> io::Result<impl FnMut() + Send + 'static> {
    let mut now = Region::anon(HABIT_LEN)?;
    let key = now.addr() as u64;
    rule.fill(key, now.bytes_mut());
    let mut other = Region::anon(HABIT_LEN)?;
    Ok(move || {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are ours alone and equally long, and no reference leads
        // into either of them.
        let moved = unsafe { libc::mremap(now.ptr(), now.len(), now.len(), flags, other.ptr()) };
        if moved == libc::MAP_FAILED {
            die(&format!("mremap: {}", io::Error::last_os_error()));
        }
        std::mem::swap(&mut now, &mut other);
        if let Err(wrong) = rule.check(key, now.addr(), now.bytes()) {
            seen.tell(&wrong);
        }
        other = match Region::anon(HABIT_LEN) {
            Ok(region) => region,
            Err(err) => die(&format!("map: {err}")),
        };
        std::thread::sleep(NAP);
    })
}

/// Rounds of a thread that unmaps memory, moves other memory to its place, and lets that grow to
/// the place of still other memory.
fn settler(rule: Rule, seen: Seen) -> io::Result<impl FnMut() + Send + 'static> {
    const PART: usize = HABIT_LEN / 4;
    let zeros = Rule {
        content: Content::Zero,
        ..rule
    };
    let whole = Region::anon(HABIT_LEN)?;
    let [mut first, mut second, mut third] = [0, 1, 3].map(|n| whole.part(n * PART, PART));
    let (there, here) = (first.addr() as u64, third.addr() as u64);
    [first, second, third]
        .iter_mut()
        .for_each(|it| it.fill(rule));
    Ok(move || {
        std::thread::sleep(NAP);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: all of it is this thread's alone, and no reference leads into it.
        let moved = unsafe {
            libc::munmap(first.ptr(), 2 * PART);
            libc::mremap(third.ptr(), PART, PART, flags, first.ptr())
        };
        // SAFETY: as above; nothing else is behind it now.
        let grown = unsafe { libc::mremap(first.ptr(), PART, 2 * PART, 0) };
        if moved != first.ptr() || grown != first.ptr() {
            die(&format!("mremap: {}", io::Error::last_os_error()));
        }
        let checked = rule.check(here, first.addr(), first.bytes());
        if let Err(wrong) = checked.and_then(|_| second.check(zeros)) {
            seen.tell(&wrong);
        }
        rule.fill(there, first.bytes_mut());
        second.fill(rule);
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
        );
        // SAFETY: as above.
        let anew = unsafe { libc::mmap(third.ptr(), PART, prot, flags, -1, 0) };
        if anew != third.ptr() {
            die(&format!("map anew: {}", io::Error::last_os_error()));
        }
        third.fill(rule);
    })
}

/// Rounds of a thread whose memory grows, has the kernel write into what is new, and shrinks.
fn grower(rule: Rule, seen: Seen) -> io::Result<impl FnMut() + Send + 'static> {
    const PART: usize = HABIT_LEN / 2;
    /// What the kernel maps later comes to the end of a gap.
    const GAP: usize = 1 << 30;
    let zeros = Rule {
        content: Content::Zero,
        ..rule
    };
    let whole = Region::anon(PART + GAP)?;
    let [mut old, new] = [0, PART].map(|at| whole.part(at, PART));
    old.fill(rule);
    let source = File::open("/dev/zero")?;
    // SAFETY: it is this thread's alone, and no reference leads into it.
    unsafe { libc::munmap(new.ptr(), GAP) };
    Ok(move || {
        std::thread::sleep(NAP);
        // SAFETY: as above; nothing else is behind it now.
        let grown = unsafe { libc::mremap(old.ptr(), PART, 2 * PART, 0) };
        if grown != old.ptr() {
            die(&format!("mremap: {}", io::Error::last_os_error()));
        }
        let mut n_done = 0;
        while n_done < PART {
            let rest = new.part(n_done, PART - n_done);
            // A signal ends it early. SAFETY: as above.
            match unsafe { libc::read(source.as_raw_fd(), rest.ptr(), rest.len()) } {
                n_read @ 1.. => n_done += n_read as usize,
                _ => die(&format!("read: {}", io::Error::last_os_error())),
            }
        }
        let checked = old.check(rule);
        if let Err(wrong) = checked.and_then(|_| new.check(zeros)) {
            seen.tell(&wrong);
        }
        // SAFETY: as above.
        unsafe { libc::munmap(new.ptr(), PART) };
    })
}

/// Rounds of a thread that drops its memory, sees zeros, and fills it again.
fn dropper(rule: Rule, seen: Seen, n_vmas: usize) -> io::Result<impl FnMut() + Send + 'static> {
    let zeros = Rule {
        content: Content::Zero,
        ..rule
    };
    let mut region = Region::anon(HABIT_LEN)?;
    split(region, n_vmas)?;
    Ok(move || {
        region.fill(rule);
        std::thread::sleep(NAP);
        let checked = region.check(rule);
        if let Err(err) = region.advise(libc::MADV_DONTNEED) {
            die(&format!("madvise: {err}"));
        }
        std::thread::sleep(NAP);
        if let Err(wrong) = checked.and_then(|_| region.check(zeros)) {
            seen.tell(&wrong);
        }
    })
}

/// Rounds of a thread that takes a part out of its memory, and puts a new one there.
fn unmapper(rule: Rule, seen: Seen, n_vmas: usize) -> io::Result<impl FnMut() + Send + 'static> {
    let mut region = Region::anon(HABIT_LEN)?;
    region.fill(rule);
    split(region, n_vmas)?;
    let len = part_len(region, n_vmas);
    let mut parts = (0..region.len()).step_by(len).cycle();
    Ok(move || {
        let Some(mut part) = parts.next().map(|at| region.part(at, len)) else {
            die("no part");
        };
        if let Err(wrong) = region.check(rule) {
            seen.tell(&wrong);
        }
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
        );
        // SAFETY: the part is this thread's alone, and no reference leads into it.
        let is_gone = unsafe { libc::munmap(part.ptr(), part.len()) } == 0;
        std::thread::sleep(NAP);
        // SAFETY: as above; nothing else is there now.
        let there = unsafe { libc::mmap(part.ptr(), part.len(), prot, flags, -1, 0) };
        if !is_gone || there != part.ptr() {
            die(&format!("map anew: {}", io::Error::last_os_error()));
        }
        part.fill(rule);
        std::thread::sleep(NAP);
    })
}

struct Patrol {
    rounds: Vec<Arc<AtomicU64>>,
    whole: Region,
    len_bytes: u64,
}

impl Victim for Patrol {
    /// Waits until every thread has made a whole round that began after now.
    fn verify(&mut self) -> Result<u64, Wrong> {
        let before: Vec<u64> = self
            .rounds
            .iter()
            .map(|n| n.load(Ordering::Acquire))
            .collect();
        let deadline = Instant::now() + LOST_AFTER;
        for (i, counter) in self.rounds.iter().enumerate() {
            while counter.load(Ordering::Acquire) < before[i] + 2 {
                if Instant::now() > deadline {
                    return Err(Wrong::state(format!("thread {i} does not go on")));
                }
                std::thread::sleep(NAP);
            }
        }
        Ok(self.len_bytes)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        // For a test that changes it behind our back.
        (word == "where").then(|| format!("{:#x}", self.whole.addr()))
    }
}
