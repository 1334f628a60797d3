//! kcmp(2): do two processes share a kernel object?

use std::io;

const KCMP_VM: libc::c_int = 1;

/// True when the two processes share their memory (CLONE_VM). Also true when neither has
/// any: of kernel threads, zombies and processes about to end.
///
/// # Errors
/// ENOSYS without CONFIG_KCMP; EPERM; ESRCH.
pub fn share_memory(pid_a: i32, pid_b: i32) -> io::Result<bool> {
    // SAFETY: kcmp reads no memory of ours; all arguments are numbers.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pid_a, pid_b, KCMP_VM, 0, 0) };
    super::check(result).map(|order| order == 0)
}
