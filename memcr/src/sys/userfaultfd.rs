//! userfaultfd(2), ioctl_userfaultfd(2): a context that makes a thread that touches a
//! missing page wait until somebody provides it.
//!
//! The context belongs to the memory of the process that made it; whoever holds the
//! descriptor may register ranges and provide pages. Changes of the memory's layout
//! (fork, mremap, madvise) wait until they were read as [`Event`]s.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::check;
use super::procfs::Status;
use crate::pages::{PageRun, RemoteAddr};

/// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0x00)`: a new context, made through the device.
pub const IOC_NEW: u64 = 0xaa00;

const API: libc::c_ulong = 0xc018_aa3f; // _IOWR(0xAA, 0x3f, struct uffdio_api)
const REGISTER: libc::c_ulong = 0xc020_aa00; // _IOWR(0xAA, 0x00, struct uffdio_register)
const UNREGISTER: libc::c_ulong = 0x8010_aa01; // _IOR(0xAA, 0x01, struct uffdio_range)
const COPY: libc::c_ulong = 0xc028_aa03; // _IOWR(0xAA, 0x03, struct uffdio_copy)
const ZEROPAGE: libc::c_ulong = 0xc020_aa04; // _IOWR(0xAA, 0x04, struct uffdio_zeropage)

const API_VERSION: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
/// `UFFD_FEATURE_EVENT_FORK`, `_REMAP`, `_REMOVE`, `_UNMAP` (Linux 4.11): without them a child, a
/// moved mapping, a range given up, and a mapping that came or grew to where another one was
/// would read zeros or stale bytes.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

// `UFFD_EVENT_*` of linux/userfaultfd.h.
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
/// Length of `struct uffd_msg`, bytes.
const MESSAGE_LEN: usize = 32;

/// Opens `/dev/userfaultfd` (Linux 6.1): contexts made through it wait for accesses of the
/// kernel too, whatever `vm.unprivileged_userfaultfd` says.
///
/// # Errors
/// ENOENT: the kernel has none; EACCES.
pub fn open_device() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_CLOEXEC);
    Ok(options.open("/dev/userfaultfd")?.into())
}

/// Tries the thing itself on our own memory: a context that waits for the kernel's own
/// accesses, with the events that a guard needs, whose descriptor is fetched as that of a
/// target would be (pidfd_getfd(2), Linux 5.6).
///
/// What a target may do that has to make its context by itself is another question:
/// [`may_be_made_by`].
///
/// # Errors
/// Why there is none.
pub fn probe() -> io::Result<()> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let made = match open_device() {
        Ok(device) => {
            // SAFETY: the request takes its flags by value.
            let made = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW as libc::c_ulong, flags) };
            made.into()
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            // SAFETY: its only argument is a number.
            unsafe { libc::syscall(libc::SYS_userfaultfd, flags) }
        }
        Err(error) => return Err(error),
    };
    let descriptor = check(made)?;
    // SAFETY: the kernel has just handed it out, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fetched = pidfd_getfd(own, descriptor.as_raw_fd(), PidfdGetfdFlags::empty())?;
    Userfault::shake_hands(fetched).map(drop)
}

/// Whether the kernel lets the process `pid` make a context that waits for the kernel's own
/// accesses: where there is no device it has to do so by itself.
///
/// # Errors
/// Why not.
pub fn may_be_made_by(pid: i32) -> io::Result<()> {
    let sysctl = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok();
    // One that is gone may do whatever it likes.
    let Ok(status) = Status::of_process(pid) else {
        return Ok(());
    };
    let user_ns = fs::metadata(format!("/proc/{pid}/ns/user")).map(|it| it.ino());
    if is_allowed(sysctl.as_deref(), status.signals("CapEff"), user_ns.ok()) {
        return Ok(());
    }
    let what = format!(
        "there is no /dev/userfaultfd, and process {pid} may not call userfaultfd(2) itself \
         (vm.unprivileged_userfaultfd is 0, and it has no CAP_SYS_PTRACE)"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// `sysctl`: `vm.unprivileged_userfaultfd`; none: a kernel before 5.2, which lets everybody.
fn is_allowed(sysctl: Option<&str>, capabilities: u64, user_ns: Option<u64>) -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    /// That of the first user namespace (`PROC_USER_INIT_INO`): capabilities within another
    /// one do not count.
    const FIRST_USER_NS: u64 = 0xefff_fffd;
    let is_open = sysctl.is_none_or(|text| text.trim() != "0");
    is_open || capabilities & CAP_SYS_PTRACE != 0 && user_ns.is_none_or(|it| it == FIRST_USER_NS)
}

/// A change of the memory's layout, whose thread goes on once it was read.
#[derive(Debug)]
pub enum Event {
    /// The process forked: the child's memory has this context.
    Fork(Userfault),
    /// Pages were moved (mremap(2)).
    Remap {
        /// From where.
        from: PageRun,
        /// Where to.
        to: RemoteAddr,
    },
    /// Pages are given up (madvise(2) MADV_DONTNEED, MADV_FREE, MADV_REMOVE).
    Remove(PageRun),
    /// Mappings are gone (munmap(2), or one of mmap(2) or mremap(2) in their place).
    Unmap(PageRun),
    /// Somebody waits for the page at this address.
    Fault(RemoteAddr),
    /// Another event, that nobody asked for.
    Other,
}

/// A userfaultfd context.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl AsFd for Userfault {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Userfault {
    /// A context on which the first handshake is still to be made.
    ///
    /// # Errors
    /// EINVAL: the kernel lacks a feature, or the handshake was made before; EPERM: to
    /// hear of forks takes CAP_SYS_PTRACE.
    pub fn shake_hands(descriptor: OwnedFd) -> io::Result<Self> {
        let context = Self(descriptor);
        let mut arg = [API_VERSION, FEATURES, 0];
        context.ioctl(API, &mut arg)?;
        Ok(context)
    }

    /// A context that somebody else made the handshake on.
    #[must_use]
    pub fn of_handshaken(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// From now on a touch of a missing page of `run` waits. Whole mappings only, so
    /// that none is split; several that touch may be one run.
    ///
    /// # Errors
    /// EINVAL: not all of it is anonymous memory; EBUSY: registered with another context;
    /// EPERM.
    pub fn register(&self, run: PageRun) -> io::Result<()> {
        let mut arg = [run.addr.0, run.len_bytes, MODE_MISSING, 0];
        self.ioctl(REGISTER, &mut arg)
    }

    /// Ends that; threads that wait go on, and find what is there.
    ///
    /// # Errors
    /// EINVAL: nothing like that is there any more.
    pub fn unregister(&self, run: PageRun) -> io::Result<()> {
        let mut arg = [run.addr.0, run.len_bytes];
        self.ioctl(UNREGISTER, &mut arg)
    }

    /// Provides the missing pages of `run` with `bytes` (of the same length) at once, and
    /// wakes who waits for them. Answers how many bytes were provided: a page that is
    /// there already ends it early.
    ///
    /// # Errors
    /// EEXIST: the first page is there already; ENOENT: the run is not within one
    /// registered mapping; EAGAIN: the layout is changing, an event is to be read; ESRCH:
    /// the process is gone; ENOMEM.
    pub fn copy(&self, run: PageRun, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() as u64 != run.len_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut arg = [run.addr.0, bytes.as_ptr() as u64, run.len_bytes, 0, 0];
        let result = self.ioctl(COPY, &mut arg);
        // The last word is what was copied: with EAGAIN, less than asked for.
        let copied = arg[4].cast_signed();
        match result {
            Err(error) if error.raw_os_error() != Some(libc::EAGAIN) || copied <= 0 => Err(error),
            _ => Ok(copied.cast_unsigned()),
        }
    }

    /// Lets `page`, which is missing, be one of zeros, and wakes who waits for it.
    ///
    /// # Errors
    /// As [`Userfault::copy`].
    pub fn zero(&self, page: PageRun) -> io::Result<()> {
        let mut arg = [page.addr.0, page.len_bytes, 0, 0];
        self.ioctl(ZEROPAGE, &mut arg)
    }

    /// The next event; `None`: there is none now.
    ///
    /// # Errors
    /// None that a context without O_NONBLOCK or with could cause but EINTR.
    pub fn next_event(&self) -> io::Result<Option<Event>> {
        let mut message = [0; MESSAGE_LEN];
        match rustix::io::read(&self.0, &mut message) {
            Ok(MESSAGE_LEN) => Ok(Some(parse(&message))),
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the layout is changing: an event that is no fault is to be read, or was a moment
    /// ago. While it is the kernel refuses to provide pages before it looks which ones
    /// (`userfaultfd_zeropage()` of fs/userfaultfd.c, Linux 4.18), and none are asked for.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        let nothing = PageRun {
            addr: RemoteAddr(0),
            len_bytes: 0,
        };
        let refused = self.zero(nothing).map_err(|error| error.raw_os_error());
        refused == Err(Some(libc::EAGAIN))
    }

    /// Whether [`Userfault::next_event`] would answer one.
    #[must_use]
    pub fn has_event(&self) -> bool {
        let mut fd = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec::default();
        poll(&mut fd, Some(&now)).is_ok_and(|n_ready| n_ready > 0)
    }

    fn ioctl<const WORDS: usize>(
        &self,
        request: libc::c_ulong,
        arg: &mut [u64; WORDS],
    ) -> io::Result<()> {
        // SAFETY: every caller passes a live array of exactly the struct that the request
        // reads and writes, all of whose fields are 64 bits wide. `copy` passes the
        // address of a live slice of the length that stands beside it.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, arg.as_mut_ptr()) };
        check(result.into()).map(drop)
    }
}

/// Reads a `struct uffd_msg`: the event's number, then from byte 8 on its argument.
fn parse(message: &[u8; MESSAGE_LEN]) -> Event {
    let words = message.as_chunks::<8>().0;
    let [_, a, b, c] = [0, 1, 2, 3].map(|i| u64::from_ne_bytes(words[i]));
    let run = |start, len_bytes| PageRun {
        addr: RemoteAddr(start),
        len_bytes,
    };
    match message[0] {
        // Flags, then the address.
        EVENT_PAGEFAULT => Event::Fault(RemoteAddr(b)),
        EVENT_FORK => {
            // SAFETY: with this event the kernel has opened a descriptor for the reader,
            // whose number is the argument and which nobody else knows of.
            Event::Fork(Userfault(unsafe { OwnedFd::from_raw_fd(a as i32) }))
        }
        EVENT_REMAP => Event::Remap {
            from: run(a, c),
            to: RemoteAddr(b),
        },
        EVENT_REMOVE => Event::Remove(run(a, b.wrapping_sub(a))),
        EVENT_UNMAP => Event::Unmap(run(a, b.wrapping_sub(a))),
        _ => Event::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_make_a_context_by_itself() {
        const FIRST: Option<u64> = Some(0xefff_fffd);
        let (all, none) = (u64::MAX, 0);
        assert!(is_allowed(Some("1\n"), none, FIRST));
        assert!(!is_allowed(Some("0\n"), none, FIRST));
        assert!(!is_allowed(Some("0\n"), !(1 << 19), FIRST));
        assert!(is_allowed(Some("0\n"), 1 << 19, FIRST));
        // In a container with a user namespace of its own.
        assert!(!is_allowed(Some("0\n"), all, Some(0xf000_0001)));
        assert!(is_allowed(Some("1\n"), none, Some(0xf000_0001)));
        // Before Linux 5.2; and where the namespace cannot be seen.
        assert!(is_allowed(None, none, FIRST));
        assert!(is_allowed(Some("0\n"), all, None));
    }
}
