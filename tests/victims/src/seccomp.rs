//! Modes under rules about system calls: strict and filter seccomp, user dispatch.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::signals::handle;
use crate::sys::{errno, prctl};
use crate::talk::{Victim, Wrong, say, serve, serve_beside, verdict};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};

const SECCOMP_MODE_STRICT: u64 = 1;
const SECCOMP_MODE_FILTER: u64 = 2;

fn filled(opts: &Opts) -> io::Result<(Region, Rule)> {
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: opts.number("seed", 1),
    };
    let mut region = Region::anon(opts.len("size", 16 << 20))?;
    region.fill(rule);
    Ok((region, rule))
}

/// Mode `strict`: only read, write, exit and sigreturn are allowed from `ready` on.
pub(crate) fn run_strict(opts: &Opts) -> io::Result<()> {
    let (region, rule) = filled(opts)?;
    opts.done();
    // Allocating later would call brk or mmap: everything is allocated before.
    let mut scratch = vec![0; crate::sys::page_len()];
    prctl(libc::PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0)?;
    write_line("ready\n");
    let mut byte = 0u8;
    loop {
        // SAFETY: one writable byte. Any byte asks for a check, the end is the end.
        if unsafe { libc::read(0, (&raw mut byte).cast(), 1) } != 1 {
            // SAFETY: exit_group is forbidden, exit of the only thread is not.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
        if byte == b'\n' {
            let outcome = rule.check_with(
                region.addr() as u64,
                region.addr(),
                region.bytes(),
                &mut scratch,
            );
            write_line(if outcome.is_ok() {
                "ok 1 bytes\n"
            } else {
                "WRONG at 0x0: memory differs\n"
            });
        }
    }
}

/// `write` and nothing else.
fn write_line(line: &str) {
    // SAFETY: a readable buffer of that length.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Mode `filter`: calls that injected code might make kill the process. `late=1`: only
/// after the word `install`.
pub(crate) fn run_filter(opts: &Opts) -> io::Result<()> {
    let (region, rule) = filled(opts)?;
    let late = opts.flag("late");
    opts.done();
    let mut plain = Plain { region, rule };
    if !late {
        install_deadly()?;
    }
    serve(&mut plain);
    // An orderly exit would unmap memory, which is forbidden by now.
    // SAFETY: no preconditions.
    unsafe { libc::_exit(0) }
}

fn install_deadly() -> io::Result<()> {
    let deadly = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_userfaultfd,
        libc::SYS_process_madvise,
        libc::SYS_mprotect,
        libc::SYS_memfd_create,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_ptrace,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_madvise,
    ];
    install(&deadly, libc::SECCOMP_RET_KILL_PROCESS)
}

/// `victim keyless PROGRAM [ARG…]`: becomes the program, which may not use the kernel's keyrings,
/// as in many a container. Answers why not.
pub(crate) fn become_keyless(mut args: impl Iterator<Item = String>) -> io::Error {
    let Some(program) = args.next() else {
        return io::Error::other("a program is wanted");
    };
    let keys = [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl];
    match install(&keys, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// A classic BPF program: `answer` to any of `calls`, allow the rest.
fn install(calls: &[libc::c_long], answer: u32) -> io::Result<()> {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, offset 0: seccomp_data.nr
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let word = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = vec![word(LOAD_NUMBER, 0, 0)];
    for (i, &number) in calls.iter().enumerate() {
        // Over the rest of the list and the "allow" behind it.
        program.push(word(JUMP_IF_EQUAL, (calls.len() - i) as u8, number as u32));
    }
    program.push(word(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    program.push(word(RETURN, 0, answer));
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    prctl(
        libc::PR_SET_SECCOMP,
        SECCOMP_MODE_FILTER,
        (&raw const header).addr() as u64,
        0,
        0,
    )
    .map(drop)
}

/// What the filter of mode `answers` answers: no call ends so by itself.
const ANSWER: i32 = 77;

/// Mode `answers`: the filter answers one call itself, which the first thread and `threads=4`
/// others make without a rest. Each answer of the kernel's own is counted.
pub(crate) fn run_answers(opts: &Opts) -> io::Result<()> {
    let n_threads = opts.len("threads", 4);
    let (region, rule) = filled(opts)?;
    opts.done();
    install(
        &[libc::SYS_getppid],
        libc::SECCOMP_RET_ERRNO | ANSWER as u32,
    )?;
    // A thread that begins maps memory.
    let at_work = Arc::new(Barrier::new(n_threads + 1));
    for _ in 0..n_threads {
        let at_work = Arc::clone(&at_work);
        std::thread::spawn(move || {
            ask();
            at_work.wait();
            drop(at_work);
            loop {
                ask();
            }
        });
    }
    at_work.wait();
    let answers = Answers(Plain { region, rule });
    serve_beside(Box::new(answers), || {
        loop {
            ask();
        }
    })
}

static N_ASKED: AtomicU64 = AtomicU64::new(0);
static N_UNFILTERED: AtomicU64 = AtomicU64::new(0);

fn ask() {
    // SAFETY: getppid has no preconditions, and no answer of it means anything here.
    let answer = unsafe { libc::syscall(libc::SYS_getppid) };
    if (answer, errno()) != (-1, ANSWER) {
        N_UNFILTERED.fetch_add(1, SeqCst);
    }
    N_ASKED.fetch_add(1, SeqCst);
}

struct Answers(Plain);

impl Victim for Answers {
    fn verify(&mut self) -> Result<u64, Wrong> {
        match (N_UNFILTERED.load(SeqCst), N_ASKED.load(SeqCst)) {
            (0, _) => self.0.verify(),
            (n, of) => Err(Wrong::state(format!("{n} of {of} calls were not filtered"))),
        }
    }
}

struct Plain {
    region: Region,
    rule: Rule,
}

impl Victim for Plain {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.region.check(self.rule)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        let outcome = (word == "install").then(install_deadly)?;
        Some(outcome.map_or_else(
            |err| format!("WRONG at 0x0: {err}"),
            |()| "installed".into(),
        ))
    }
}

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
/// What the kernel reads before each call: 0 lets it through, 1 raises SIGSYS.
static mut SELECTOR: u8 = 0;

static N_CALLS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_call(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    N_CALLS.fetch_add(1, SeqCst);
}

/// Mode `dispatch`: syscall user dispatch is on (as under Wine): every call outside of
/// the C library's text raises SIGSYS, which is fatal here, or with `handled=1` has a handler.
pub(crate) fn run_dispatch(opts: &Opts) -> io::Result<()> {
    let (region, rule) = filled(opts)?;
    let handled = opts.flag("handled");
    opts.done();
    if handled {
        handle(libc::SIGSYS, on_call, 0)?;
    }
    let (start, len) = libc_text()?;
    let selector = (&raw const SELECTOR).addr() as u64;
    prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, start, len, selector)?;
    // SAFETY: only this thread writes it; the kernel only reads.
    unsafe { (&raw mut SELECTOR).write_volatile(1) };
    say("ready");
    for line in io::stdin().lines() {
        match line?.as_str() {
            // The selector still stands, and calls from the C library still pass.
            // SAFETY: as above.
            "verify" if unsafe { (&raw const SELECTOR).read_volatile() } == 1 => {
                say(&verdict(region.check(rule)))
            }
            "verify" => say("WRONG at 0x0: the selector was changed"),
            "calls" => say(&N_CALLS.load(SeqCst).to_string()),
            _ => break,
        }
    }
    Ok(())
}

/// The executable mapping of the C library.
fn libc_text() -> io::Result<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let line = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.contains("libc.so"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let parsed = range.and_then(|(start, end)| {
        let (start, end) = (
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        );
        Some((start, end - start))
    });
    parsed.ok_or_else(|| io::Error::other("no text of the C library in maps"))
}
