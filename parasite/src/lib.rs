//! The code that runs inside the target: a vector of system calls, and nothing else.
//!
//! ```text
//!            table (RW mapping)                        code (RX mapping)
//!   first ─▶ ┌────┬───────────┬─────┐   entry:  load nr, args; system call; store ret
//!            │ nr │ args[0..6]│ ret │             next entry, until none is left
//!            ├────┼───────────┼─────┤   done:   trap, for ever
//!            │ …  │           │     │
//! ```
//!
//! It uses registers only: no stack (the thread's red zone and its guard stay as they
//! are), no vector registers (so none is saved), no libc, no relocations. It has no
//! policy: a failing call is recorded in `ret` and the next one is made.
//!
//! The trap loops: where a SIGTRAP of the target's own is delivered in its place (a
//! legacy signal is queued once only, signal(7)), continuing runs into the trap again.
//!
//! memcr's build script compiles this crate for the target architecture with
//! `--cfg memcr_blob`, checks that the one section has no relocations and the object no
//! unresolved symbols, and embeds the bytes.

#![no_std]

#[cfg(all(memcr_blob, target_arch = "x86_64"))]
mod x86_64;

/// One system call: what to call, and what it answered (`-errno` on failure).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// Number of the call on this architecture.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// What the kernel answered.
    pub ret: i64,
}

/// Size of an [`Entry`] in bytes; the assembly steps by it.
pub const ENTRY_LEN: usize = 64;
const _: () = assert!(size_of::<Entry>() == ENTRY_LEN);
