//! The system calls that no crate of ours wraps safely: giving pages back, userfaultfd, paging
//! out another process, what of a file is in the page cache.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// `_IO(0xAA, 0x00)` (linux/userfaultfd.h).
const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xAA00 as libc::Ioctl;
/// The one version of the interface.
const UFFD_API: u64 = 0xAA;
/// Faults on absent pages.
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// Arguments of `UFFDIO_API`: api, features, ioctls.
type ApiArgs = [u64; 3];
/// Arguments of `UFFDIO_REGISTER`: start, length, mode, ioctls.
type RegisterArgs = [u64; 4];
/// Arguments of `UFFDIO_COPY`: destination, source, length, mode, bytes copied.
type CopyArgs = [u64; 5];

/// Gives the pages of `memory` back to the kernel. Private anonymous memory is zero
/// afterwards.
///
/// # Errors
/// EINVAL unless `memory` begins and ends with a page.
pub(crate) fn give_back(memory: &mut [u8]) -> io::Result<()> {
    let whole_pages = memory.as_ptr().addr().is_multiple_of(page_size())
        && memory.len().is_multiple_of(page_size());
    if !whole_pages {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the call changes the bytes of whole pages, all of which lie within
    // `memory`, which is borrowed for us alone; any byte is a valid `u8`.
    unsafe {
        madvise(
            memory.as_mut_ptr().cast(),
            memory.len(),
            Advice::LinuxDontNeed,
        )
    }?;
    Ok(())
}

/// Has pages of another process written to swap; answers how many bytes the kernel has gone
/// through, which may be less than `len`. Pages that it cannot write stay.
///
/// # Errors
/// EPERM: not for this user; EINVAL: no whole pages, or a kernel before 5.10; ENOMEM: not all
/// of it is mapped.
pub(crate) fn page_out(pidfd: impl AsFd, addr: usize, len: usize) -> io::Result<usize> {
    let pages = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(addr),
        iov_len: len,
    };
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call reads one iovec, which outlives it. What that points to is memory of
    // the other process, of which MADV_PAGEOUT changes no byte; and none of ours if it is us.
    let n = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd,
            &raw const pages,
            1,
            libc::MADV_PAGEOUT,
            0,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Pages of a file that are in the page cache.
///
/// # Errors
/// ENOSYS: a kernel before 6.5; EOPNOTSUPP: huge TLB pages.
pub(crate) fn cached_pages(file: &File) -> io::Result<u64> {
    /// cachestat(2), on all architectures; libc does not have it everywhere.
    const SYS_CACHESTAT: libc::c_long = 451;
    // `struct cachestat_range`: offset and length, where 0 is up to the end; `struct
    // cachestat`: pages cached, dirty, under writeback, evicted, evicted of late.
    let (range, mut found) = ([0_u64; 2], [0_u64; 5]);
    // SAFETY: the call reads two and writes five numbers of 64 bits, which is what `range`
    // and `found` are; both outlive it.
    let n = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            found.as_mut_ptr(),
            0,
        )
    };
    if n == 0 {
        Ok(found[0])
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A userfaultfd of this process.
#[derive(Debug)]
pub(crate) struct Userfault(OwnedFd);

impl Userfault {
    /// Makes one.
    ///
    /// # Errors
    /// ENOENT: the kernel has none; EACCES: not for this user.
    pub(crate) fn new() -> io::Result<Self> {
        let device = File::open("/dev/userfaultfd")?;
        // SAFETY: the argument of this call is a number, nothing is pointed to.
        let fd = check(unsafe {
            libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC)
        })?;
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        uffd.call::<ApiArgs>(0x3F, [UFFD_API, 0, 0])?;
        Ok(uffd)
    }

    /// Takes over the faults on absent pages of `memory`. Who touches one waits until
    /// [`Userfault::copy`] has filled it, or this is dropped.
    ///
    /// # Errors
    /// EINVAL unless it is whole pages of anonymous memory.
    pub(crate) fn register(&self, memory: &mut [u8]) -> io::Result<()> {
        let (addr, len) = (memory.as_ptr().addr() as u64, memory.len() as u64);
        self.call::<RegisterArgs>(0x00, [addr, len, UFFDIO_REGISTER_MODE_MISSING, 0])
    }

    /// Fills absent pages: `to`, registered, with `from`, of the same length.
    ///
    /// # Errors
    /// EEXIST: a page is not absent; EINVAL: not whole pages, or different lengths.
    pub(crate) fn copy(&self, to: &mut [u8], from: &[u8]) -> io::Result<()> {
        if to.len() != from.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (to, len) = (to.as_mut_ptr().addr() as u64, to.len() as u64);
        self.call::<CopyArgs>(0x03, [to, from.as_ptr().addr() as u64, len, 0, 0])
    }

    /// A call `_IOWR(0xAA, number, args)`.
    fn call<Args>(&self, number: u64, mut args: Args) -> io::Result<()> {
        let request = 3 << 30 | (size_of::<Args>() as u64) << 16 | 0xAA << 8 | number;
        let args = &raw mut args;
        // SAFETY: `args` is as long as the request says, which is what the kernel reads
        // and writes. What it points to is only written by UFFDIO_COPY, whose caller has
        // borrowed `to` for itself and `from` for reading, both of the length given; a
        // descriptor that is no userfaultfd would answer ENOTTY.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, args) }).map(drop)
    }
}

fn check(ret: i32) -> io::Result<i32> {
    if ret == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Userfault, cached_pages, give_back, page_out};
    use crate::warm::{absent, touched};

    const LEN: usize = 1 << 20;

    #[test]
    fn given_back_memory_is_zero() {
        let mut memory = touched(LEN).unwrap();
        assert_eq!(memory[0], 1);
        give_back(&mut memory).unwrap();
        assert!(memory.iter().all(|byte| *byte == 0));
        assert!(give_back(&mut memory[1..]).is_err());
    }

    #[test]
    fn a_file_just_written_is_cached() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[1; LEN]).unwrap();
        // A kernel before 6.5 does not tell.
        let Ok(n) = cached_pages(&file) else { return };
        assert_eq!(n as usize, LEN / rustix::param::page_size());
    }

    #[test]
    fn paging_out_changes_no_byte() {
        let memory = touched(LEN).unwrap();
        let us = rustix::process::getpid();
        let us = rustix::process::pidfd_open(us, rustix::process::PidfdFlags::empty()).unwrap();
        // Not for everybody, and not on every kernel.
        let Ok(n) = page_out(&us, memory.as_ptr().addr(), LEN) else {
            return;
        };
        assert_eq!((n, memory[0]), (LEN, 1));
        assert!(page_out(&us, 1, LEN).is_err());
    }

    #[test]
    fn absent_pages_are_filled() {
        // Not everywhere, and not for everybody.
        let Ok(uffd) = Userfault::new() else { return };
        let mut memory = absent(LEN).unwrap();
        uffd.register(&mut memory).unwrap();
        uffd.copy(&mut memory, &vec![7; LEN]).unwrap();
        assert!(memory.iter().all(|byte| *byte == 7));
        assert!(uffd.copy(&mut memory, &[]).is_err());
    }
}
