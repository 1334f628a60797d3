//! Threads that do nothing: each sleeps until it is asked whether its stack is right.
//!
//! ```text
//!   check   generation + 1 ──ring──▶ each looks at its stack ──▶ n_awake + 1 ──▶ all: done
//! ```
//!
//! A [`Crew`](crate::crew::Crew) is at work all the time, and thousands of its threads
//! would keep a machine busy. Most threads of real programs sleep in a futex, as these do.
//! They are made as C programs make them: a small stack with a guard page, two mappings
//! for each, and none of the signal stacks that Rust adds.
#![allow(unsafe_code)]

use crate::talk::{Wrong, die};
use std::hint::black_box;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Length of a stack, bytes; the C library puts its own record of the thread into it.
const STACK_LEN: usize = 32 << 10;
/// Words of its own stack that each thread fills and checks.
const N_WORDS: usize = 64;
/// How long all of them may need for a look before one counts as lost. Generous: the
/// machine may be busy.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// What they are waiting for, and how many have come so far.
struct Bell {
    generation: u64,
    n_awake: usize,
}

static BELL: Mutex<Bell> = Mutex::new(Bell {
    generation: 0,
    n_awake: 0,
});
/// A new generation.
static RUNG: Condvar = Condvar::new();
/// One more is awake.
static ANSWERED: Condvar = Condvar::new();

/// The threads; there is one set of them in a victim.
pub(crate) struct Sleepers {
    n: usize,
}

impl Sleepers {
    /// Starts `n` threads and waits until each has filled its stack.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(n: usize) -> io::Result<Self> {
        (0..n).try_for_each(spawn)?;
        let sleepers = Self { n };
        sleepers
            .await_all(bell())
            .map_err(|wrong| io::Error::other(wrong.to_string()))?;
        Ok(sleepers)
    }

    /// Wakes all and waits until each has found its stack as it was; answers the bytes
    /// that they looked at.
    ///
    /// # Errors
    /// When some do not wake up. A wrong stack ends the victim.
    pub(crate) fn check(&self) -> Result<u64, Wrong> {
        let mut bell = bell();
        bell.generation += 1;
        bell.n_awake = 0;
        RUNG.notify_all();
        self.await_all(bell)?;
        Ok((self.n * N_WORDS * size_of::<u64>()) as u64)
    }

    fn await_all(&self, bell: MutexGuard<'_, Bell>) -> Result<(), Wrong> {
        let all = |bell: &mut Bell| bell.n_awake < self.n;
        // A poisoned lock: a thread panicked, which ends the victim.
        let waited = ANSWERED.wait_timeout_while(bell, LOST_AFTER, all);
        let (bell, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        if bell.n_awake == self.n {
            return Ok(());
        }
        let what = format!("{} of {} threads woke up", bell.n_awake, self.n);
        Err(Wrong::state(what))
    }
}

fn bell() -> MutexGuard<'static, Bell> {
    BELL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Starts the thread with this number.
fn spawn(number: usize) -> io::Result<()> {
    let mut attr = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    let arg = std::ptr::without_provenance_mut(number);
    // SAFETY: `attr` is writable, and set up by the first call before the others use it;
    // it is not destroyed, which on Linux frees nothing that these calls make. `thread` is
    // writable; `sleep` takes a number for its argument and never ends.
    let error = unsafe {
        match libc::pthread_attr_init(attr.as_mut_ptr()) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        match libc::pthread_attr_setstacksize(attr.as_mut_ptr(), STACK_LEN) {
            0 => libc::pthread_create(thread.as_mut_ptr(), attr.as_ptr(), sleep, arg),
            error => error,
        }
    };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A thread: sleeps, looks at its stack when the bell is rung, and sleeps again.
extern "C" fn sleep(number: *mut libc::c_void) -> *mut libc::c_void {
    let number = number.addr() as u64;
    let words = black_box([number; N_WORDS]);
    let mut heard = 0;
    loop {
        if let Some(i) = black_box(&words).iter().position(|word| *word != number) {
            let addr = (&raw const words[i]).addr();
            die(&format!(
                "WRONG at {addr:#x}: the stack of sleeper {number} has changed"
            ));
        }
        let mut bell = bell();
        bell.n_awake += 1;
        ANSWERED.notify_one();
        let asleep = |bell: &mut Bell| bell.generation == heard;
        let bell = RUNG
            .wait_while(bell, asleep)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        heard = bell.generation;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{N_WORDS, Sleepers};

    #[test]
    fn all_wake_up_each_time() {
        let sleepers = Sleepers::start(3).unwrap();
        for _ in 0..3 {
            assert_eq!(sleepers.check().unwrap(), 3 * 8 * N_WORDS as u64);
        }
    }
}
