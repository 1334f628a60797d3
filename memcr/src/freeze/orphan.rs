//! Stopping the threads of a target whose memcr has died in the middle of its drop, and that
//! somebody may have continued.
//!
//! ```text
//!   running, sleeping    told to stop; stops
//!   waits for a page     within a system call: left alone, it makes nothing without that page
//!   the first thread     waits for its event to be read: told to stop, it does so then
//! ```
//!
//! A thread that waits for a page inside of a system call cannot stop before it has got it. With
//! the order to stop pending it looks for the page without a pause (`handle_userfault()`
//! of mm/userfaultfd.c sleeps interruptibly): hundreds of those would leave nobody a CPU.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::stop::{Attached, DENIED_PASSES};
use super::threads::{self, Outcome};
use super::witness::Witness;
use super::{EXITKILL, FreezeError, Frozen, Target};
use crate::pipeline::Cancel;
use crate::sys::procfs;
use crate::sys::ptrace;
use crate::sys::wait::Pause;

/// So long after the last thread that has stopped the others are taken to wait for something
/// that does not come by itself. They are in the kernel: none of them executes an instruction
/// of its own any more. (A call that fills memory for so long would be taken for such a wait.)
const SOON: Duration = Duration::from_millis(300);

/// Sees to it that no thread of `target` but the first executes code of the target: each is
/// told to stop that does not wait for a page within a system call. Some may be in the kernel
/// still, in a wait that lasts.
///
/// # Errors
/// With the target as before.
pub fn stop_awake(target: Target) -> Result<Frozen, FreezeError> {
    let mut frozen = Frozen::none_of(target)?;
    frozen.stop_awake()?;
    Ok(frozen)
}

impl Frozen {
    /// Tells the first thread to stop, and does not wait for it. `die_with_us`: until that is
    /// switched off, the kernel kills the target should we die; a thread that has not stopped
    /// yet cannot be told later.
    ///
    /// # Errors
    /// With that thread as before.
    pub fn stop_first(&mut self, die_with_us: bool) -> Result<(), FreezeError> {
        let (pid, options) = (self.target.pid, self.options);
        if die_with_us {
            self.options |= EXITKILL;
        }
        let attached = self.attach(pid);
        self.options = options;
        match attached? {
            Attached::Running => self.tell(pid),
            Attached::Stopping => self.stopping.push(pid),
            Attached::Gone => return Err(FreezeError::TargetExited(pid)),
        }
        Ok(())
    }

    /// Waits until the first thread stands still, which was told to.
    ///
    /// # Errors
    /// When it does not, or has ended.
    pub fn wait_for_first(&mut self) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        // The last one is the one that is waited for.
        if let Some(place) = self.stopping.iter().position(|&tid| tid == pid) {
            let last = self.stopping.len() - 1;
            self.stopping.swap(place, last);
            self.stop(pid, &Cancel::new(), &mut Pause::default())?;
        }
        match self.tids.iter().position(|&tid| tid == pid) {
            Some(place) => self.tids[..=place].rotate_right(1),
            None => return Err(FreezeError::TargetExited(pid)),
        }
        Ok(())
    }

    fn stop_awake(&mut self) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let witness = Witness::call().map_err(FreezeError::NoThread)?;
        let (mut known, mut pause) = (HashSet::from([pid]), Pause::default());
        let mut n_denied = 0;
        loop {
            let mut listed = procfs::tids(pid).map_err(|_| FreezeError::TargetExited(pid))?;
            listed.retain(|tid| !known.contains(tid) && !waits_for_page(pid, *tid));
            if listed.is_empty() {
                return Ok(());
            }
            let _watch = witness.watch(listed.clone());
            for tid in listed {
                match self.attach(tid) {
                    Ok(Attached::Running) => self.tell(tid),
                    Ok(Attached::Stopping) => self.stopping.push(tid),
                    Ok(Attached::Gone) => {}
                    // Perhaps that of a moment.
                    Err(_) if n_denied < DENIED_PASSES => {
                        n_denied += 1;
                        pause.wait();
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                known.insert(tid);
            }
            self.quiet()?;
        }
    }

    /// Stops all threads that do not stand still yet.
    ///
    /// # Errors
    /// With some of them stopped.
    pub fn stop_others(&mut self) -> Result<(), FreezeError> {
        let witness = Witness::call().map_err(FreezeError::NoThread)?;
        self.freeze_others(&Cancel::new(), &witness)
    }

    /// Waits for the threads that were told to stop, but for the first one, as long as some
    /// do.
    fn quiet(&mut self) -> Result<(), FreezeError> {
        let pid = self.target.pid;
        let (mut last, mut pause) = (Instant::now(), Pause::default());
        let mut late = self.stopping.clone();
        late.retain(|&tid| tid != pid);
        while !late.is_empty() && last.elapsed() < SOON {
            let n_late = late.len();
            for tid in std::mem::take(&mut late) {
                if !self.has_stopped(tid)? {
                    late.push(tid);
                }
            }
            if late.len() < n_late {
                last = Instant::now();
            }
            pause.wait();
        }
        Ok(())
    }

    /// Looks at a thread that was told to stop. True: it has, or has ended.
    fn has_stopped(&mut self, tid: i32) -> Result<bool, FreezeError> {
        let (mut clones, mut pause) = (Vec::new(), Pause::default());
        let (pid, now) = (self.target.pid, Instant::now());
        let outcome = threads::wait_stopped(pid, tid, now, &Cancel::new(), &mut clones, &mut pause);
        self.check_clones(clones)?;
        match outcome.map_err(|source| self.request("stop", tid, source))? {
            Outcome::Late | Outcome::Cancelled => return Ok(false),
            Outcome::Stopped { .. } => self.tids.push(tid),
            Outcome::Gone => {}
        }
        self.stopping.retain(|&it| it != tid);
        if let Ok(Some(regs)) = ptrace::registers(tid) {
            self.registers.insert(tid, regs);
        }
        Ok(true)
    }
}

/// Asleep within a system call until a page is there (proc_pid_wchan(5)). Where the kernel does
/// not tell, no thread seems to. One that touched a page itself can stop, and could take a
/// signal meanwhile.
fn waits_for_page(pid: i32, tid: i32) -> bool {
    let wchan = procfs::read_lossy(&format!("/proc/{pid}/task/{tid}/wchan"));
    wchan.is_ok_and(|wchan| wchan.trim() == "handle_userfault")
        && procfs::call_of(pid, tid).is_some()
}
