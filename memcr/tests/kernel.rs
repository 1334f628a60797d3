//! Freeze and inject against real processes of our own. Needs the right to trace a
//! child (every user has it unless a policy forbids it) and says so when it has not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use memcr::freeze::{Frozen, Target, freeze};
use memcr::inject::{Borrowed, Site};
use memcr::maps::vma;
use memcr::pipeline::Cancel;
use memcr::sys::arch::nr;
use memcr::sys::proc_mem::ProcMem;
use memcr::sys::procfs::Status;
use memcr::sys::ptrace;
use memcr::sys::wait::{self, WaitStatus};
use memcr_parasite::Entry;

/// A `cat` that answers each line: proof that a blocked read goes on.
struct Cat(Child);

impl Cat {
    fn start() -> Self {
        Self(
            Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn still_answers(mut self) {
        self.0
            .stdin
            .take()
            .unwrap()
            .write_all(b"still here\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "still here\n");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        // After a failed test it may still be there; after a good one both calls do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn frozen(pid: i32) -> Frozen {
    freeze(Target::examine(pid).unwrap(), &Cancel::new()).unwrap()
}

fn site(pid: i32) -> Site {
    let vmas = vma::parse(&std::fs::read(format!("/proc/{pid}/maps")).unwrap()).unwrap();
    Site::find(pid, &vmas, &ProcMem::open(pid).unwrap()).unwrap()
}

fn maps(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

#[test]
fn a_frozen_process_goes_on_reading() {
    let cat = Cat::start();
    let frozen = frozen(cat.pid());
    assert_eq!(Status::of_process(cat.pid()).unwrap().state(), 't');
    frozen.release().unwrap();
    cat.still_answers();
}

#[test]
fn single_calls_and_tables_answer_and_leave_no_trace() {
    let cat = Cat::start();
    let mut frozen = frozen(cat.pid());
    let (before, site) = (maps(cat.pid()), site(cat.pid()));
    let mut borrowed = Borrowed::take(&mut frozen, site, None).unwrap();
    assert_eq!(
        borrowed.call(libc::SYS_getpid as u64, [0; 6]).unwrap(),
        i64::from(cat.pid())
    );
    let mut entries = vec![
        Entry {
            nr: libc::SYS_getpid as u64,
            ..Entry::default()
        };
        3000
    ];
    entries[2999] = Entry {
        nr: nr::MUNMAP,
        args: [1, 1, 0, 0, 0, 0],
        ret: 0,
    };
    assert!(borrowed.infect().unwrap());
    borrowed.run(&mut entries).unwrap();
    assert!(
        entries[..2999]
            .iter()
            .all(|entry| entry.ret == i64::from(cat.pid()))
    );
    assert_eq!(entries[2999].ret, -i64::from(libc::EINVAL));
    assert_ne!(
        maps(cat.pid()),
        before,
        "the parasite is mapped while it is used"
    );
    borrowed.cure().unwrap();
    borrowed.give_back().unwrap();
    assert_eq!(maps(cat.pid()), before);
    frozen.release().unwrap();
    cat.still_answers();
}

#[test]
fn a_frozen_value_that_is_dropped_lets_the_target_go() {
    let cat = Cat::start();
    drop(frozen(cat.pid()));
    cat.still_answers();
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut cat = Cat::start();
    let pid = rustix::process::Pid::from_child(&cat.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let state = || {
        Status::of_process(pid.as_raw_nonzero().get())
            .unwrap()
            .state()
    };
    while state() != 'T' {
        std::thread::yield_now();
    }
    let mut frozen = frozen(cat.pid());
    let site = site(cat.pid());
    let mut borrowed = Borrowed::take(&mut frozen, site, None).unwrap();
    assert_eq!(
        borrowed.call(libc::SYS_getpid as u64, [0; 6]).unwrap(),
        i64::from(cat.pid())
    );
    borrowed.give_back().unwrap();
    frozen.release().unwrap();
    // On its way from the tracing stop it may be seen running for a moment.
    while state() != 'T' {
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    cat.0.stdin.as_mut().unwrap().flush().unwrap();
    cat.still_answers();
}

#[test]
fn a_stop_during_a_remote_call_and_a_continue_after_it_keep_their_order() {
    let cat = Cat::start();
    let pid = rustix::process::Pid::from_child(&cat.0);
    let mut frozen = frozen(cat.pid());
    let site = site(cat.pid());
    let mut borrowed = Borrowed::take(&mut frozen, site, None).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    for _ in 0..3 {
        let answer = borrowed.call(libc::SYS_getpid as u64, [0; 6]).unwrap();
        assert_eq!(answer, i64::from(cat.pid()));
    }
    borrowed.give_back().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    frozen.release().unwrap();
    let state = || Status::of_process(cat.pid()).unwrap().state();
    while !matches!(state(), 'S' | 'T') {
        std::thread::yield_now();
    }
    assert_eq!(state(), 'S', "the stop came first");
    cat.still_answers();
}

/// What `take_end` is asked while a stop waits to be told.
#[test]
fn taking_notice_of_ends_leaves_stops_alone() {
    let mut cat = Cat::start();
    let pid = cat.pid();
    ptrace::seize(pid, 0).unwrap();
    ptrace::interrupt(pid).unwrap();
    while Status::of_process(pid).unwrap().state() != 't' {
        std::thread::yield_now();
    }
    assert!(!wait::take_end(pid));
    let told = wait::try_wait(pid).unwrap();
    assert!(
        matches!(told, Some(WaitStatus::EventStop(_, libc::SIGTRAP))),
        "{told:?}"
    );
    cat.0.kill().unwrap();
    while Status::of_process(pid).unwrap().state() != 'Z' {
        std::thread::yield_now();
    }
    assert!(wait::take_end(pid));
}

/// Waits until it sleeps in its read.
fn wait_until_it_reads(pid: i32) {
    let reads = format!("{} ", libc::SYS_read);
    let syscall = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    while !syscall().starts_with(&reads) {
        std::thread::yield_now();
    }
}

#[test]
fn a_process_that_sleeps_is_known_to_have_slept() {
    // A thread that loses its CPU on the way into the stop counts as one that has run.
    let has_slept = || {
        let cat = Cat::start();
        wait_until_it_reads(cat.pid());
        let frozen = frozen(cat.pid());
        let has_slept = frozen.has_slept();
        frozen.release().unwrap();
        cat.still_answers();
        has_slept
    };
    assert!((0..5).any(|_| has_slept()));
}

#[test]
fn a_process_that_was_woken_is_known_to_have_run() {
    let mut cat = Cat::start();
    wait_until_it_reads(cat.pid());
    let target = Target::examine(cat.pid()).unwrap();
    cat.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(cat.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
    wait_until_it_reads(cat.pid());
    let frozen = freeze(target, &Cancel::new()).unwrap();
    assert!(!frozen.has_slept());
    frozen.release().unwrap();
    cat.still_answers();
}
