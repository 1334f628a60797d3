//! Mode `rseq`: threads that live in restartable sequences.
//!
//! Each thread adds to the counter of the CPU it runs on, without atomics, inside a
//! restartable sequence of its own:
//!
//! ```text
//!   1  rseq_cs = &descriptor(2..5, abort at 6)
//!   2  cpu_id changed since it was read? → 6
//!   3  read counter[cpu], spin a little, add 1      a stop here must lead to 6
//!   4  store counter[cpu]                           the commit
//!   5  count one more for this thread
//!   6  abort: try again
//! ```
//!
//! If a stop inside is not turned into an abort, two threads may commit on the same old
//! value and the sum over the CPUs falls behind the sum over the threads.
#![allow(unsafe_code)]

use crate::opts::Opts;
use crate::region::Region;
use crate::talk::{Victim, Wrong, serve};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MAX_CPUS: usize = 1024;
/// Two huge pages, so that one is aligned.
const HUGE_LEN: usize = 4 << 20;

/// One counter per CPU, on cache lines of their own.
#[repr(C, align(64))]
struct PerCpu([[u64; 8]; MAX_CPUS]);

static mut COUNTERS: PerCpu = PerCpu([[0; 8]; MAX_CPUS]);

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    r#"
    .section .data.victim_rseq, "aw"
    .balign 32
victim_rseq_cs:
    .long 0, 0
    .quad victim_rseq_start, victim_rseq_commit - victim_rseq_start, victim_rseq_abort

    .text
    # rdi: rseq area, rsi: counters, rdx: spins; answers 1 after a commit, 0 after an abort
victim_rseq_add:
    lea rax, [rip + victim_rseq_cs]
    mov [rdi + 8], rax
victim_rseq_start:
    mov ecx, [rdi + 4]
    shl rcx, 6
    mov r8, [rsi + rcx]
77:
    dec rdx
    jnz 77b
    add r8, 1
    mov [rsi + rcx], r8
victim_rseq_commit:
    mov eax, 1
    ret
    .long 0x53053053
victim_rseq_abort:
    xor eax, eax
    ret
"#
);

unsafe extern "C" {
    fn victim_rseq_add(area: usize, counters: *mut PerCpu, n_spins: u64) -> u32;
}

/// The calling thread's rseq area, which the C library has registered.
fn area() -> io::Result<usize> {
    // SAFETY: asks the dynamic linker for two symbols of glibc 2.35 and later and reads
    // the one word each of them is.
    let (offset, len) = unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let len = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        if offset.is_null() || len.is_null() || *len == 0 {
            return Err(io::Error::other(
                "the C library has registered no rseq area",
            ));
        }
        (*offset, *len)
    };
    debug_assert!(
        len >= 20,
        "an rseq area has at least cpu ids, a pointer and flags"
    );
    let thread_pointer: usize;
    // SAFETY: on x86_64 the word at fs:0 is the thread pointer itself.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly)) };
    Ok(thread_pointer.wrapping_add_signed(offset))
}

/// Runs the mode: `threads=4 spins=2000 first=0`; with `first=1` the first thread of the
/// process is one more of them, and huge pages are allowed somewhere: a tool that makes
/// its calls with that thread, also while memory is missing, then meets a sequence.
///
/// # Errors
/// When there is no rseq.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let (n_threads, n_spins) = (opts.len("threads", 4), opts.number("spins", 2000));
    let with_first = opts.number("first", 0) == 1;
    opts.done();
    area()?;
    let mut counts: Vec<_> = (0..n_threads).map(|_| Arc::new(Count::default())).collect();
    for count in &counts {
        let count = Arc::clone(count);
        std::thread::spawn(move || add_for_ever(&count, n_spins));
    }
    if !with_first {
        serve(&mut Rseq { counts });
        return Ok(());
    }
    Region::anon(HUGE_LEN)?.advise(libc::MADV_HUGEPAGE)?;
    let own = Arc::new(Count::default());
    counts.push(Arc::clone(&own));
    std::thread::spawn(move || {
        serve(&mut Rseq { counts });
        std::process::exit(0);
    });
    add_for_ever(&own, n_spins);
    Ok(())
}

#[derive(Default)]
struct Count {
    n_commits: AtomicU64,
    n_aborts: AtomicU64,
    /// 1: asks the thread to wait, 2: it does.
    rest: AtomicU64,
}

fn add_for_ever(count: &Count, n_spins: u64) {
    let Ok(area) = area() else { return };
    loop {
        // SAFETY: the area is this thread's; the counters are written by such sequences
        // only, and `cpu_id` is below MAX_CPUS on any machine the tests run on.
        let committed = unsafe { victim_rseq_add(area, &raw mut COUNTERS, n_spins) } == 1;
        let counter = if committed {
            &count.n_commits
        } else {
            &count.n_aborts
        };
        counter.fetch_add(1, Ordering::SeqCst);
        while count.rest.load(Ordering::SeqCst) != 0 {
            count.rest.store(2, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

struct Rseq {
    counts: Vec<Arc<Count>>,
}

impl Rseq {
    fn wait(&self, what: &str, done: impl Fn(&Count) -> bool) -> Result<(), Wrong> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.counts.iter().all(|count| done(count)) {
            if Instant::now() > deadline {
                return Err(Wrong::state(format!("a thread does not {what}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn sum(&self, of: impl Fn(&Count) -> &AtomicU64) -> u64 {
        self.counts
            .iter()
            .map(|count| of(count).load(Ordering::SeqCst))
            .sum()
    }
}

impl Victim for Rseq {
    /// Halts the threads between two sequences and compares the sums.
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.counts
            .iter()
            .for_each(|count| count.rest.store(1, Ordering::SeqCst));
        self.wait("rest", |count| count.rest.load(Ordering::SeqCst) == 2)?;
        let n_commits = self.sum(|count| &count.n_commits);
        // SAFETY: the threads rest: nobody writes.
        let n_added: u64 = unsafe { (&raw const COUNTERS).read() }
            .0
            .iter()
            .map(|line| line[0])
            .sum();
        // Stored again until seen: a thread may just have written 2 over our 0.
        self.wait("go on", |count| {
            count.rest.store(0, Ordering::SeqCst);
            count.rest.load(Ordering::SeqCst) == 0
        })?;
        if n_commits == n_added {
            return Ok(n_commits);
        }
        Err(Wrong::state(format!(
            "{n_commits} sequences were committed, the counters say {n_added}"
        )))
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        let numbers = || {
            (
                self.sum(|count| &count.n_commits),
                self.sum(|count| &count.n_aborts),
            )
        };
        (word == "stat").then(|| format!("commits={} aborts={}", numbers().0, numbers().1))
    }
}
