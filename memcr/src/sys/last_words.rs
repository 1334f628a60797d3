//! What is said when this process is ended by a signal that a bug raises: a plugin that
//! crashes takes memcr with it, and whoever stands before the terminal must hear what
//! became of the target and what to do.
//!
//! ```text
//!   say(text) ──▶ leaked text in an atomic pointer ──▶ handler: write(2), the handler
//!                                                     before ours, the signal again
//! ```

use std::sync::atomic::{AtomicPtr, Ordering};

/// The signals that an instruction or abort(3) raises (signal(7)).
const CRASHES: [libc::c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGABRT,
];

/// What is to be said now; null: nothing.
static WORDS: AtomicPtr<String> = AtomicPtr::new(std::ptr::null_mut());

/// Has `text` said on stderr should this process crash from now on. The few texts of a
/// session are never freed: a crash may come at any instant.
pub fn say(text: String) {
    WORDS.store(Box::leak(Box::new(text)), Ordering::Release);
}

/// From now on there is nothing to be said.
pub fn nothing() {
    WORDS.store(std::ptr::null_mut(), Ordering::Release);
}

/// Listens for crashes. Where the kernel refuses, a crash is a silent one.
pub fn listen() {
    for signal in CRASHES {
        // SAFETY: zeros are a valid sigaction (no flags, default action, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = speak as *const () as usize;
        // Once: the second time the default action ends the process. On the stack that the
        // standard library gives its threads for this, as theirs may be at its end.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: `speak` calls only what signal-safety(7) lists, and atomics.
        let _ = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

extern "C" fn speak(signal: libc::c_int) {
    let words = WORDS.load(Ordering::Acquire);
    if !words.is_null() {
        // SAFETY: what is not null was leaked by `say`, and is never changed or freed.
        let words = unsafe { (*words).as_bytes() };
        // SAFETY: a live buffer of this length; that it may be written in part only is of
        // no interest to a process that is about to end.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len()) };
    }
    // SAFETY: its argument is a number. The action is the default one now.
    let _ = unsafe { libc::raise(signal) };
}
