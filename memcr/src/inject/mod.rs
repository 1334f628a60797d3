//! Inject: system calls made by a frozen thread for us.
//!
//! ```text
//! Frozen ──Borrowed::take()──▶ Borrowed ──┬─ call(): one call
//!                                │        ├─ infect(): maps the parasite
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
//! # Should we die
//!
//! With the parasite in place an orphaned thread cures itself: its registers, mask and
//! dispatch lie in the parasite's data, and the code loads them when its calls are made
//! (`memcr_parasite`). Before that it stops the process, so that nothing runs until
//! somebody has looked after it. What remains is the time without the parasite: around
//! the two calls that map it and the one that unmaps it, seven stops in all, some 20 µs
//! each; for that time we and the thread go before others, where we may (CAP_SYS_NICE),
//! since on a busy CPU it would last milliseconds. A thread that
//! was let go then would go on behind a `syscall` instruction that is not its own, with
//! registers and a mask that are not its own either; so for that time alone the kernel is
//! told to kill the target should we die (PTRACE_O_EXITKILL). The alternatives were worse: there
//! is no memory in a target that is nobody's, where its registers could be kept before
//! we have mapped some (below the stack pointer there may be another stack, as in Go).
//!
//! Single calls stop at system call entry and exit (PTRACE_SYSCALL), tables at the SIGSTOP
//! that the thread sends itself at their end: neither raises a signal that the target
//! could block, ignore or handle. A SIGCONT that somebody sends in that moment takes the
//! SIGSTOP away; then the nudge behind it stops the thread, before it goes back to code of
//! its own. Where the mapping cannot be had (RLIMIT_AS, a policy
//! against executable memory) all calls are single ones, and there is no guard.

mod drive;
mod guard;
mod leftovers;
mod limit;
mod region;
mod saved;
mod site;

use std::io;

use memcr_parasite::Entry;

pub use guard::{Guard, GuardError};
pub use leftovers::leftovers;
pub use region::Parasite;
pub use site::Site;

use crate::fault;
use crate::freeze::{FreezeError, Frozen};
use crate::sys::arch::nr;
use crate::sys::hurry::Hurry;
use crate::sys::page_size;
use crate::sys::proc_mem::ProcMem;
use crate::sys::ptrace::{self, UserDispatch};
use crate::sys::rlimit::Resource;
use crate::sys::wait::WaitStatus;
use drive::Resume;
use limit::LiftedLimit;
use saved::{Ids, Saved};

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
    /// A fault point.
    #[error("stopped by a fault point")]
    Fault(#[source] io::Error),
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
    ids: Ids,
    site: Site,
    memory: ProcMem,
    saved: Saved,
    parasite: Option<Parasite>,
    /// We and the thread, as long as our death would be its own.
    hurry: [Option<Hurry>; 2],
    given_back: bool,
}

impl<'a> Borrowed<'a> {
    /// Takes the first thread of a frozen target. `site` was found by [`Site::find`];
    /// `parasite` is the one that an earlier borrower left in place.
    ///
    /// # Errors
    /// With the thread as it was.
    pub fn take(frozen: &'a mut Frozen, site: Site, parasite: Option<Parasite>) -> Result<Self> {
        let (pid, tid) = (frozen.pid(), frozen.tids()[0]);
        let memory =
            ProcMem::open(pid).map_err(|source| request("open the memory of", tid, source))?;
        let mut borrowed = Self {
            ids: Ids::of(pid, tid)?,
            saved: Saved::read(tid, &memory)?,
            frozen,
            tid,
            site,
            memory,
            parasite: None,
            hurry: [None, None],
            given_back: false,
        };
        // From here on a failure drops `borrowed`, which puts everything back.
        // The SIGSTOP at the end of a table takes a SIGCONT with it that somebody sent.
        borrowed.frozen.keep_cont();
        match parasite {
            Some(parasite) => borrowed.move_in(parasite)?,
            None => borrowed.die_with_us(true)?,
        }
        borrowed.disturb()?;
        if let Some(parasite) = parasite {
            // Should we die before its first calls: it puts itself back, and stops.
            borrowed.enter(parasite, &[])?;
        }
        Ok(borrowed)
    }

    /// Takes over a thread that was orphaned while it was borrowed, and leaves it as it
    /// was before: in the parasite, or before it went in. One that has cured itself
    /// already is left alone.
    ///
    /// # Errors
    /// When its state cannot be read or put back.
    pub fn rescue(frozen: &mut Frozen, parasite: Parasite) -> Result<()> {
        let (pid, tid) = (frozen.pid(), frozen.tids()[0]);
        let unread = |source| request("read the saved state of", tid, source);
        let memory =
            ProcMem::open(pid).map_err(|source| request("open the memory of", tid, source))?;
        if !parasite.is_lent(&memory).map_err(unread)? {
            return Ok(());
        }
        let saved = parasite.saved(&memory).map_err(unread)?;
        let regs = ptrace::registers(tid).map_err(unread)?;
        let mask = ptrace::signal_mask(tid).map_err(unread)?;
        if regs.is_some_and(|regs| parasite.is_in(regs.pc())) {
            saved.restore(tid, &memory)?;
        } else if saved::is_masked(mask) {
            saved.restore_surroundings(tid, &memory)?;
        }
        parasite.set_returned(&memory).map_err(unread)
    }

    /// Whether the first thread of such a target may still be making calls of a table.
    ///
    /// # Errors
    /// When its memory cannot be read.
    pub fn is_at_work(pid: i32, parasite: Parasite) -> Result<bool> {
        let is_at_work = ProcMem::open(pid).and_then(|memory| parasite.is_at_work(&memory));
        is_at_work.map_err(|source| request("read the table of", pid, source))
    }

    /// Maps the parasite, if it is not there. False: the target may not have such a
    /// mapping; calls are single ones then.
    ///
    /// # Errors
    /// When a call could not be made or did not end.
    pub fn infect(&mut self) -> Result<bool> {
        if self.parasite.is_some() {
            return Ok(true);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        let args = [0, Parasite::LEN, prot as u64, flags as u64, u64::MAX, 0];
        let mut address = self.call(nr::MMAP, args)?;
        if address == -i64::from(libc::ENOMEM) {
            // Its limit may be reached (RLIMIT_AS); where not, the answer is the same.
            let more = Parasite::LEN.next_multiple_of(page_size());
            let _limit = LiftedLimit::lift(self.frozen.pid(), Resource::Mappings, more);
            address = self.call(nr::MMAP, args)?;
        }
        if address < 0 {
            tracing::debug!("no room for the parasite (mmap answered {address}): single calls");
            return Ok(false);
        }
        let parasite = Parasite::at(address.cast_unsigned());
        let (data, len) = parasite.data_part();
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let answer = self.call(nr::MPROTECT, [data, len, prot as u64, 0, 0, 0])?;
        if answer == 0 && self.move_in(parasite).is_ok() {
            // It stands behind the call that was made last, with registers that are not its
            // own: first it must be where it puts itself back.
            self.enter(parasite, &[])?;
            self.die_with_us(false)?;
            fault::point("inject.infected").map_err(InjectError::Fault)?;
            return Ok(true);
        }
        tracing::debug!("the parasite cannot be written (mprotect answered {answer})");
        self.unmap(parasite)?;
        Ok(false)
    }

    /// The target whose thread it is.
    #[must_use]
    pub fn frozen(&self) -> &Frozen {
        self.frozen
    }

    /// Where the parasite is.
    #[must_use]
    pub fn parasite(&self) -> Option<Parasite> {
        self.parasite
    }

    /// Takes the pending SIGSTOPs of an armed or parked target away, so that it runs when
    /// it is let go.
    ///
    /// # Errors
    /// When the target is gone, or the call that consumes our SIGCONT could not be made.
    pub fn disarm(&mut self) -> std::result::Result<(), FreezeError> {
        self.frozen.disarm()?;
        // The SIGSTOP at the end of this table is what consumes it.
        let parasite = self.parasite;
        parasite
            .map_or(Ok(()), |parasite| self.run_table(parasite, &mut []))
            .map_err(|error| FreezeError::Request {
                what: "disarm",
                tid: self.tid,
                source: io::Error::other(error),
            })
    }

    /// A SIGCONT that somebody sent meanwhile would go with the SIGSTOP at the end of a table.
    pub fn keep_cont(&mut self) {
        self.frozen.keep_cont();
    }

    /// Stops the process as job control does: the thread takes the SIGSTOP at the end of a
    /// table. Its other threads, which stand in their ptrace stops, are then let go into
    /// that stop, whoever lets them go, without running (`__ptrace_unlink()` of
    /// kernel/ptrace.c). A SIGCONT ends it, of which the target's parent may hear.
    ///
    /// # Errors
    /// When the thread did not get there. Without the parasite nothing is done.
    pub fn stop_process(&mut self) -> Result<bool> {
        let Some(parasite) = self.parasite else {
            return Ok(false);
        };
        self.run_table(parasite, &mut [])?;
        self.resume(Resume::Freely, libc::SIGSTOP, |status| {
            status == WaitStatus::EventStop(libc::PTRACE_EVENT_STOP, libc::SIGSTOP)
        })?;
        Ok(true)
    }

    /// Closes descriptors of the target's that are ours.
    ///
    /// # Errors
    /// When the calls could not be made.
    pub fn close(&mut self, descriptors: &[i32]) -> std::result::Result<(), GuardError> {
        guard::close_all(self, descriptors)
    }

    /// Unmaps the parasite.
    ///
    /// # Errors
    /// When the call could not be made, did not end, or failed.
    pub fn cure(&mut self) -> Result<()> {
        let Some(parasite) = self.parasite else {
            return Ok(());
        };
        // Until the thread is given back.
        self.die_with_us(true)?;
        self.parasite = None;
        self.unmap(parasite)
    }

    /// Makes one call; answers what the kernel answered, `-errno` on failure.
    ///
    /// # Errors
    /// When the call could not be made or did not end.
    pub fn call(&mut self, nr: u64, args: [u64; 6]) -> Result<i64> {
        if self.parasite.is_some() {
            let mut entries = [Entry { nr, args, ret: 0 }];
            self.run(&mut entries)?;
            return Ok(entries[0].ret);
        }
        self.single(nr, args)
    }

    /// Makes all calls of `entries`, in order, whatever each of them answers, and fills
    /// in `ret`. One stop for some thousand calls where the parasite is in place.
    ///
    /// # Errors
    /// When a call could not be made or did not end.
    pub fn run(&mut self, entries: &mut [Entry]) -> Result<()> {
        if let Some(parasite) = self.parasite {
            return entries
                .chunks_mut(region::BATCH)
                .try_for_each(|part| self.run_table(parasite, part));
        }
        for entry in entries {
            entry.ret = self.call(entry.nr, entry.args)?;
        }
        Ok(())
    }

    /// Reads `out` from memory for arguments.
    pub(super) fn read_scratch(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let place = self.parasite.map_or(0, Parasite::scratch) + offset;
        let read = self.memory.read(place, out);
        read.map_err(|source| request("read the arguments of", self.tid, source))
    }

    /// Writes `bytes` to memory for arguments; answers where they are.
    pub(super) fn write_scratch(&self, offset: u64, bytes: &[u8]) -> Result<u64> {
        let place = self.parasite.map_or(0, Parasite::scratch) + offset;
        let written = self.memory.write(place, bytes);
        written.map_err(|source| request("write the arguments of", self.tid, source))?;
        Ok(place)
    }

    /// Puts everything back and leaves the thread in the stop it was in. The parasite
    /// stays where it is.
    ///
    /// # Errors
    /// When something could not be put back; the rest was.
    pub fn give_back(mut self) -> Result<()> {
        self.put_back()
    }

    fn disturb(&self) -> Result<()> {
        let tid = self.tid;
        ptrace::set_signal_mask(tid, self.saved.mask_for_calls(self.ids))
            .map_err(|source| request("set the signal mask of", tid, source))?;
        if let Some((addr, _)) = self.saved.critical_section {
            let cleared = self.memory.write(addr, &[0; 8]);
            cleared.map_err(|source| request("write the rseq area of", tid, source))?;
        }
        if self.saved.dispatch.is_on() {
            ptrace::set_user_dispatch(tid, &UserDispatch::default())
                .map_err(|source| request("switch off syscall dispatch of", tid, source))?;
        }
        Ok(())
    }

    fn move_in(&mut self, parasite: Parasite) -> Result<()> {
        parasite
            .install(&self.memory, &self.saved)
            .map_err(|source| request("write the parasite of", self.tid, source))?;
        self.parasite = Some(parasite);
        Ok(())
    }

    /// One call at a `syscall` instruction that the target has anyway.
    fn single(&mut self, nr: u64, args: [u64; 6]) -> Result<i64> {
        let tid = self.tid;
        let regs = self.saved.regs.with_call(self.site.address(), nr, args);
        ptrace::set_registers(tid, &regs)
            .map_err(|source| request("set registers of", tid, source))?;
        for _ in ["entry", "exit"] {
            self.resume(Resume::ToSyscall, 0, |status| {
                status == WaitStatus::SyscallStop
            })?;
        }
        let after =
            ptrace::registers(tid).map_err(|source| request("read registers of", tid, source))?;
        Ok(after.map_or(-i64::from(libc::ENOSYS), |regs| regs.syscall_result()))
    }

    /// Sends the thread to the parasite, with the calls of `part` and those by which it puts
    /// itself back. It does not run yet.
    fn enter(&self, parasite: Parasite, part: &[Entry]) -> Result<()> {
        let tid = self.tid;
        let mut table = part.to_vec();
        table.extend(self.saved.last_entries(self.ids, parasite.mask()));
        parasite
            .load(&self.memory, &table)
            .map_err(|source| request("write the table of", tid, source))?;
        let n_entries = table.len() as u64;
        let regs = self
            .saved
            .regs
            .with_entry(parasite.address(), parasite.entries(), n_entries);
        ptrace::set_registers(tid, &regs).map_err(|source| request("set registers of", tid, source))
    }

    fn run_table(&mut self, parasite: Parasite, part: &mut [Entry]) -> Result<()> {
        self.enter(parasite, part)?;
        self.until_end(parasite, part.len())?;
        parasite
            .unload(&self.memory, part)
            .map_err(|source| request("read the table of", self.tid, source))
    }

    /// Lets the thread run to one of the stops behind `n_entries` of the table: that is, behind
    /// the call by which it sends itself the signal. Of those that are pending then a thread takes
    /// its own before those of the process, so it is that one, and not somebody else's SIGSTOP.
    fn until_end(&mut self, parasite: Parasite, n_entries: usize) -> Result<()> {
        let tid = self.tid;
        let ends = [(0, libc::SIGSTOP), (1, self.ids.nudge)].map(|(i, signal)| {
            (
                WaitStatus::SignalStop(signal),
                parasite.entry(n_entries + i),
            )
        });
        self.resume(Resume::Freely, 0, |status| {
            let at = || ptrace::registers(tid).ok().flatten();
            ends.iter().any(|(end, _)| status == *end)
                && at().is_some_and(|regs| {
                    let has_called = regs.interrupted_call().is_some();
                    parasite.is_in(regs.pc())
                        && has_called
                        && ends.contains(&(status, regs.entry()))
                })
        })
    }

    fn unmap(&mut self, parasite: Parasite) -> Result<()> {
        let answer = self.call(nr::MUNMAP, [parasite.address(), Parasite::LEN, 0, 0, 0, 0])?;
        if answer < 0 {
            let source = io::Error::from_raw_os_error(-answer as i32);
            return Err(InjectError::Remote {
                call: "munmap",
                tid: self.tid,
                source,
            });
        }
        Ok(())
    }

    fn put_back(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.given_back, true) {
            return Ok(());
        }
        self.saved
            .restore(self.tid, &self.memory)
            .and_then(|()| self.settle())?;
        // Pending again, they are seen by who looks for what ends the target, and outlive us.
        self.frozen.send_swallowed();
        match self.parasite {
            Some(parasite) => parasite
                .set_returned(&self.memory)
                .map_err(|source| request("write the saved state of", self.tid, source)),
            None => self.die_with_us(false),
        }
    }

    /// As long as the thread's state is saved nowhere but here. That is not to last longer
    /// because others want the CPU too. It ends with that: a thread that outlives us is
    /// scheduled as it was.
    fn die_with_us(&mut self, on: bool) -> Result<()> {
        self.hurry = [None, None];
        let set = self.frozen.die_with_us(self.tid, on);
        set.map_err(|source| request("set options of", self.tid, source))?;
        if on {
            self.hurry = [Hurry::of(0), Hurry::of(self.tid)];
        } else {
            // Nothing is done here that could fail.
            let _ = fault::point("inject.outlives");
        }
        Ok(())
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::warn!("{error}");
        }
    }
}

fn request(what: &'static str, tid: i32, source: io::Error) -> InjectError {
    InjectError::Request { what, tid, source }
}
