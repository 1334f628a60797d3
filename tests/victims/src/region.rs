//! Mappings of the victim's own, as owned values.
#![allow(unsafe_code)]

use crate::fill::Rule;
use crate::sys::page_len;
use crate::talk::Wrong;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One `mmap`. Not unmapped on drop: a victim keeps what it has until it exits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    addr: usize,
    len: usize,
}

impl Region {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// What `mmap` says.
    pub(crate) fn map(
        len: usize,
        prot: i32,
        flags: i32,
        file: Option<(BorrowedFd<'_>, i64)>,
    ) -> io::Result<Self> {
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        // SAFETY: a null hint without MAP_FIXED replaces nothing that exists.
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            addr: ptr.addr(),
            len,
        })
    }

    /// Maps `len` bytes of private anonymous memory, readable and writable.
    ///
    /// # Errors
    /// What `mmap` says.
    pub(crate) fn anon(len: usize) -> io::Result<Self> {
        Self::map(
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            None,
        )
    }

    /// Memory that somebody else mapped and leaves alone (a grown heap, a segment).
    ///
    /// # Safety
    /// `addr..addr+len` is mapped, stays so, and nothing else holds references into it.
    pub(crate) unsafe fn adopt(addr: usize, len: usize) -> Self {
        Self { addr, len }
    }

    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// `len` bytes from `offset`, as a region.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset + len <= self.len,
            "{offset}+{len} is outside of {} bytes",
            self.len
        );
        Self {
            addr: self.addr + offset,
            len,
        }
    }

    /// The bytes; they must be readable.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `map` got this range from the kernel (or `adopt`'s caller vouched for
        // it) and nothing unmaps it; the victim writes through `bytes_mut` only.
        unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.addr), self.len)
        }
    }

    /// The bytes; they must be readable and writable.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`; `&mut self` and the modes' habit of giving each range one
        // owner keep references apart.
        unsafe {
            std::slice::from_raw_parts_mut(
                std::ptr::with_exposed_provenance_mut(self.addr),
                self.len,
            )
        }
    }

    /// # Errors
    /// What `mprotect` says.
    pub(crate) fn protect(&self, prot: i32) -> io::Result<()> {
        // SAFETY: the range is ours; code that reads or writes it knows its protection.
        crate::sys::check(unsafe { libc::mprotect(self.ptr(), self.len, prot) }).map(drop)
    }

    /// # Errors
    /// What `madvise` says.
    pub(crate) fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the range is ours; advice that discards contents is given before filling.
        crate::sys::check(unsafe { libc::madvise(self.ptr(), self.len, advice) }).map(drop)
    }

    /// Pointer for system calls.
    pub(crate) fn ptr(&self) -> *mut libc::c_void {
        std::ptr::with_exposed_provenance_mut(self.addr)
    }

    /// Fills everything by `rule`, keyed by address.
    pub(crate) fn fill(&mut self, rule: Rule) {
        let key = self.addr as u64;
        rule.fill(key, self.bytes_mut());
    }

    /// Checks everything against `rule`, keyed by address.
    ///
    /// # Errors
    /// The first byte that differs.
    pub(crate) fn check(&self, rule: Rule) -> Result<u64, Wrong> {
        rule.check(self.addr as u64, self.addr, self.bytes())
    }

    /// The pages `first, first+step, …` as regions of one page each.
    pub(crate) fn every(&self, first: usize, step: usize) -> impl Iterator<Item = Self> + use<> {
        let (whole, page_len) = (*self, page_len());
        (first..self.len / page_len)
            .step_by(step)
            .map(move |i| whole.part(i * page_len, page_len))
    }
}
