//! Scheduling for a moment in which nobody should have to wait (sched(7)).

use std::io;

/// `struct sched_attr` (sched_setattr(2)), as far as every kernel with that call knows it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attr {
    size: u32,
    pub(super) policy: u32,
    flags: u64,
    pub(super) nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const LEN: u32 = size_of::<Attr>() as u32;
const RESET_ON_FORK: u64 = 1;
const OTHER: u32 = libc::SCHED_OTHER as u32;
const FIFO: u32 = libc::SCHED_FIFO as u32;
const BATCH: u32 = libc::SCHED_BATCH as u32;
/// The least nice value.
const FURTHEST: i32 = -20;
pub(super) const IDLE: u32 = libc::SCHED_IDLE as u32;

impl Attr {
    /// Another policy for a thread that is scheduled so far as `before` says.
    pub(super) fn of(policy: u32, before: Self) -> Self {
        Self {
            size: LEN,
            policy,
            flags: before.flags & RESET_ON_FORK,
            ..Self::default()
        }
    }
}

/// A thread that goes before all ordinary ones, until this is dropped: then it is scheduled
/// as before.
#[derive(Debug)]
pub struct Hurry {
    tid: i32,
    before: Attr,
}

impl Hurry {
    /// Lets thread `tid` go first; 0 is our own. `None`: we may not (it takes CAP_SYS_NICE or
    /// an RLIMIT_RTPRIO), or it goes first already.
    #[must_use]
    pub fn of(tid: i32) -> Option<Self> {
        let before = get(tid).ok()?;
        if ![OTHER, BATCH, IDLE].contains(&before.policy) {
            return None;
        }
        let attr = Attr {
            priority: 1,
            ..Attr::of(FIFO, before)
        };
        set(tid, &attr).ok()?;
        Some(Self { tid, before })
    }

    /// Lets the calling thread, and those that it starts meanwhile, go ahead of ordinary ones
    /// as far as nice(2) leads: beside hundreds of them it has a good part of a CPU, and they
    /// have the rest. `None`: we may not (it takes CAP_SYS_NICE or an RLIMIT_NICE).
    #[must_use]
    pub fn ahead() -> Option<Self> {
        let before = get(0).ok().filter(|before| before.policy == OTHER)?;
        let attr = Attr {
            nice: FURTHEST,
            ..Attr::of(OTHER, before)
        };
        set(0, &attr).ok()?;
        Some(Self { tid: 0, before })
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        let before = Attr {
            size: LEN,
            flags: self.before.flags & RESET_ON_FORK,
            ..self.before
        };
        // What we were allowed to change we may change back; or the thread has ended.
        let _ = set(self.tid, &before);
    }
}

pub(super) fn get(tid: i32) -> io::Result<Attr> {
    let mut attr = Attr::default();
    let place = &raw mut attr;
    // SAFETY: the kernel writes at most LEN bytes, which is what `attr` has; all of its
    // values are valid.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, place, LEN, 0) };
    super::check(result).map(|_| attr)
}

pub(super) fn set(tid: i32, attr: &Attr) -> io::Result<()> {
    let place = std::ptr::from_ref(attr);
    // SAFETY: the kernel reads `attr.size` bytes, which is the size of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, place, 0) };
    super::check(result).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_thread_is_scheduled_afterwards_as_before() {
        let before = get(0).unwrap();
        let hurry = Hurry::of(0);
        if hurry.is_some() {
            assert_eq!(get(0).unwrap().policy, FIFO);
            assert!(Hurry::of(0).is_none(), "it goes first already");
        }
        drop(hurry);
        let ahead = Hurry::ahead();
        if ahead.is_some() {
            assert_eq!(get(0).unwrap().nice, FURTHEST);
            let child = std::thread::spawn(|| get(0).unwrap().nice);
            assert_eq!(child.join().unwrap(), FURTHEST);
        }
        drop(ahead);
        let after = get(0).unwrap();
        assert_eq!(
            (after.policy, after.nice, after.priority),
            (before.policy, before.nice, before.priority)
        );
    }
}
