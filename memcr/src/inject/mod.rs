//! Inject: system calls made by a frozen thread for us.
//!
//! ```text
//! Frozen ──Borrowed::take()──▶ Borrowed ──┬─ call(): one call at a `syscall` instruction
//!                                │        │          that the target has anyway (vdso)
//!                                │        └─ run():  a table of calls by the parasite
//!                                └─ give_back(): every register and mask as before
//! ```
//!
//! What is disturbed, and put back by [`Borrowed`] on every way out: the general
//! registers (the interrupted call's restart state is in them), the signal mask, syscall
//! user dispatch, the rseq area's critical section. Vector registers are not touched by
//! the parasite. No byte of the target's code is changed: the first calls are made at a
//! `syscall` instruction that is there already.
//!
//! Single calls stop at system call entry and exit (PTRACE_SYSCALL): such stops raise
//! no signal, so the target's disposition of SIGTRAP does not matter. The parasite ends
//! with a trap, which does: a trap that hits an ignored SIGTRAP makes the kernel reset
//! the disposition. A target that ignores SIGTRAP, or has one pending, gets each call of
//! the table as a single one. So does a target where the two mappings cannot be had
//! (RLIMIT_AS, a policy against executable memory).

mod site;
mod table;

use std::io;
use std::time::{Duration, Instant};

use memcr_parasite::Entry;

pub use site::Site;

use crate::freeze::{self, Frozen};
use crate::sys::arch::{Regs, nr};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::Status;
use crate::sys::ptrace::{self, UserDispatch};
use crate::sys::wait::{self, Pause, WaitStatus};
use table::Parasite;

/// How often a remote call that takes long is spoken of. It is waited for as long as the
/// target lives: a target without CPU time (`cpu.max` of its cgroup), or one that a
/// cgroup freezer has stopped, comes back, and nothing can be undone in a thread that
/// runs.
const SPEAK_EVERY: Duration = Duration::from_secs(10);
/// While the parasite may run all signals are blocked but SIGTRAP (5): the trap at the end
/// of a table must get through. Without it SIGTRAP is blocked too.
const MASK: u64 = !TRAP;
const TRAP: u64 = 1 << (libc::SIGTRAP - 1);
/// Offset of `rseq_cs` in the kernel's `struct rseq` (linux/rseq.h).
const RSEQ_CS: u64 = 8;

/// What can go wrong with a thread that makes calls for us.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// There is no place to call from.
    #[error("no system call instruction found in the executable mappings of process {0}")]
    NoSite(i32),
    /// The target ended.
    #[error("process {0} ended while it made a call for us")]
    TargetExited(i32),
    /// The thread did not reach the end of a remote call.
    #[error("thread {tid} raised signal {signal} during a remote call")]
    Faulted {
        /// The thread.
        tid: i32,
        /// The signal of an instruction that failed.
        signal: i32,
    },
    /// A remote call failed.
    #[error("remote {call} in thread {tid} failed")]
    Remote {
        /// Its name.
        call: &'static str,
        /// The thread.
        tid: i32,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A request of ours failed.
    #[error("cannot {what} thread {tid}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// The thread.
        tid: i32,
        /// Why not.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, InjectError>;

/// A thread that makes calls for us, and all that must be put back.
#[derive(Debug)]
pub struct Borrowed<'a> {
    frozen: &'a mut Frozen,
    tid: i32,
    site: u64,
    memory: ProcMem,
    saved: Saved,
    parasite: Option<Parasite>,
    may_trap: bool,
    given_back: bool,
}

#[derive(Debug)]
struct Saved {
    regs: Regs,
    mask: u64,
    dispatch: UserDispatch,
    /// Address and value of a critical section that was under way.
    critical_section: Option<(u64, u64)>,
}

impl<'a> Borrowed<'a> {
    /// Takes the first thread of a frozen target. `site` was found by [`Site::find`].
    ///
    /// # Errors
    /// With the thread as it was.
    pub fn take(frozen: &'a mut Frozen, site: &Site) -> Result<Self> {
        let (pid, tid) = (frozen.pid(), frozen.tids()[0]);
        let memory =
            ProcMem::open(pid).map_err(|source| request("open the memory of", tid, source))?;
        let saved = Saved::read(tid, &memory)?;
        let may_trap = !is_trap_taken(pid, tid);
        let borrowed = Self {
            frozen,
            tid,
            site: site.address(),
            memory,
            saved,
            parasite: None,
            may_trap,
            given_back: false,
        };
        // From here on a failure drops `borrowed`, which puts everything back.
        borrowed.block_signals()?;
        if let Some((addr, _)) = borrowed.saved.critical_section {
            let cleared = borrowed.memory.write(addr, &[0; 8]);
            cleared.map_err(|source| request("write the rseq area of", tid, source))?;
        }
        if borrowed.saved.dispatch.is_on() {
            ptrace::set_user_dispatch(tid, &UserDispatch::default())
                .map_err(|source| request("switch off syscall dispatch of", tid, source))?;
        }
        Ok(borrowed)
    }

    /// Makes one call; answers what the kernel answered, `-errno` on failure.
    ///
    /// # Errors
    /// When the call could not be made or did not end.
    pub fn call(&mut self, nr: u64, args: [u64; 6]) -> Result<i64> {
        let tid = self.tid;
        let regs = self.saved.regs.with_call(self.site, nr, args);
        ptrace::set_registers(tid, &regs)
            .map_err(|source| request("set registers of", tid, source))?;
        for _ in ["entry", "exit"] {
            self.resume(Resume::ToSyscall, |status, _| {
                status == WaitStatus::SyscallStop
            })?;
        }
        let after =
            ptrace::registers(tid).map_err(|source| request("read registers of", tid, source))?;
        Ok(after.map_or(-i64::from(libc::ENOSYS), |regs| regs.syscall_result()))
    }

    /// Makes all calls of `entries`, in order, whatever each of them answers, and fills
    /// in `ret`. One stop for up to `table::CAPACITY` calls where the parasite can run.
    ///
    /// # Errors
    /// When a call could not be made or did not end.
    pub fn run(&mut self, entries: &mut [Entry]) -> Result<()> {
        if self.may_trap && self.parasite.is_none() {
            self.parasite = self.infect()?;
            self.may_trap = self.parasite.is_some();
            self.block_signals()?;
        }
        match self.parasite.take() {
            Some(parasite) => {
                let result = self.run_tables(&parasite, entries);
                self.parasite = Some(parasite);
                result
            }
            None => self.run_singly(entries),
        }
    }

    /// Puts everything back and leaves the thread in the stop it was in.
    ///
    /// # Errors
    /// When something could not be put back; the rest was.
    pub fn give_back(mut self) -> Result<()> {
        self.put_back()
    }

    fn run_singly(&mut self, entries: &mut [Entry]) -> Result<()> {
        for entry in entries {
            entry.ret = self.call(entry.nr, entry.args)?;
        }
        Ok(())
    }

    fn run_tables(&mut self, parasite: &Parasite, entries: &mut [Entry]) -> Result<()> {
        let tid = self.tid;
        for part in entries.chunks_mut(table::CAPACITY) {
            parasite
                .load(&self.memory, part)
                .map_err(|source| request("write the table of", tid, source))?;
            let regs =
                self.saved
                    .regs
                    .with_entry(parasite.code(), parasite.table(), part.len() as u64);
            ptrace::set_registers(tid, &regs)
                .map_err(|source| request("set registers of", tid, source))?;
            self.resume(Resume::Freely, |status, code| {
                status == WaitStatus::SignalStop(libc::SIGTRAP) && is_raised(code)
            })?;
            parasite
                .unload(&self.memory, part)
                .map_err(|source| request("read the table of", tid, source))?;
        }
        Ok(())
    }

    fn block_signals(&self) -> Result<()> {
        let mask = if self.may_trap { MASK } else { u64::MAX };
        ptrace::set_signal_mask(self.tid, mask)
            .map_err(|source| request("set the signal mask of", self.tid, source))
    }

    /// Maps the parasite. `None`: the target may not have such mappings.
    fn infect(&mut self) -> Result<Option<Parasite>> {
        let mut map = |len: u64, prot: libc::c_int| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            self.call(nr::MMAP, [0, len, prot as u64, flags as u64, u64::MAX, 0])
        };
        let code = map(Parasite::code_len(), libc::PROT_READ | libc::PROT_EXEC)?;
        let table = map(Parasite::table_len(), libc::PROT_READ | libc::PROT_WRITE)?;
        let parasite = Parasite::new(code, table);
        // Code that is not writable is written the way a debugger does it.
        if parasite.is_mapped() && parasite.install(&self.memory).is_ok() {
            return Ok(Some(parasite));
        }
        tracing::debug!(
            "no room for the parasite (mmap answered {code:#x}, {table:#x}): single calls"
        );
        self.unmap(&parasite)?;
        Ok(None)
    }

    fn unmap(&mut self, parasite: &Parasite) -> Result<()> {
        for (addr, len) in parasite.mappings() {
            let answer = self.call(nr::MUNMAP, [addr, len, 0, 0, 0, 0])?;
            if answer < 0 {
                let source = io::Error::from_raw_os_error(-answer as i32);
                return Err(InjectError::Remote {
                    call: "munmap",
                    tid: self.tid,
                    source,
                });
            }
        }
        Ok(())
    }

    /// Lets the thread run until a stop that `is_end` accepts, given the stop and its
    /// signal's code.
    fn resume(&mut self, how: Resume, is_end: impl Fn(WaitStatus, i32) -> bool) -> Result<()> {
        let tid = self.tid;
        let mut signal = 0;
        loop {
            how.resume(tid, signal)
                .map_err(|source| request("resume", tid, source))?;
            let status = self.wait()?;
            let code = ptrace::signal_info(tid).map_or(0, |info| info.si_code);
            if is_end(status, code) {
                return Ok(());
            }
            signal = self.pass_over(status, code)?;
        }
    }

    /// Waits for the next stop.
    fn wait(&self) -> Result<WaitStatus> {
        let tid = self.tid;
        let mut speak = Instant::now() + SPEAK_EVERY;
        let mut pause = Pause::default();
        loop {
            match wait::try_wait(tid) {
                Ok(None) if Instant::now() >= speak => {
                    tracing::warn!("still waiting for a remote call in thread {tid}");
                    speak += SPEAK_EVERY;
                }
                // Killed together with the others, it reports nothing before they were
                // waited for, which the release or the end does.
                Ok(None) if pause.is_long() && freeze::is_dead(self.frozen.pid(), tid) => {
                    return Err(InjectError::TargetExited(self.frozen.pid()));
                }
                Ok(None) => pause.wait(),
                Ok(Some(WaitStatus::Exited(_) | WaitStatus::Signaled(_))) | Err(_) => {
                    return Err(InjectError::TargetExited(self.frozen.pid()));
                }
                Ok(Some(status)) => return Ok(status),
            }
        }
    }

    /// Another stop than the one waited for; answers the signal to go on with. SIGSTOP,
    /// which gets past every mask, is delivered: the process counts as stopped from now
    /// on, but a tracee that is told to goes on all the same. A SIGTRAP that somebody
    /// sent is kept for the release.
    fn pass_over(&mut self, status: WaitStatus, code: i32) -> Result<libc::c_int> {
        match status {
            WaitStatus::SignalStop(libc::SIGSTOP) => Ok(libc::SIGSTOP),
            // It would be raised again for ever.
            WaitStatus::SignalStop(signal) if signal != libc::SIGTRAP && is_raised(code) => {
                Err(InjectError::Faulted {
                    tid: self.tid,
                    signal,
                })
            }
            WaitStatus::SignalStop(signal) => {
                self.frozen.swallowed.push((self.tid, signal));
                Ok(0)
            }
            _ => Ok(0),
        }
    }

    fn put_back(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.given_back, true) {
            return Ok(());
        }
        let unmapped = match self.parasite.take() {
            Some(parasite) => self.unmap(&parasite),
            None => Ok(()),
        };
        unmapped
            .and(self.saved.restore(self.tid, &self.memory))
            .and_then(|()| self.settle())
    }

    /// From wherever the last call left the thread into an event stop: only from there
    /// does the kernel restart the interrupted call that the registers describe.
    fn settle(&mut self) -> Result<()> {
        let tid = self.tid;
        ptrace::interrupt(tid).map_err(|source| request("interrupt", tid, source))?;
        self.resume(Resume::Freely, |status, _| {
            matches!(status, WaitStatus::EventStop(libc::PTRACE_EVENT_STOP, _))
        })
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::warn!("{error}");
        }
    }
}

impl Saved {
    fn read(tid: i32, memory: &ProcMem) -> Result<Self> {
        let regs =
            ptrace::registers(tid).map_err(|source| request("read registers of", tid, source))?;
        let mask = ptrace::signal_mask(tid)
            .map_err(|source| request("read the signal mask of", tid, source))?;
        let dispatch = ptrace::user_dispatch(tid)
            .map_err(|source| request("read syscall dispatch of", tid, source))?;
        let area = ptrace::rseq_area(tid)
            .map_err(|source| request("read the rseq area of", tid, source))?;
        // Cleared while the thread runs for us: whenever it goes on, the kernel reads the
        // descriptor that `rseq_cs` points to, and ends a process whose descriptor makes
        // no sense, as one in missing memory does. Put back, it makes the kernel abort
        // the section as after any other stop.
        let critical_section = area.and_then(|area| {
            let value = memory
                .read_u64(area + RSEQ_CS)
                .ok()
                .filter(|&value| value != 0)?;
            Some((area + RSEQ_CS, value))
        });
        let regs = regs
            .ok_or_else(|| request("read registers of", tid, io::ErrorKind::Unsupported.into()))?;
        Ok(Self {
            regs,
            mask,
            dispatch,
            critical_section,
        })
    }

    /// Everything is tried; the first failure is reported.
    fn restore(&self, tid: i32, memory: &ProcMem) -> Result<()> {
        let section = self.critical_section.map_or(Ok(()), |(addr, value)| {
            memory.write(addr, &value.to_ne_bytes())
        });
        let dispatch = if self.dispatch.is_on() {
            ptrace::set_user_dispatch(tid, &self.dispatch)
        } else {
            Ok(())
        };
        let mask = ptrace::set_signal_mask(tid, self.mask);
        let regs = ptrace::set_registers(tid, &self.regs);
        let first = regs.and(mask).and(dispatch).and(section);
        first.map_err(|source| request("put back the state of", tid, source))
    }
}

/// How a thread is let run.
#[derive(Debug, Clone, Copy)]
enum Resume {
    ToSyscall,
    Freely,
}

impl Resume {
    fn resume(self, tid: i32, signal: libc::c_int) -> io::Result<()> {
        match self {
            Self::ToSyscall => ptrace::cont_to_syscall(tid, signal),
            Self::Freely => ptrace::cont(tid, signal),
        }
    }
}

/// The code of a signal raised by an instruction, not sent by anybody: positive
/// (sigaction(2)).
fn is_raised(code: i32) -> bool {
    code > 0
}

/// A trap would change the disposition of SIGTRAP, or be lost behind a pending one.
fn is_trap_taken(pid: i32, tid: i32) -> bool {
    Status::of_thread(pid, tid).map_or(true, |status| {
        (status.signals("SigIgn") | status.signals("SigPnd") | status.signals("ShdPnd")) & TRAP != 0
    })
}

fn request(what: &'static str, tid: i32, source: io::Error) -> InjectError {
    InjectError::Request { what, tid, source }
}
