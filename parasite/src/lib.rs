//! The code that runs inside the target: a vector of system calls, and the way back.
//!
//! ```text
//!   one mapping in the target
//!   ┌──────────────┐ 0          code, read and execute: walk the entries, then put every
//!   │ code         │            general register back and jump to where the thread was
//!   ├──────────────┤ DATA       data, read and write
//!   │ registers    │  REGS      what the way back loads
//!   │ (the host's) │            what the host keeps here
//!   │ entries      │  ENTRIES   nr, args[0..6], ret; nr …
//!   │ flags        │  FLAGS     popped with a stack that may grow down over the entries
//!   └──────────────┘ DATA + DATA_LEN
//! ```
//!
//! It uses registers only: no stack (the thread's red zone and its guard stay as they
//! are), no vector registers (so none is saved), no libc, no relocations. It has no
//! policy: a failing call is recorded in `ret` and the next one is made.
//!
//! **The thread cures itself.** The last entries of every table are the host's: a SIGSTOP
//! to the own thread, then the calls that give back what the registers do not hold (the
//! signal mask). A tracer sees that SIGSTOP arrive and takes the thread over there. With
//! the tracer gone the process stands still at that point, and whenever it is continued,
//! the thread makes the last calls, loads its registers and is back in its own code. A
//! trap at the end would be a signal that kills, and a sigreturn frame would need every
//! vector register saved in it.
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

/// Offset of the data in the mapping: the largest page size of the architecture, so that
/// code and data never share a page. The assembly knows it.
pub const DATA: u64 = 4096;
/// Offset in the data of the registers that the way back loads, in the order of the
/// architecture's assembly.
pub const REGS: u64 = 0;
/// Offset in the data of what the host keeps there; it ends at [`ENTRIES`].
pub const HOST: u64 = 0x100;
/// Offset in the data of the entries.
pub const ENTRIES: u64 = 0x1000;
/// Offset in the data of the flags: at the end, with everything below for a signal's
/// frame, should one be delivered in the moment in which the stack pointer is here.
pub const FLAGS: u64 = DATA_LEN - 8;
/// Length of the data, bytes: room for 1024 entries and 16 KiB behind them.
pub const DATA_LEN: u64 = 0x1000 + 0x10000 + 0x4000;
