//! `/proc/PID/mem` (proc(5)): reads and writes whatever the mapping's protection.
//!
//! With `proc_mem.force_override=ptrace` on the kernel's command line only the tracer
//! itself may override a protection, with `never` nobody: callers see EIO then.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// An open `/proc/PID/mem`. It stays bound to the memory it was opened on: after an
/// exec or the end of the process reads give 0 bytes, never another process's memory.
#[derive(Debug)]
pub struct ProcMem(File);

impl ProcMem {
    /// Opens the memory of `pid` for reading and writing.
    ///
    /// # Errors
    /// EACCES or EPERM without the right to trace it; ENOENT or ESRCH when it is gone.
    pub fn open(pid: i32) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map(Self)
    }

    /// Reads exactly `out.len()` bytes at `addr`.
    ///
    /// # Errors
    /// EIO: not mapped, or not readable by any means.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, addr)
    }

    /// Writes all of `bytes` at `addr`.
    ///
    /// # Errors
    /// EIO: not mapped, or not writable by any means.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, addr)
    }

    /// Reads a 64-bit number at `addr`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_u64(&self, addr: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}
