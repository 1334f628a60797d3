//! Kernel abilities by name: probed, shown by `memcr check`, required by tests.
//!
//! Each probe tries the thing itself, on our own process, and nothing else: version
//! numbers lie (backports, configurations, policies).

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;

use serde::Serialize;

use super::pagemap::{Pagemap, Region};
use super::proc_mem::ProcMem;
use super::{check, kcmp, keyring, page_size, process_vm, procfs, sched, userfaultfd};
use crate::pages::{PageRun, RemoteAddr};

/// An ability of this kernel, for this user.
#[derive(Debug, Clone, Serialize)]
pub struct Feature {
    /// Its name, also in tests.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why it is not available; `None`: it is.
    pub missing: Option<String>,
    /// What memcr does without it.
    pub without: &'static str,
    /// Without it nothing can be checkpointed.
    pub is_required: bool,
}

/// Probes everything.
#[must_use]
pub fn probe_all() -> Vec<Feature> {
    PROBES
        .iter()
        .map(|probe| Feature {
            name: probe.name,
            what: probe.what,
            missing: (probe.try_it)().err().map(|error| error.to_string()),
            without: probe.without,
            is_required: probe.is_required,
        })
        .collect()
}

struct Probe {
    name: &'static str,
    what: &'static str,
    without: &'static str,
    is_required: bool,
    try_it: fn() -> io::Result<()>,
}

const PROBES: &[Probe] = &[
    Probe {
        name: "ptrace",
        what: "ptrace(2) of other processes",
        without: "only children of memcr, or nothing, can be checkpointed",
        is_required: true,
        try_it: ptrace_any,
    },
    Probe {
        name: "pidfd",
        what: "pidfd_open(2), Linux 5.3",
        without: "no target can be named safely; nothing is checkpointed",
        is_required: true,
        try_it: pidfd,
    },
    Probe {
        name: "pagemap",
        what: "/proc/PID/pagemap (CONFIG_PROC_PAGE_MONITOR)",
        without: "it is not known which pages are the target's own; nothing is checkpointed",
        is_required: true,
        try_it: pagemap,
    },
    Probe {
        name: "proc_mem_force",
        what: "writes to protected pages through /proc/PID/mem",
        without: "private pages that the target itself cannot write stay in RAM (boot option proc_mem.force_override)",
        is_required: false,
        try_it: proc_mem_force,
    },
    Probe {
        name: "userfaultfd",
        what: "/dev/userfaultfd (Linux 6.1), or userfaultfd(2), with the events of Linux 4.11; pidfd_getfd(2), Linux 5.6",
        without: "dropped memory is not guarded: a death of memcr kills the target, and `memcr checkpoint` is refused",
        is_required: false,
        try_it: userfaultfd::probe,
    },
    Probe {
        name: "process_vm",
        what: "process_vm_readv(2), CONFIG_CROSS_MEMORY_ATTACH",
        without: "pages go through /proc/PID/mem, somewhat slower",
        is_required: false,
        try_it: process_vm_read,
    },
    Probe {
        name: "pagemap_scan",
        what: "PAGEMAP_SCAN ioctl, Linux 6.7",
        without: "page maps are read whole: large mappings with few pages take longer, and huge pages come back as small ones",
        is_required: false,
        try_it: pagemap_scan,
    },
    Probe {
        name: "kcmp",
        what: "kcmp(2), CONFIG_KCMP",
        without: "a target that shares its memory with another process (CLONE_VM) is not recognised",
        is_required: false,
        try_it: kcmp_vm,
    },
    Probe {
        name: "keyring",
        what: "the user keyring, keyctl(2), CONFIG_KEYS",
        without: "an ephemeral key of `encrypt` is known to one memcr only: no other can restore what that one held",
        is_required: false,
        try_it: keyring::probe,
    },
    Probe {
        name: "sched_file",
        what: "/proc/PID/task/TID/sched",
        without: "epoll_wait and the like begin anew with their whole timeout after a checkpoint",
        is_required: false,
        try_it: sched_file,
    },
    Probe {
        name: "suspend_seccomp",
        what: "PTRACE_O_SUSPEND_SECCOMP (CAP_SYS_ADMIN)",
        without: "targets with a seccomp filter are refused",
        is_required: false,
        try_it: suspend_seccomp,
    },
    Probe {
        name: "thp_disable",
        what: "prctl(PR_SET_THP_DISABLE)",
        without: "small pages may come back as huge ones, and the target's resident size may grow",
        is_required: false,
        try_it: thp_disable,
    },
    Probe {
        name: "dontneed_locked",
        what: "MADV_DONTNEED_LOCKED, Linux 5.18",
        without: "locked memory stays in RAM, whoever asks for it",
        is_required: false,
        try_it: dontneed_locked,
    },
];

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn ptrace_any() -> io::Result<()> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let can_override = has_capability(19)?; // CAP_SYS_PTRACE
    match scope.trim() {
        "" | "0" => Ok(()),
        "1" | "2" if can_override => Ok(()),
        other => Err(io::Error::other(format!(
            "kernel.yama.ptrace_scope is {other}"
        ))),
    }
}

fn pidfd() -> io::Result<()> {
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )?;
    drop(pidfd);
    Ok(())
}

fn pagemap() -> io::Result<()> {
    let own = OwnPage::map(false)?;
    let mut entry = [0];
    Pagemap::open(own_pid())?.entries(own.addr(), &mut entry)
}

fn pagemap_scan() -> io::Result<()> {
    let own = OwnPage::map(false)?;
    let mut regions = [Region::default(); 1];
    Pagemap::open(own_pid())?
        .scan(own.addr(), own.addr() + page_size(), 1, &mut regions)
        .map(drop)
}

/// Writes to a page that is read-only, without being a tracer: so do the workers that
/// bring pages back.
///
/// # Errors
/// EIO where the kernel was told to forbid it.
pub fn proc_mem_force() -> io::Result<()> {
    let own = OwnPage::map(true)?;
    ProcMem::open(own_pid())?.write(own.addr(), &[1])
}

fn process_vm_read() -> io::Result<()> {
    let own = OwnPage::map(true)?;
    let run = PageRun {
        addr: RemoteAddr(own.addr()),
        len_bytes: page_size(),
    };
    process_vm::read(own_pid(), &[run], &mut vec![0; page_size() as usize])
}

fn kcmp_vm() -> io::Result<()> {
    kcmp::share_memory(own_pid(), own_pid()).map(drop)
}

fn sched_file() -> io::Result<()> {
    File::open("/proc/self/sched")?;
    sched::asleep(own_pid(), own_pid())
        .map(drop)
        .ok_or_else(|| io::Error::other("it has not the fields of Linux 6"))
}

fn suspend_seccomp() -> io::Result<()> {
    let own = procfs::Status::of_process(own_pid())?;
    match (has_capability(21)?, own.number("Seccomp")) {
        (false, _) => Err(io::Error::other("we have no CAP_SYS_ADMIN")),
        (true, Some(1..)) => Err(io::Error::other("we have a filter ourselves")),
        (true, _) => Ok(()),
    }
}

fn thp_disable() -> io::Result<()> {
    // SAFETY: reads a flag of our own process; no memory is passed.
    check(unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) }.into()).map(drop)
}

fn dontneed_locked() -> io::Result<()> {
    const MADV_DONTNEED_LOCKED: libc::c_int = 24;
    let own = OwnPage::map(true)?;
    // SAFETY: the page is a mapping of our own that nothing refers to.
    check(unsafe { libc::madvise(own.0.cast(), page_size() as usize, MADV_DONTNEED_LOCKED) }.into())
        .map(drop)
}

/// Bit `number` of the effective set (capabilities(7)).
fn has_capability(number: u32) -> io::Result<bool> {
    Ok(procfs::Status::of_process(own_pid())?.signals("CapEff") & 1 << number != 0)
}

/// An anonymous page of our own, read-only if asked for.
struct OwnPage(*mut u8);

impl OwnPage {
    fn map(read_only: bool) -> io::Result<Self> {
        let len = NonZeroUsize::new(page_size() as usize).ok_or(io::ErrorKind::Unsupported)?;
        let prot = if read_only {
            libc::PROT_READ
        } else {
            libc::PROT_READ | libc::PROT_WRITE
        };
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice
        // touches no memory that exists.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len.get(),
                prot,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self(page.cast()))
        }
    }

    fn addr(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for OwnPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and is unmapped once.
        unsafe { libc::munmap(self.0.cast(), page_size() as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_a_name_of_its_own_and_probes_do_not_fail_alike() {
        let features = probe_all();
        let names: std::collections::BTreeSet<_> =
            features.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), features.len());
        // Every Linux that can run this test has process descriptors.
        assert!(
            features
                .iter()
                .any(|feature| feature.name == "pidfd" && feature.missing.is_none())
        );
    }
}
