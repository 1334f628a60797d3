//! `/proc/PID/pagemap`: bulk reads, and the PAGEMAP_SCAN ioctl (Linux 6.7).
//!
//! Layout of entries and of the ioctl's structs: Documentation/admin-guide/mm/pagemap.rst
//! and include/uapi/linux/fs.h. Frame numbers are never used: they read as 0 without
//! CAP_SYS_ADMIN.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::{check, page_size};

/// What PAGEMAP_SCAN tells of a range, as bits (`PAGE_IS_*`).
pub mod category {
    /// A page of a file or of shared memory.
    pub const FILE: u64 = 1 << 2;
    /// In RAM.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub const PFNZERO: u64 = 1 << 5;
    /// Mapped by a huge page-table entry.
    pub const HUGE: u64 = 1 << 6;
}

/// `struct page_region`: consecutive pages of the same categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// Bits of [`category`]; none: nothing is known of them, nor whether they are there.
    pub categories: u64,
}

impl Region {
    /// It is mapped by huge entries.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.categories & category::HUGE != 0
    }

    /// All its pages are in RAM, and of no file.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        let of = category::PRESENT | category::SWAPPED | category::FILE;
        self.categories & of == category::PRESENT
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// An open `/proc/PID/pagemap`.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of `pid`.
    ///
    /// # Errors
    /// EACCES or EPERM without the right to trace it; ENOENT or ESRCH when it is gone.
    pub fn open(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Reads the 64-bit entries of consecutive pages from `addr` on.
    ///
    /// # Errors
    /// When `/proc` cannot give them.
    pub fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
        let mut bytes = [0_u8; 8192];
        let mut offset = addr / page_size() * 8;
        for part in out.chunks_mut(bytes.len() / 8) {
            let raw = &mut bytes[..part.len() * 8];
            self.0.read_exact_at(raw, offset)?;
            for (entry, word) in part.iter_mut().zip(raw.as_chunks::<8>().0) {
                *entry = u64::from_ne_bytes(*word);
            }
            offset += raw.len() as u64;
        }
        Ok(())
    }

    /// Finds the regions of `start..end` that are present or swapped, ascending, into
    /// `regions`, up to `max_pages` pages of them; answers their number. When `regions` is full,
    /// or they have as many pages, there may be more behind the last one, which may end within a
    /// huge page. (Where the kernel says
    /// that its walk ended, `walk_end`, is of no use: it can lie before the last region, by 4 MiB
    /// on 6.18.)
    ///
    /// # Errors
    /// ENOTTY before Linux 6.7.
    pub fn scan(
        &self,
        start: u64,
        end: u64,
        max_pages: u64,
        regions: &mut [Region],
    ) -> io::Result<usize> {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: category::PRESENT | category::SWAPPED,
            return_mask: category::FILE
                | category::PRESENT
                | category::SWAPPED
                | category::PFNZERO
                | category::HUGE,
        };
        // SAFETY: `arg` is a live struct of the ioctl's layout; its vector is `regions`,
        // writable for `vec_len` elements of the kernel's `struct page_region`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        let n_regions = check(result.into())?;
        // The kernel answers at most `vec_len`, which came from a `usize`.
        Ok(n_regions as usize)
    }
}
