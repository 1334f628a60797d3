//! Interrupted calls that the kernel does not restart by itself.
//!
//! Most calls go on after a stop: the kernel restarts them, with the time that is left.
//! Some answer EINTR after any stop, even without a signal (signal(7), "Interruption of
//! system calls and library functions by stop signals"). A stop of ours must not be
//! seen, so such a thread is sent back to its call:
//!
//! ```text
//!   noted (running)          stopped                    released
//!   epoll_wait(…, 1000)      EINTR, 300 ms slept        epoll_wait(…, 700)
//!   └ asleep since when?     └ did it sleep all the time in between?
//! ```
//!
//! The kernel does not tell when a call began, but the scheduler tells when a sleeping
//! thread last ran (`se.exec_start` in `/proc/PID/task/TID/sched`, on the clock of the
//! CPU it ran on). It is read before the freeze; the count of voluntary switches shows
//! afterwards whether the thread slept on. Where the time is not known (no such file,
//! or the thread ran in between) the call begins anew with its whole timeout: too late
//! is safe, too early is not. The timeouts of sockets (SO_RCVTIMEO, SO_SNDTIMEO) are
//! not arguments of the call, so these always begin anew.
//!
//! **A shorter timeout stands in the thread's register ever after.** The kernel keeps the
//! registers of arguments, and code that makes a call by an instruction of its own may rely on
//! that: a loop that loads its timeout once would wait for what was left, from then on. (Go
//! keeps goroutines' stacks below the stack pointer, besides, where a new timespec would lie.)
//! So it is given only to a call of the C library's: its functions return behind the call, and
//! their callers take all of these registers for changed (System V ABI). Calls that others
//! make begin anew.
//!
//! EINTR stands when a signal with a handler comes first: then it is the truth. When the
//! thread goes on is known to the kernel alone, so the decision is left to it
//! ([`Regs::restarting`]): one taken here would lose a wake-up that came a moment later.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::maps::vma;
use crate::sys::arch::{ERESTARTNOHAND, InterruptedCall, Regs, nr};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::{self, Place, Status};
use crate::sys::{ptrace, sched};

/// Where a call keeps its relative timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timeout {
    /// It has none, or none of its arguments holds it.
    None,
    /// Argument with this number, milliseconds; negative: for ever.
    Millis(usize),
    /// Argument with this number, address of a `struct timespec`; null: for ever.
    Timespec(usize),
}

/// What the files of C libraries begin with, behind their directory: glibc (before 2.34
/// libpthread as well, and with versions in the names), musl.
const C_LIBRARIES: [&[u8]; 5] = [
    b"libc.so",
    b"libc-2.",
    b"libpthread.so",
    b"libpthread-2.",
    b"ld-musl-",
];

/// The calls that signal(7) lists, and others that behave alike: io_uring_enter(2),
/// sendfile(2) and splice(2) on sockets with a timeout, fallocate(2) on tmpfs, which takes
/// back what it had begun; select(2) and its like, where the time that is left cannot be
/// written to where the timeout is (a constant of the program).
fn timeout_of(call: u64) -> Option<Timeout> {
    match call {
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT => Some(Timeout::Millis(3)),
        nr::EPOLL_PWAIT2 | nr::SEMTIMEDOP => Some(Timeout::Timespec(3)),
        nr::RT_SIGTIMEDWAIT => Some(Timeout::Timespec(2)),
        nr::IO_GETEVENTS | nr::IO_PGETEVENTS => Some(Timeout::Timespec(4)),
        nr::SEMOP | nr::IO_URING_ENTER => Some(Timeout::None),
        nr::READ
        | nr::READV
        | nr::RECVFROM
        | nr::RECVMSG
        | nr::RECVMMSG
        | nr::ACCEPT
        | nr::ACCEPT4 => Some(Timeout::None),
        nr::WRITE | nr::WRITEV | nr::SENDTO | nr::SENDMSG | nr::SENDMMSG | nr::CONNECT => {
            Some(Timeout::None)
        }
        nr::SENDFILE | nr::SPLICE | nr::FALLOCATE => Some(Timeout::None),
        nr::SELECT | nr::PSELECT6 | nr::PPOLL => Some(Timeout::None),
        _ => None,
    }
}

/// The threads that slept in such a call with a timeout when the freeze began, and that a
/// shorter one may be given.
#[derive(Debug, Default)]
pub(super) struct Sleepers(HashMap<i32, Sleeper>);

#[derive(Debug)]
struct Sleeper {
    call: Place,
    /// How long it had slept when it was noted, and when that was.
    slept: Duration,
    noted: Instant,
    n_voluntary_switches: u64,
    /// How long it had slept when it was stopped; `None`: not known.
    slept_at_stop: Option<Duration>,
}

impl Sleepers {
    /// Notes who sleeps. Of a target that we may not look at, nobody.
    pub(super) fn note(pid: i32) -> Self {
        let tids = procfs::tids(pid).unwrap_or_default();
        let sleepers = tids
            .into_iter()
            .filter_map(|tid| Some((tid, Sleeper::note(pid, tid)?)));
        let mut sleepers: HashMap<_, _> = sleepers.collect();
        if !sleepers.is_empty() {
            let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
            let libraries = c_libraries(&maps);
            sleepers.retain(|_, it| libraries.iter().any(|code| code.contains(&it.call.pc)));
        }
        Self(sleepers)
    }

    /// All threads have stopped: who slept on until then?
    pub(super) fn threads_stopped(&mut self, pid: i32) {
        for (&tid, sleeper) in &mut self.0 {
            let switches = Status::of_thread(pid, tid)
                .ok()
                .and_then(|s| s.number("voluntary_ctxt_switches"));
            // Stopping is the one switch more.
            if switches == Some(sleeper.n_voluntary_switches + 1) {
                sleeper.slept_at_stop = Some(sleeper.slept + sleeper.noted.elapsed());
            }
        }
    }

    /// Sends a stopped thread back to its call, if our stop has made it answer EINTR.
    /// `has_memory`: nothing of its memory is missing. Without, a timeout that lies in
    /// memory stays what it was, until this is called again.
    pub(super) fn rewind(&self, pid: i32, tid: i32, has_memory: bool) {
        if let Ok(Some(regs)) = ptrace::registers(tid) {
            self.rewind_from(pid, tid, &regs, has_memory);
        }
    }

    /// The same, of a thread with these registers.
    pub(super) fn rewind_from(&self, pid: i32, tid: i32, regs: &Regs, has_memory: bool) {
        let Some(call) = regs.interrupted_call() else {
            return;
        };
        // The second: sent back already, by us. None of these calls answers it otherwise.
        let is_ours = [-i64::from(libc::EINTR), -ERESTARTNOHAND].contains(&call.result);
        let Some(timeout) = timeout_of(call.nr).filter(|_| is_ours) else {
            return;
        };
        let args = match timeout {
            Timeout::Timespec(_) if !has_memory => call.args,
            _ => self.args_for(pid, tid, regs, &call, timeout),
        };
        if let Err(error) = ptrace::set_registers(tid, &regs.restarting(args)) {
            tracing::debug!("thread {tid} will see EINTR: {error}");
        }
    }

    fn args_for(
        &self,
        pid: i32,
        tid: i32,
        regs: &Regs,
        call: &InterruptedCall,
        timeout: Timeout,
    ) -> [u64; 6] {
        let mut args = call.args;
        let is_same = |s: &&Sleeper| s.call.nr == call.nr && s.call.args == call.args;
        let slept = self.0.get(&tid).filter(is_same);
        let Some(slept) = slept.and_then(|sleeper| sleeper.slept_at_stop) else {
            return args;
        };
        match timeout {
            Timeout::Millis(index) => {
                // An int in a 64-bit register.
                let millis = call.args[index] as i32;
                if let Ok(millis) = u64::try_from(millis) {
                    let left = Duration::from_millis(millis).saturating_sub(slept);
                    args[index] = left.as_nanos().div_ceil(1_000_000) as u64;
                }
            }
            Timeout::Timespec(index) if args[index] != 0 => {
                if let Some(address) = shorten(pid, regs, args[index], slept) {
                    args[index] = address;
                }
            }
            Timeout::Timespec(_) | Timeout::None => {}
        }
        args
    }
}

impl Sleeper {
    fn note(pid: i32, tid: i32) -> Option<Self> {
        let call = procfs::call_of(pid, tid)?;
        let has_timeout = match timeout_of(call.nr)? {
            Timeout::None => false,
            Timeout::Millis(index) => call.args[index] as i32 > 0,
            Timeout::Timespec(index) => call.args[index] != 0,
        };
        let asleep = sched::asleep(pid, tid).filter(|_| has_timeout)?;
        Some(Self {
            call,
            slept: asleep.since,
            noted: Instant::now(),
            n_voluntary_switches: asleep.n_voluntary_switches,
            slept_at_stop: None,
        })
    }
}

/// Where code of the C library is mapped. Few lines name one, the others are not taken apart.
fn c_libraries(maps: &[u8]) -> Vec<Range<u64>> {
    let lines = maps.split(|&byte| byte == b'\n');
    let lines = lines.filter(|line| {
        let name = line.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        C_LIBRARIES.iter().any(|library| name.starts_with(library))
    });
    let vmas = lines.filter_map(|line| vma::parse(line).ok()).flatten();
    let code = vmas.filter(|vma| vma.perms.exec);
    code.map(|vma| vma.start..vma.end).collect()
}

/// Puts a timespec with the time that is left just below the red zone of the thread's
/// stack, and answers its address. The kernel reads it when the call begins, at once
/// after the release. The place belongs to nobody: the kernel itself puts signal frames
/// there. (A frame of a signal that arrives before the call begins would overwrite it;
/// the argument itself cannot be changed, it may be a constant of the program.)
fn shorten(pid: i32, regs: &Regs, address: u64, slept: Duration) -> Option<u64> {
    let memory = ProcMem::open(pid).ok()?;
    let (seconds, nanos) = (
        memory.read_u64(address).ok()?,
        memory.read_u64(address + 8).ok()?,
    );
    let whole = Duration::new(
        seconds,
        u32::try_from(nanos)
            .ok()
            .filter(|&nanos| nanos < 1_000_000_000)?,
    );
    let left = whole.saturating_sub(slept);
    let place = (regs.sp() - Regs::RED_ZONE_LEN - 16) & !15;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&left.as_secs().to_ne_bytes());
    bytes[8..].copy_from_slice(&u64::from(left.subsec_nanos()).to_ne_bytes());
    memory.write(place, &bytes).ok()?;
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_the_c_library_is_found_by_its_name() {
        let code_of = |name: &str| {
            let maps = format!(
                "1000-2000 r--p 00000000 08:01 7 {name}\n2000-5000 r-xp 00001000 08:01 7 {name}\n\
                 6000-7000 r-xp 00000000 08:01 8 /usr/bin/program\n8000-9000 r-xp 00000000 00:00 0 [vdso]\n"
            );
            c_libraries(maps.as_bytes())
        };
        let code = 0x2000..0x5000;
        let found = std::slice::from_ref(&code);
        assert_eq!(code_of("/usr/lib/x86_64-linux-gnu/libc.so.6"), found);
        assert_eq!(code_of("/lib/libc.so.6 (deleted)"), found);
        assert_eq!(code_of("/lib/x86_64-linux-gnu/libc-2.31.so"), found);
        assert_eq!(code_of("/lib/x86_64-linux-gnu/libpthread-2.31.so"), found);
        assert_eq!(code_of("/lib/ld-musl-x86_64.so.1"), found);
        assert_eq!(code_of("/usr/lib/libc++.so.1"), []);
        assert_eq!(code_of("/usr/lib/libc-client.so.2007e"), []);
        assert_eq!(code_of("/opt/libc.so.6/program"), []);
    }
}
