//! Parts that a tool of this kind has to leave alone.
#![allow(unsafe_code)]

use super::anon::whole;
use super::{Check, Setup, failed};
use crate::fill::{Content, Rule};
use crate::region::Region;
use crate::sys::{check, check_long, owned, page_len};
use crate::talk::Wrong;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// `MADV_GUARD_INSTALL`, Linux 6.13.
const MADV_GUARD_INSTALL: i32 = 102;
/// `MAP_DROPPABLE`, Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
/// `MLOCK_ONFAULT`.
const MLOCK_ONFAULT: u32 = 1;

pub(super) fn locked(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    // SAFETY: the range is ours.
    check(unsafe { libc::mlock(region.ptr(), region.len()) })?;
    Ok(whole(region, setup.rule))
}

/// Locked as pages arrive; every other page has.
pub(super) fn locked_on_fault(setup: &Setup) -> io::Result<Check> {
    let region = Region::anon(setup.len)?;
    // SAFETY: the range is ours.
    check(unsafe { libc::mlock2(region.ptr(), region.len(), MLOCK_ONFAULT) })?;
    region
        .every(0, 2)
        .for_each(|mut page| page.fill(setup.rule));
    let rule = setup.rule;
    Ok(Box::new(move || {
        region
            .every(0, 2)
            .try_fold(0, |sum, page| page.check(rule).map(|n| sum + n))
    }))
}

/// Everything locked, and whatever is mapped later.
pub(super) fn lock_all(_: &Setup) -> io::Result<Check> {
    // SAFETY: no preconditions.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })?;
    Ok(Box::new(|| Ok(0)))
}

/// Guard markers in the middle of ordinary memory.
pub(super) fn guard(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    let page_len = page_len();
    let fence = region.part(16 * page_len, 4 * page_len);
    fence.advise(MADV_GUARD_INSTALL)?;
    let (rule, below) = (setup.rule, region.part(0, 16 * page_len));
    let above = region.part(20 * page_len, region.len() - 20 * page_len);
    Ok(Box::new(move || {
        fence.every(0, 1).try_for_each(must_fault)?;
        Ok(below.check(rule)? + above.check(rule)?)
    }))
}

/// A read by the kernel on our behalf fails where our own would be a SIGSEGV.
fn must_fault(page: Region) -> Result<(), Wrong> {
    let mut byte = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: page.ptr(),
        iov_len: 1,
    };
    // SAFETY: `local` is one writable byte; `remote` is only an address for the kernel.
    let n = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    if n == -1 {
        Ok(())
    } else {
        Err(Wrong {
            addr: page.addr(),
            what: "the guard page can be read".into(),
        })
    }
}

/// Memory that may not be remapped (mseal, Linux 6.10).
pub(super) fn sealed(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    let read_only = Region::anon(setup.len)?;
    let mut filling = read_only;
    filling.fill(setup.rule);
    read_only.protect(libc::PROT_READ)?;
    for sealed in [region, read_only] {
        // SAFETY: mseal (462 on every architecture) forbids changes of a range of ours.
        check_long(unsafe { libc::syscall(462, sealed.ptr(), sealed.len(), 0) })?;
    }
    let rule = setup.rule;
    Ok(Box::new(move || {
        Ok(region.check(rule)? + read_only.check(rule)?)
    }))
}

/// Memory that the kernel may drop whenever it likes: each page is right or zero.
pub(super) fn droppable(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::map(
        setup.len,
        READ_WRITE,
        MAP_DROPPABLE | libc::MAP_ANONYMOUS,
        None,
    )?;
    region.fill(setup.rule);
    let (rule, zero) = (
        setup.rule,
        Rule {
            content: Content::Zero,
            seed: 0,
        },
    );
    Ok(Box::new(move || {
        let right = |page: Region| page.check(zero).or_else(|_| page.check(rule));
        region
            .every(0, 1)
            .try_fold(0, |sum, page| right(page).map(|n| sum + n))
    }))
}

/// memfd_secret: not even the kernel has these pages mapped.
pub(super) fn secret(setup: &Setup) -> io::Result<Check> {
    // SAFETY: makes a descriptor.
    let fd = owned(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) })?;
    // Secret memory is locked memory: keep below the usual limit of 8 MiB.
    let len = setup.len.min(1 << 20);
    File::from(fd.try_clone()?).set_len(len as u64)?;
    let mut region = Region::map(len, READ_WRITE, libc::MAP_SHARED, Some((fd.as_fd(), 0)))?;
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}

/// Two explicit huge pages.
pub(super) fn hugetlb(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::map(4 << 20, READ_WRITE, PRIVATE | libc::MAP_HUGETLB, None)?;
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}

/// A range whose missing pages the victim itself delivers. Somebody who drops pages
/// here makes our handler deliver twice.
pub(super) fn own_userfaultfd(setup: &Setup) -> io::Result<Check> {
    let region = Region::anon(setup.len.min(1 << 20))?;
    region.advise(libc::MADV_NOHUGEPAGE)?;
    let n_pages = region.len() / page_len();
    region.part(0, region.len() / 2).fill(setup.rule);
    let uffd = uffd::register(region)?;
    let n_faults = Arc::new(AtomicU64::new(0));
    let (rule, counter) = (setup.rule, Arc::clone(&n_faults));
    std::thread::spawn(move || uffd::deliver(&uffd, rule, &counter));
    // A quarter is delivered now, a quarter not before the first check.
    region
        .part(region.len() / 2, region.len() / 4)
        .check(rule)
        .map_err(|w| io::Error::other(w.to_string()))?;
    Ok(Box::new(move || {
        let len_bytes = region.check(rule)?;
        let got = n_faults.load(Ordering::SeqCst);
        if got == n_pages as u64 / 2 {
            return Ok(len_bytes);
        }
        Err(Wrong::state(format!(
            "{got} pages were asked of our own userfaultfd, want {}",
            n_pages / 2
        )))
    }))
}

/// As much of `linux/userfaultfd.h` as the part needs.
mod uffd {
    use super::*;

    const NEW: u64 = 0xaa00;
    const API: u64 = 0xc018_aa3f;
    const REGISTER: u64 = 0xc020_aa00;
    const COPY: u64 = 0xc028_aa03;
    const MODE_MISSING: u64 = 1;

    /// `ioctl` with a block of numbers.
    fn ioctl(fd: &OwnedFd, request: u64, block: &mut [u64]) -> io::Result<i32> {
        // SAFETY: each request below gets a block of the length that its number encodes.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), request, block.as_mut_ptr()) })
    }

    pub(super) fn register(region: Region) -> io::Result<OwnedFd> {
        let device = OwnedFd::from(File::open("/dev/userfaultfd")?);
        // SAFETY: takes flags by value and makes a descriptor.
        let fd = owned(i64::from(unsafe {
            libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC)
        }))?;
        ioctl(&fd, API, &mut [0xaa, 0, 0])?;
        ioctl(
            &fd,
            REGISTER,
            &mut [region.addr() as u64, region.len() as u64, MODE_MISSING, 0],
        )?;
        Ok(fd)
    }

    /// Answers faults until the descriptor fails.
    pub(super) fn deliver(fd: &OwnedFd, rule: Rule, n_faults: &AtomicU64) {
        let mut message = [0u8; 32];
        let mut page = vec![0u8; page_len()];
        let Ok(mut events) = fd.try_clone().map(File::from) else {
            return;
        };
        while events.read_exact(&mut message).is_ok() {
            let mut addr = [0; 8];
            addr.copy_from_slice(&message[16..24]);
            let addr = u64::from_le_bytes(addr) & !(page.len() as u64 - 1);
            rule.page(addr, &mut page);
            n_faults.fetch_add(1, Ordering::SeqCst);
            let mut block = [addr, page.as_ptr().addr() as u64, page.len() as u64, 0, 0];
            if let Err(err) = ioctl(fd, COPY, &mut block) {
                crate::talk::die(&failed("deliver a page", &err).to_string());
            }
        }
    }
}
