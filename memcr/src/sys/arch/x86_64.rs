//! x86_64 (System V ABI, AMD64 Architecture Programmer's Manual; syscall(2)).

use super::InterruptedCall;

/// The architecture's name in images and messages.
pub const NAME: &str = "x86_64";

/// The instruction that enters the kernel.
pub const SYSCALL_INSN: &[u8] = &[0x0f, 0x05];

// Answers that only the kernel's own signal code sees (include/linux/errno.h).
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
/// "Restart if no handler".
pub const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Number of the general registers as ptrace(2) hands them out (`user_regs_struct`).
const N_REGS: usize = 27;

/// Numbers of the system calls that memcr makes in targets or knows by name.
#[allow(missing_docs)]
pub mod nr {
    pub const READ: u64 = libc::SYS_read as u64;
    pub const WRITE: u64 = libc::SYS_write as u64;
    pub const READV: u64 = libc::SYS_readv as u64;
    pub const WRITEV: u64 = libc::SYS_writev as u64;
    pub const MMAP: u64 = libc::SYS_mmap as u64;
    pub const MUNMAP: u64 = libc::SYS_munmap as u64;
    pub const MPROTECT: u64 = libc::SYS_mprotect as u64;
    pub const MADVISE: u64 = libc::SYS_madvise as u64;
    pub const CLOSE: u64 = libc::SYS_close as u64;
    pub const IOCTL: u64 = libc::SYS_ioctl as u64;
    pub const SOCKETPAIR: u64 = libc::SYS_socketpair as u64;
    pub const USERFAULTFD: u64 = libc::SYS_userfaultfd as u64;
    pub const TGKILL: u64 = libc::SYS_tgkill as u64;
    pub const RT_SIGPROCMASK: u64 = libc::SYS_rt_sigprocmask as u64;
    pub const RESTART_SYSCALL: u64 = libc::SYS_restart_syscall as u64;
    pub const PRCTL: u64 = libc::SYS_prctl as u64;
    pub const RT_SIGTIMEDWAIT: u64 = libc::SYS_rt_sigtimedwait as u64;
    pub const EPOLL_WAIT: u64 = libc::SYS_epoll_wait as u64;
    pub const EPOLL_PWAIT: u64 = libc::SYS_epoll_pwait as u64;
    pub const EPOLL_PWAIT2: u64 = libc::SYS_epoll_pwait2 as u64;
    pub const SELECT: u64 = libc::SYS_select as u64;
    pub const PSELECT6: u64 = libc::SYS_pselect6 as u64;
    pub const PPOLL: u64 = libc::SYS_ppoll as u64;
    pub const SEMOP: u64 = libc::SYS_semop as u64;
    pub const SEMTIMEDOP: u64 = libc::SYS_semtimedop as u64;
    pub const IO_GETEVENTS: u64 = libc::SYS_io_getevents as u64;
    pub const IO_PGETEVENTS: u64 = 333; // not in the libc crate for this target
    pub const IO_URING_ENTER: u64 = libc::SYS_io_uring_enter as u64;
    pub const ACCEPT: u64 = libc::SYS_accept as u64;
    pub const ACCEPT4: u64 = libc::SYS_accept4 as u64;
    pub const CONNECT: u64 = libc::SYS_connect as u64;
    pub const RECVFROM: u64 = libc::SYS_recvfrom as u64;
    pub const RECVMSG: u64 = libc::SYS_recvmsg as u64;
    pub const RECVMMSG: u64 = libc::SYS_recvmmsg as u64;
    pub const SENDTO: u64 = libc::SYS_sendto as u64;
    pub const SENDMSG: u64 = libc::SYS_sendmsg as u64;
    pub const SENDMMSG: u64 = libc::SYS_sendmmsg as u64;
    pub const SENDFILE: u64 = libc::SYS_sendfile as u64;
    pub const SPLICE: u64 = libc::SYS_splice as u64;
    pub const FALLOCATE: u64 = libc::SYS_fallocate as u64;
}

/// The general registers of a stopped thread: `NT_PRSTATUS` of ptrace(2).
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Regs(libc::user_regs_struct);

impl Default for Regs {
    fn default() -> Self {
        // SAFETY: a struct of integers only; all zero bits are a value of each.
        Self(unsafe { std::mem::zeroed() })
    }
}

impl Regs {
    /// Address of the next instruction.
    #[must_use]
    pub fn pc(&self) -> u64 {
        self.0.rip
    }

    /// The stack pointer.
    #[must_use]
    pub fn sp(&self) -> u64 {
        self.0.rsp
    }

    /// Where its C library keeps what belongs to the thread.
    #[must_use]
    pub fn thread_pointer(&self) -> u64 {
        self.0.fs_base
    }

    /// Bytes below the stack pointer that belong to the function that runs (red zone).
    pub const RED_ZONE_LEN: u64 = 128;

    /// True when the thread runs 32-bit code: its code segment is the kernel's
    /// `__USER32_CS` (0x23). Remote calls of ours would use the wrong table.
    #[must_use]
    pub fn is_compat(&self) -> bool {
        self.0.cs == 0x23
    }

    /// The call the thread was in when it stopped; none when it stopped in user code
    /// (`orig_rax` is then negative).
    #[must_use]
    pub fn interrupted_call(&self) -> Option<InterruptedCall> {
        let regs = &self.0;
        (regs.orig_rax.cast_signed() >= 0).then_some(InterruptedCall {
            nr: regs.orig_rax,
            args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
            result: regs.rax.cast_signed(),
        })
    }

    /// Registers with which the kernel begins the interrupted call again, with `args`, as
    /// soon as the thread goes on; unless it has a signal for a handler first: then the
    /// call answers EINTR, and that is the truth.
    #[must_use]
    pub fn restarting(&self, args: [u64; 6]) -> Self {
        let mut regs = *self;
        regs.set_args(args);
        regs.0.rax = (-ERESTARTNOHAND).cast_unsigned();
        regs
    }

    /// Registers that make one call at `site`, the address of a [`SYSCALL_INSN`].
    #[must_use]
    pub fn with_call(&self, site: u64, nr: u64, args: [u64; 6]) -> Self {
        let mut regs = self.with_args(nr, args);
        regs.0.rip = site;
        regs
    }

    /// Registers that run the parasite at `entry` over `n_entries` (≥ 1) at `table`.
    #[must_use]
    pub fn with_entry(&self, entry: u64, table: u64, n_entries: u64) -> Self {
        let mut regs = self.with_args(0, [0; 6]);
        regs.0.rip = entry;
        regs.0.rbx = table;
        regs.0.r12 = n_entries;
        // The direction flag does not matter, the trap and alignment flags must be off:
        // TF 0x100, DF 0x400, AC 0x40000.
        regs.0.eflags &= !0x4_0500;
        regs
    }

    /// What the call that just returned answered.
    #[must_use]
    pub fn syscall_result(&self) -> i64 {
        self.0.rax.cast_signed()
    }

    /// All of them as words, to be kept somewhere else.
    #[must_use]
    pub fn to_words(&self) -> [u64; N_REGS] {
        // SAFETY: both are exactly 27 integers of 64 bits without padding, for which
        // every bit pattern is a value.
        unsafe { std::mem::transmute(self.0) }
    }

    /// The registers that [`Regs::to_words`] gave.
    #[must_use]
    pub fn from_words(words: [u64; N_REGS]) -> Self {
        // SAFETY: as in `to_words`.
        Self(unsafe { std::mem::transmute::<[u64; N_REGS], libc::user_regs_struct>(words) })
    }

    /// What the parasite loads to put a thread back where it was without us: its words
    /// in the order of `parasite/src/x86_64.rs`, and the flags. `elsewhere`: the thread
    /// goes on at this address instead.
    ///
    /// An interrupted call is begun again, as the kernel does it on the way out of a
    /// stop: it looks at the registers for that, but only of a thread that comes out of
    /// a system call.
    #[must_use]
    pub fn way_back(&self, elsewhere: Option<u64>) -> ([u64; 17], u64) {
        let mut regs = self.0;
        if let Some(call) = self.interrupted_call() {
            let restart = match -call.result {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Some(call.nr),
                ERESTART_RESTARTBLOCK => Some(nr::RESTART_SYSCALL),
                _ => None,
            };
            if let Some(nr) = restart {
                (regs.rax, regs.rip) = (nr, regs.rip - SYSCALL_INSN.len() as u64);
            }
        }
        regs.rip = elsewhere.unwrap_or(regs.rip);
        let words = [
            regs.r15, regs.r14, regs.r13, regs.r12, regs.rbp, regs.rbx, regs.r11, regs.r10,
            regs.r9, regs.r8, regs.rax, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rip,
        ];
        (words, regs.eflags)
    }

    /// Of a thread in the parasite: the address of the entry it is at.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.0.rbx
    }

    fn set_args(&mut self, [a, b, c, d, e, f]: [u64; 6]) {
        (self.0.rdi, self.0.rsi, self.0.rdx) = (a, b, c);
        (self.0.r10, self.0.r8, self.0.r9) = (d, e, f);
    }

    fn with_args(&self, nr: u64, args: [u64; 6]) -> Self {
        let mut regs = *self;
        regs.set_args(args);
        regs.0.rax = nr;
        // "Not in a system call": the kernel then leaves rax and rip alone on resume.
        regs.0.orig_rax = u64::MAX;
        regs
    }
}
