//! ptrace(2), the requests that memcr uses. All for threads that the calling thread traces.

use std::io;
use std::mem::size_of;

use nix::sys::ptrace as nix_ptrace;
use nix::unistd::Pid;

use super::arch::Regs;
use super::check;

pub use nix_ptrace::Options;

/// `PTRACE_O_SUSPEND_SECCOMP` (Linux 4.3; needs CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE).
pub const SUSPEND_SECCOMP: i32 = 1 << 21;

const NT_PRSTATUS: usize = 1;
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
const GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const GETSIGMASK: libc::c_uint = 0x420a;
const SETSIGMASK: libc::c_uint = 0x420b;

/// Attaches without stopping. `options` are bits of [`Options`]: not [`SUSPEND_SECCOMP`], which
/// would switch the filter off for calls that the thread makes before it stops.
///
/// # Errors
/// ESRCH: no such thread; EPERM: not allowed, already traced, or exiting.
pub fn seize(tid: i32, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize)
}

/// Sets the options of a stopped tracee.
///
/// # Errors
/// ESRCH: not stopped, or gone; EPERM for [`SUSPEND_SECCOMP`] without the right.
pub fn set_options(tid: i32, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize)
}

/// Makes a seized thread stop soon, without a signal.
///
/// # Errors
/// ESRCH: gone.
pub fn interrupt(tid: i32) -> io::Result<()> {
    Ok(nix_ptrace::interrupt(Pid::from_raw(tid))?)
}

/// Lets a stopped thread run on, with `signal` delivered (0: none).
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn cont(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a stopped thread run to the entry or exit of a system call, with `signal`
/// delivered (0: none).
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn cont_to_syscall(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize)
}

/// Ends tracing of a stopped thread.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn detach(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, 0)
}

/// The data of the last ptrace event: the new thread's id for a clone.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn event_message(tid: i32) -> io::Result<i64> {
    Ok(nix_ptrace::getevent(Pid::from_raw(tid))?)
}

/// What is known of the signal a thread stopped for.
///
/// # Errors
/// EINVAL: it did not stop for one; ESRCH: gone.
pub fn signal_info(tid: i32) -> io::Result<libc::siginfo_t> {
    Ok(nix_ptrace::getsiginfo(Pid::from_raw(tid))?)
}

/// The general registers. `Ok(None)`: the thread is of another ABI (a 32-bit thread
/// has a register set of another size).
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn registers(tid: i32) -> io::Result<Option<Regs>> {
    let mut regs = Regs::default();
    let mut iov = libc::iovec {
        iov_base: (&raw mut regs).cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        libc::PTRACE_GETREGSET,
        tid,
        NT_PRSTATUS,
        &raw mut iov as usize,
    )?;
    Ok((iov.iov_len == size_of::<Regs>() && !regs.is_compat()).then_some(regs))
}

/// Sets the general registers.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn set_registers(tid: i32, regs: &Regs) -> io::Result<()> {
    let mut iov = libc::iovec {
        iov_base: (&raw const *regs).cast_mut().cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        libc::PTRACE_SETREGSET,
        tid,
        NT_PRSTATUS,
        &raw mut iov as usize,
    )
}

/// The blocked signals, bit N-1 for signal N, real-time signals included.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0_u64;
    request(GETSIGMASK, tid, size_of::<u64>(), &raw mut mask as usize)?;
    Ok(mask)
}

/// Sets the blocked signals. The kernel keeps SIGKILL and SIGSTOP out of it.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    request(SETSIGMASK, tid, size_of::<u64>(), &raw const mask as usize)
}

/// `struct ptrace_rseq_configuration` (linux/ptrace.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RseqConfiguration {
    rseq_abi_pointer: u64,
    rseq_abi_size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// The restartable-sequences area of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RseqArea {
    /// It has registered none.
    None,
    /// At this address.
    At(u64),
    /// The kernel cannot tell (before Linux 5.13).
    Unknown,
}

impl RseqArea {
    /// Its address, if it is known that there is one.
    #[must_use]
    pub fn known(self) -> Option<u64> {
        match self {
            Self::At(area) => Some(area),
            Self::None | Self::Unknown => None,
        }
    }
}

/// Where a thread's restartable-sequences area is.
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn rseq_area(tid: i32) -> io::Result<RseqArea> {
    let mut config = RseqConfiguration::default();
    let data = &raw mut config as usize;
    match request(
        GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>(),
        data,
    ) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(RseqArea::Unknown),
        Err(error) => Err(error),
        Ok(()) if config.rseq_abi_pointer == 0 => Ok(RseqArea::None),
        Ok(()) => Ok(RseqArea::At(config.rseq_abi_pointer)),
    }
}

/// `struct ptrace_sud_config` (linux/ptrace.h): syscall user dispatch of a thread.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserDispatch {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

impl UserDispatch {
    /// As numbers, to be kept somewhere else: mode, selector's address, and the range that
    /// is not dispatched (address, length).
    #[must_use]
    pub fn to_words(&self) -> [u64; 4] {
        [self.mode, self.selector, self.offset, self.len]
    }

    /// What [`UserDispatch::to_words`] gave.
    #[must_use]
    pub fn from_words([mode, selector, offset, len]: [u64; 4]) -> Self {
        Self {
            mode,
            selector,
            offset,
            len,
        }
    }

    /// True when the thread has its system calls dispatched to itself.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != 0
    }
}

/// Syscall user dispatch of a thread (Linux 6.4; older kernels: answered as off).
///
/// # Errors
/// ESRCH: not stopped, or gone.
pub fn user_dispatch(tid: i32) -> io::Result<UserDispatch> {
    let mut config = UserDispatch::default();
    let size = size_of::<UserDispatch>();
    match request(
        GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size,
        &raw mut config as usize,
    ) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(UserDispatch::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(config),
    }
}

/// Sets syscall user dispatch of a thread; the default value switches it off.
///
/// # Errors
/// ESRCH: not stopped, or gone; EINVAL: not a configuration.
pub fn set_user_dispatch(tid: i32, config: &UserDispatch) -> io::Result<()> {
    let size = size_of::<UserDispatch>();
    request(
        SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size,
        &raw const *config as usize,
    )
}

fn request(request: libc::c_uint, tid: i32, addr: usize, data: usize) -> io::Result<()> {
    // SAFETY: the callers above pass, for each request, either plain numbers or
    // addresses of live values of exactly the size that the request reads or writes
    // (given in `addr` or in the iovec); the kernel checks everything else.
    let result = unsafe { libc::ptrace(request, tid, addr, data) };
    check(result).map(drop)
}
