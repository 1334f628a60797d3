//! What differs between architectures: one file each, the same items in each. The
//! chooser below is the only test for the architecture in the program.
//!
//! Items: `NAME`, `SYSCALL_INSN`, `ERESTARTNOHAND`, `nr`, `Regs` (with the methods that `freeze`,
//! `inject` and `checkpoint` use) and `BLOB`.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{ERESTARTNOHAND, NAME, Regs, SYSCALL_INSN, nr};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "memcr has no code for this architecture yet: add sys/arch/ARCH.rs and parasite/src/ARCH.rs"
);

/// The parasite, as built and checked by the build script.
pub const BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/parasite.bin"));

/// A system call that a stopped thread was in, as its registers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptedCall {
    /// Its number.
    pub nr: u64,
    /// Its arguments, unchanged by the kernel.
    pub args: [u64; 6],
    /// What it would answer now, `-errno`; may be one of the kernel's own restart codes.
    pub result: i64,
}
