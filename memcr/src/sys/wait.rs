//! waitpid(2) for one tracee, and waiting for the next change with a deadline.

use std::io;
use std::time::{Duration, Instant};

/// Why a tracee does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStatus {
    /// It ended with this exit status.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
    /// Stopped before the delivery of this signal.
    SignalStop(i32),
    /// Stopped at the entry or exit of a system call.
    SyscallStop,
    /// Stopped for an event: `PTRACE_EVENT_*` and the signal beside it.
    EventStop(i32, i32),
}

/// What the kernel has to say of `tid`, a tracee of the calling thread, without
/// waiting. `Ok(None)`: nothing new.
///
/// # Errors
/// ECHILD: not (or no longer) a tracee.
pub fn try_wait(tid: i32) -> io::Result<Option<WaitStatus>> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    let result = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match super::check(result.into()) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(decode(status))),
        Err(error) => Err(error),
    }
}

/// Takes notice of the end of `tid`, a tracee of any thread of this process, and of
/// nothing else: its stops stay to be told. True when it has ended, or is no tracee.
#[must_use]
pub fn take_end(tid: i32) -> bool {
    // A tracee's stop is told whatever was asked for (wait_task_stopped() of
    // kernel/exit.c), and is told once: so look first, and take only what is an end.
    match look(tid, libc::WNOWAIT) {
        // Nothing follows an end: what is taken is what was seen, by us or, a moment
        // before, by another thread of ours.
        Ok(libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) => {
            let _ = look(tid, 0);
            true
        }
        Ok(_) => false,
        Err(_) => true,
    }
}

/// The `si_code` that waitid(2) has for `tid`; 0 when there is nothing new.
fn look(tid: i32, how: i32) -> io::Result<i32> {
    // SAFETY: a struct of integers and pointers that are not followed; zeros are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL | how;
    // SAFETY: `info` is a live siginfo_t for the kernel to fill in.
    let result = unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), &raw mut info, options) };
    super::check(result.into()).map(|_| info.si_code)
}

fn decode(status: i32) -> WaitStatus {
    if libc::WIFEXITED(status) {
        return WaitStatus::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return WaitStatus::Signaled(libc::WTERMSIG(status));
    }
    let (event, signal) = (status >> 16, libc::WSTOPSIG(status));
    match (event, signal) {
        (0, signal) if signal == libc::SIGTRAP | 0x80 => WaitStatus::SyscallStop,
        (0, signal) => WaitStatus::SignalStop(signal),
        (event, signal) => WaitStatus::EventStop(event, signal & 0x7f),
    }
}

/// Blocks SIGCHLD in the calling thread and in those it starts later: then it stays
/// pending until [`Pause::wait`] takes it, and no change is missed. A program calls it
/// first of all, before it has other threads: one that does not block the signal may be
/// given it, and loses it.
///
/// # Errors
/// None that a valid set can cause.
pub fn block_sigchld() -> io::Result<()> {
    let set = sigchld();
    // SAFETY: `set` is an initialized signal set, the old one is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Looks this often without sleeping: a remote call or a stop takes some microseconds,
/// falling asleep and waking up some tens of them.
const SPINS: u32 = 50;
/// A moment that took so long was others' who want the CPU as well. Each more would be
/// theirs too, all of theirs; who sleeps is let in front of them when it is woken.
const CROWDED: Duration = Duration::from_micros(500);
/// Sleeps at most so long before the state is looked at again: a lost SIGCHLD or a
/// silent death costs no more than this.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Pauses between two looks at a tracee that has not changed yet.
#[derive(Debug, Default)]
pub struct Pause {
    looks: u32,
}

impl Pause {
    /// True when the moment is over in which most changes come.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.looks > SPINS
    }

    /// Lets others run, at first for a moment only, then until a SIGCHLD comes.
    pub fn wait(&mut self) {
        self.looks = self.looks.saturating_add(1);
        if self.is_long() {
            return wait_for_sigchld(LOOK_AGAIN);
        }
        let begin = Instant::now();
        rustix::thread::sched_yield();
        if begin.elapsed() > CROWDED {
            self.looks = SPINS;
        }
    }
}

/// Waits for a SIGCHLD or for `timeout`, whatever comes first.
fn wait_for_sigchld(timeout: Duration) {
    let set = sigchld();
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(3600).cast_signed(),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: both pointers are to live, initialized values; no siginfo is asked for.
    // Every outcome (signal, timeout, EINTR) means the same to the caller: look again.
    let _ = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout) };
}

fn sigchld() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the whole set, sigaddset adds a valid signal.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        set
    }
}
