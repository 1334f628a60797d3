//! What is saved of a thread that makes calls for us, and how it comes back.

use std::io;

use memcr_parasite::Entry;

use super::{InjectError, Result, request};
use crate::sys::arch::{Regs, nr};
use crate::sys::proc_mem::ProcMem;
use crate::sys::procfs::Status;
use crate::sys::ptrace::{self, UserDispatch};

/// Offset of `rseq_cs` in the kernel's `struct rseq` (linux/rseq.h).
const RSEQ_CS: u64 = 8;
/// What the words of a saved state begin with: a number that memory does not hold by chance.
const MAGIC: u64 = u64::from_be_bytes(*b"memcrsav");
const N_REGS: usize = 27;
/// Not in the libc crate for every target (linux/prctl.h).
const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
/// The answer of a call that was not made yet; the kernel gives none like it.
pub(super) const NOT_MADE: i64 = i64::MIN;
/// An argument that the call does not have: a table of a memcr that does not mark what was not
/// made has none of it.
pub(super) const MARKED: u64 = 1;

/// All of a thread's state that the calls change.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    pub(super) regs: Regs,
    pub(super) mask: u64,
    pub(super) dispatch: UserDispatch,
    /// Address and value of a critical section that was under way.
    pub(super) critical_section: Option<(u64, u64)>,
}

impl Saved {
    /// Words in the form that is kept in the target.
    pub(super) const N_WORDS: usize = 2 + N_REGS + 1 + 4 + 2;
    /// Offset of the word that says whether the thread is borrowed now, bytes.
    pub(super) const LENT_AT: u64 = 8;

    pub(super) fn read(tid: i32, memory: &ProcMem) -> Result<Self> {
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
        let critical_section = area.known().and_then(|area| {
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

    /// The mask with which the calls are made: all but the nudge, and SIGSYS unless the thread
    /// blocks it. SIGKILL and SIGSTOP are kept out by the kernel.
    ///
    /// Before Linux 6.4 we can neither see nor switch off that the thread has its calls
    /// dispatched to itself: then our first one raises SIGSYS, which is to be suppressed. From a
    /// signal that is blocked when it is raised the kernel would take the handler away.
    pub(super) fn mask_for_calls(&self, ids: Ids) -> u64 {
        !(bit(ids.nudge) | bit(libc::SIGSYS) & !self.mask)
    }

    /// Puts everything back. Everything is tried; the first failure is reported.
    pub(super) fn restore(&self, tid: i32, memory: &ProcMem) -> Result<()> {
        let regs = ptrace::set_registers(tid, &self.regs);
        let regs = regs.map_err(|source| request("put back the registers of", tid, source));
        regs.and(self.restore_surroundings(tid, memory))
    }

    /// The same but for the registers.
    pub(super) fn restore_surroundings(&self, tid: i32, memory: &ProcMem) -> Result<()> {
        let section = self.critical_section.map_or(Ok(()), |(addr, value)| {
            memory.write(addr, &value.to_ne_bytes())
        });
        let dispatch = if self.dispatch.is_on() {
            ptrace::set_user_dispatch(tid, &self.dispatch)
        } else {
            Ok(())
        };
        let mask = ptrace::set_signal_mask(tid, self.mask);
        let first = mask.and(dispatch).and(section);
        first.map_err(|source| request("put back the state of", tid, source))
    }

    /// The registers with which the thread goes on by itself.
    pub(super) fn way_back(&self, memory: &ProcMem) -> ([u64; 17], u64) {
        self.regs.way_back(self.aborted(memory))
    }

    /// The calls at the end of each table: the stop, at which we take over; the nudge, at
    /// which we do if somebody's SIGCONT took the stop away before it came; then what the
    /// thread does without us: its mask and its dispatch, in this order, because with the
    /// dispatch on it could make no more call of ours.
    pub(super) fn last_entries(&self, ids: Ids, mask_at: u64) -> Vec<Entry> {
        let call = |nr, args| Entry { nr, args, ret: 0 };
        let send = |signal: i32| call(nr::TGKILL, [ids.pid, ids.tid, signal as u64, 0, 0, 0]);
        let mut last = vec![
            send(libc::SIGSTOP),
            send(ids.nudge),
            Entry {
                nr: nr::RT_SIGPROCMASK,
                args: [libc::SIG_SETMASK as u64, mask_at, 0, 8, MARKED, 0],
                ret: NOT_MADE,
            },
        ];
        if self.dispatch.is_on() {
            let [mode, selector, offset, len] = self.dispatch.to_words();
            last.push(call(
                nr::PRCTL,
                [PR_SET_SYSCALL_USER_DISPATCH, mode, offset, len, selector, 0],
            ));
        }
        last
    }

    pub(super) fn to_words(&self) -> Vec<u64> {
        let mut words = vec![MAGIC, 1];
        words.extend(self.regs.to_words());
        words.push(self.mask);
        words.extend(self.dispatch.to_words());
        let (addr, value) = self.critical_section.unwrap_or_default();
        words.extend([addr, value]);
        words
    }

    /// Offset of the mask in the words, bytes.
    pub(super) const MASK_AT: u64 = (2 + N_REGS as u64) * 8;

    pub(super) fn from_words(words: &[u64]) -> Option<Self> {
        let (magic, rest) = words.split_first()?;
        let (_lent, rest) = rest.split_first()?;
        let (regs, rest) = rest.split_first_chunk::<N_REGS>()?;
        let (mask, rest) = rest.split_first()?;
        let (dispatch, rest) = rest.split_first_chunk::<4>()?;
        let &[addr, value] = rest else { return None };
        (*magic == MAGIC).then(|| Self {
            regs: Regs::from_words(*regs),
            mask: *mask,
            dispatch: UserDispatch::from_words(*dispatch),
            critical_section: (addr != 0).then_some((addr, value)),
        })
    }

    /// Where the kernel sends a thread that was stopped in a critical section:
    /// `struct rseq_cs` (linux/rseq.h) is version, flags, start, length, abort address.
    fn aborted(&self, memory: &ProcMem) -> Option<u64> {
        let (_, section) = self.critical_section?;
        let word = |offset| memory.read_u64(section + offset).ok();
        let (start, len, abort) = (word(8)?, word(16)?, word(24)?);
        (self.regs.pc().wrapping_sub(start) < len).then_some(abort)
    }
}

/// Whether a thread has the mask of a borrowed one: everything blocked but the nudge, SIGSYS,
/// and what the kernel lets nobody block.
pub(super) fn is_masked(mask: u64) -> bool {
    let never = [libc::SIGSYS, libc::SIGKILL, libc::SIGSTOP];
    let free = NUDGES.iter().chain(&never);
    free.fold(mask, |mask, &signal| mask | bit(signal)) == u64::MAX
}

fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Signals that do nothing by default (signal(7)), but are told to a tracer.
const NUDGES: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// The ids by which a thread knows itself, in its own pid namespace, and its nudge: a
/// signal that stops it for its tracer and that no SIGCONT takes away, unlike SIGSTOP.
/// Without a tracer nothing comes of it: it is one that the target neither handles nor
/// blocks, if there is one of the kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids {
    pid: u64,
    tid: u64,
    pub(super) nudge: i32,
}

impl Ids {
    /// Of a thread of ours to trace. The innermost id is the last one of the line.
    pub(super) fn of(pid: i32, tid: i32) -> Result<Self> {
        let status = Status::of_thread(pid, tid).map_err(|_| InjectError::TargetExited(pid))?;
        let last =
            |name| -> Option<u64> { status.field(name)?.split_whitespace().last()?.parse().ok() };
        let used = status.signals("SigCgt") | status.signals("SigBlk");
        let free = NUDGES.into_iter().find(|&it| used & bit(it) == 0);
        Ok(Self {
            nudge: free.unwrap_or(libc::SIGURG),
            pid: last("NStgid").unwrap_or(pid as u64),
            tid: last("NSpid").unwrap_or(tid as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    impl Saved {
        /// One in which every word says something.
        pub(in crate::inject) fn some() -> Self {
            let mut words = [0; N_REGS];
            words.iter_mut().zip(1..).for_each(|(word, i)| *word = i);
            Self {
                regs: Regs::from_words(words),
                mask: 0x55,
                dispatch: UserDispatch::from_words([1, 2, 3, 4]),
                critical_section: Some((8, 9)),
            }
        }
    }

    #[test]
    fn a_borrowed_thread_hears_of_sigsys_as_before() {
        let ids = Ids {
            pid: 1,
            tid: 1,
            nudge: libc::SIGWINCH,
        };
        let mut saved = Saved::some();
        for (mask, free) in [
            (0, bit(libc::SIGWINCH) | bit(libc::SIGSYS)),
            (bit(libc::SIGSYS), bit(libc::SIGWINCH)),
        ] {
            saved.mask = mask;
            let mask = saved.mask_for_calls(ids);
            assert_eq!(!mask, free);
            assert!(is_masked(mask));
        }
        assert!(!is_masked(!bit(libc::SIGTERM)));
    }

    #[test]
    fn what_is_kept_in_the_target_comes_back() {
        let saved = Saved::some();
        let kept = saved.to_words();
        assert_eq!(kept.len(), Saved::N_WORDS);
        assert_eq!(kept[Saved::MASK_AT as usize / 8], 0x55);
        let back = Saved::from_words(&kept).unwrap();
        assert_eq!(back.to_words(), kept);
        assert!(Saved::from_words(&[0; Saved::N_WORDS]).is_none());
        assert!(Saved::from_words(&kept[1..]).is_none());
    }
}
