//! What makes life hard for calls that are injected: limits reached, a jail, no rights,
//! settings that calls of ours might change.
#![allow(unsafe_code)]

use crate::opts::Opts;
use crate::region::Region;
use crate::sys::{check, page_len, prctl, set_soft_limit};
use std::io;
use std::os::fd::OwnedFd;

/// The options of this kind: `nofile=1 as=1 nproc=1 sigpending=1 chroot=DIR uid=N mdwe=1
/// nothp=1`.
pub(crate) struct Hardship {
    fill_fds: bool,
    tight_space: bool,
    no_processes: bool,
    no_signal_queue: bool,
    jail: String,
    uid: u64,
    no_new_code: bool,
    no_huge_pages: bool,
}

impl Hardship {
    pub(crate) fn parse(opts: &Opts) -> Self {
        Self {
            fill_fds: opts.flag("nofile"),
            tight_space: opts.flag("as"),
            no_processes: opts.flag("nproc"),
            no_signal_queue: opts.flag("sigpending"),
            jail: opts.text("chroot", ""),
            uid: opts.number("uid", 0),
            no_new_code: opts.flag("mdwe"),
            no_huge_pages: opts.flag("nothp"),
        }
    }

    /// The jail and the user. Comes first: when a process changes its user, the C library
    /// interrupts every thread, which threads at work would report.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn move_away(&self) -> io::Result<()> {
        if !self.jail.is_empty() {
            std::os::unix::fs::chroot(&self.jail)?;
            std::env::set_current_dir("/")?;
        }
        if self.uid != 0 {
            // SAFETY: no preconditions; glibc tells all threads.
            check(unsafe { libc::setgid(self.uid as u32) })?;
            // SAFETY: as above.
            check(unsafe { libc::setuid(self.uid as u32) })?;
        }
        Ok(())
    }

    /// The limits. Comes last: afterwards nothing can be opened, mapped or started.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn tighten(&self) -> io::Result<Vec<OwnedFd>> {
        if self.no_new_code {
            // PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN (Linux 6.3).
            prctl(65, 1, 0, 0, 0)?;
        }
        if self.no_huge_pages {
            prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0)?;
        }
        if self.no_processes {
            set_soft_limit(libc::RLIMIT_NPROC, 0)?;
        }
        if self.no_signal_queue {
            set_soft_limit(libc::RLIMIT_SIGPENDING, 0)?;
        }
        let fds = if self.fill_fds {
            exhaust_fds()?
        } else {
            Vec::new()
        };
        if self.tight_space {
            set_soft_limit(libc::RLIMIT_AS, find_space_limit()?)?;
        }
        Ok(fds)
    }
}

/// Opens descriptors until none is left.
fn exhaust_fds() -> io::Result<Vec<OwnedFd>> {
    set_soft_limit(libc::RLIMIT_NOFILE, 64)?;
    let mut fds = Vec::new();
    loop {
        // SAFETY: makes a descriptor.
        match crate::sys::owned(i64::from(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })) {
            Ok(fd) => fds.push(fd),
            Err(err) if err.raw_os_error() == Some(libc::EMFILE) => return Ok(fds),
            Err(err) => return Err(err),
        }
    }
}

/// The smallest limit under which what is mapped may stay and nothing can be added. In
/// a jail there is no `/proc` to read it from: halved until one more page is refused.
fn find_space_limit() -> io::Result<u64> {
    let page = page_len() as u64;
    let (mut enough, mut too_small) = (1u64 << 46, 0u64);
    while enough - too_small > page {
        let limit = (too_small + (enough - too_small) / 2) / page * page;
        set_soft_limit(libc::RLIMIT_AS, limit)?;
        match one_more_page() {
            true => enough = limit,
            false => too_small = limit.max(too_small + page),
        }
    }
    Ok(too_small)
}

/// Whether a page can be mapped.
fn one_more_page() -> bool {
    let Ok(region) = Region::anon(page_len()) else {
        return false;
    };
    // SAFETY: mapped just now, and nothing refers to it.
    unsafe { libc::munmap(region.ptr(), region.len()) == 0 }
}
