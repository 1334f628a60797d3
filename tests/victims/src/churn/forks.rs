//! Mode `forks`: children without end, each of which looks at the memory.
//!
//! | `how`     | a child is                                                            |
//! |-----------|-----------------------------------------------------------------------|
//! | `fork`    | a copy, whose pages are shared until somebody writes                  |
//! | `spawn`   | another program, by vfork: its parent waits uninterruptibly meanwhile |
//! | `sharing` | a process on the very same memory, for a few milliseconds             |
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sys::check;
use crate::talk::{Victim, Wrong, die, serve};
use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static N_CHILDREN: AtomicU64 = AtomicU64::new(0);
/// What a child exits with when it found the memory wrong.
const FOUND_WRONG: i32 = 71;

/// `how=fork|spawn|sharing pause=MICROSECONDS size=4M`.
pub(crate) fn run_forks(opts: &Opts) -> io::Result<()> {
    let how = opts.text("how", "fork");
    let pause = Duration::from_micros(opts.number("pause", 1000));
    let rule = Rule {
        content: Content::Random,
        seed: opts.number("seed", 1),
    };
    let mut region = Region::anon(opts.len("size", 4 << 20))?;
    opts.done();
    region.fill(rule);
    // A thread of its own has children; the first one talks.
    std::thread::spawn(move || {
        loop {
            let born = match how.as_str() {
                "fork" => fork(region),
                "spawn" => spawn(),
                "sharing" => share(region),
                _ => die(&format!("unknown way `{how}` to have children")),
            };
            if let Err(err) = born {
                die(&format!(
                    "child {}: {err}",
                    N_CHILDREN.load(Ordering::SeqCst)
                ));
            }
            N_CHILDREN.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(pause);
        }
    });
    let mut parent = Parent { region, rule };
    parent
        .more()
        .map_err(|wrong| io::Error::other(wrong.to_string()))?;
    serve(&mut parent);
    Ok(())
}

struct Parent {
    region: Region,
    rule: Rule,
}

impl Parent {
    /// Waits until more children have been born and found everything right.
    fn more(&self) -> Result<(), Wrong> {
        let want = N_CHILDREN.load(Ordering::SeqCst) + 5;
        super::wait(|| N_CHILDREN.load(Ordering::SeqCst), want)
    }
}

impl Victim for Parent {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.more()?;
        self.region.check(self.rule)
    }
}

/// The first word of each page, summed: a dropped page reads as zeros and changes it.
/// Safe after a fork of a process with threads: no allocation, no lock.
fn sum(region: Region) -> u64 {
    let word = |page: Region| u64::from_ne_bytes(std::array::from_fn(|i| page.bytes()[i]));
    region.every(0, 1).fold(0, |sum, page| sum ^ word(page))
}

/// Waits for the child and looks at what it says.
fn reap(pid: i32) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: a child of ours, a writable status.
    check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) })?;
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        return Ok(());
    }
    let found = if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == FOUND_WRONG {
        ": it found wrong memory"
    } else {
        ""
    };
    Err(io::Error::other(format!("wait status {status:#x}{found}")))
}

fn fork(region: Region) -> io::Result<()> {
    let want = sum(region);
    // SAFETY: the child only reads memory and exits.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        let status = if sum(region) == want { 0 } else { FOUND_WRONG };
        // SAFETY: no preconditions.
        unsafe { libc::_exit(status) };
    }
    reap(pid)
}

fn spawn() -> io::Result<()> {
    let status = std::process::Command::new("/bin/true").status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(status.to_string()))
    }
}

/// What a sharing child gets.
struct Task {
    region: Region,
    want: u64,
}

fn share(region: Region) -> io::Result<()> {
    extern "C" fn look(task: *mut c_void) -> i32 {
        // SAFETY: `share` keeps the task alive until this process has been reaped.
        let task = unsafe { &*task.cast::<Task>() };
        // Some ten milliseconds of looking: as long as a checkpoint needs to begin.
        let right = (0..400).all(|_| sum(task.region) == task.want);
        // SAFETY: a raw exit: the C library must not run handlers of the parent's.
        unsafe { libc::syscall(libc::SYS_exit, if right { 0 } else { FOUND_WRONG }) };
        0
    }
    let task = Task {
        region,
        want: sum(region),
    };
    let stack = Region::anon(64 << 10)?;
    let top = stack.part(stack.len() - 64, 64).ptr();
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: a stack of its own; `look` reads memory that outlives it.
    let pid = check(unsafe { libc::clone(look, top, flags, (&raw const task).cast_mut().cast()) })?;
    let outcome = reap(pid);
    // SAFETY: the child that used it is gone.
    unsafe { libc::munmap(stack.ptr(), stack.len()) };
    outcome
}
