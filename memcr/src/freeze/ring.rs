//! An io_uring of the target: is it idle?
//!
//! What its fdinfo says (io_uring/fdinfo.c), and why it is asked:
//!
//! | field                       | idle         | otherwise                                   |
//! |-----------------------------|--------------|---------------------------------------------|
//! | `ino`                       | mapped       | its queues lie in the target's own pages (IORING_SETUP_NO_MMAP), which the kernel would go on using when they are dropped |
//! | `CachedSqHead`, `CqTail`, `CachedCqTail` | all the same | taken, but not completed; or completed more than once (multishot), or not at all (CQE_SKIP): cannot be counted |
//! | `SqThread`                  | -1           | a thread of the kernel takes requests (SQPOLL) |
//! | `UserBufs`                  | 0            | pages of the target are pinned as buffers   |
//! | `PollList`                  | empty        | requests wait, multishot ones among them, whose numbers may add up |
//! | `CqOverflowList`            | empty        | completions that the numbers leave out      |
//!
//! A field that is missing (an old kernel, or the ring was locked when it was looked at)
//! counts as busy. What fdinfo does not tell:
//!
//! * Provided buffers that are listed in the target's own pages (IORING_REGISTER_PBUF_RING,
//!   io_uring_setup_buf_ring(3)), from which the kernel would go on reading when they are
//!   dropped. These are asked for ([`io_uring::buffer_rings`]): a list that the kernel has
//!   allocated is mapped, any other is the target's. A ring that may not be asked counts as
//!   busy: nothing else tells of such pages, which are pinned and in no `VmPin`.
//! * Requests under way beside just as many completions without a request. They are found
//!   when they complete while pages are stored: the figures must stay the same.
//!
//! A ring may be without a descriptor: closed when it was registered
//! (IORING_REGISTER_RING_FDS), or in the table of a thread that shares it with no other. It is
//! mapped all the same, and that much tells of it ([`has_hidden`]).

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::maps::vma::Vma;
use crate::sys::io_uring;

/// The file as a link and in maps(5).
pub(super) const NAME: &[u8] = b"anon_inode:[io_uring]";

/// Where in the file a list of provided buffers is mapped that the kernel has allocated:
/// `IORING_OFF_PBUF_RING`, and the group above `IORING_OFF_PBUF_SHIFT` (linux/io_uring.h).
const BUFFER_RINGS: u64 = 0x8000_0000;
const GROUP_SHIFT: u32 = 16;

/// One ring, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ring {
    /// Number of its descriptor in the target.
    number: i32,
    info: String,
}

impl Ring {
    /// Reads what the kernel says of the ring on descriptor `number`.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn read(pid: i32, number: i32) -> io::Result<Self> {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
        Ok(Self { number, info })
    }

    /// `what` with the ring's name before it.
    pub(super) fn named(&self, what: &str) -> String {
        format!("io_uring on descriptor {}: {what}", self.number)
    }

    /// `Err`: what it is busy with. `vmas`: the target's mappings.
    pub(super) fn check(&self, vmas: &[Vma]) -> Result<(), String> {
        let Some(figures) = Figures::parse(&self.info) else {
            return Err("its state cannot be read".into());
        };
        figures.check()?;
        // IORING_OFF_SQ_RING
        if !is_mapped(vmas, figures.inode, 0) {
            return Err("its queues are not mapped by the kernel".into());
        }
        Ok(())
    }

    /// `Err`: its buffers may be listed in pages of the target's own. `pidfd`: of the target.
    pub(super) fn check_buffers(&self, pidfd: BorrowedFd<'_>, vmas: &[Vma]) -> Result<(), String> {
        let ring = pidfd_getfd(pidfd, self.number, PidfdGetfdFlags::empty());
        let groups = ring
            .map_err(io::Error::from)
            .and_then(|ring| io_uring::buffer_rings(ring.as_fd()))
            .map_err(|error| format!("it cannot be asked for its provided buffers: {error}"))?;
        match groups
            .into_iter()
            .find(|&group| !self.has_mapped(group, vmas))
        {
            Some(group) => Err(format!(
                "the provided buffers of group {group} are listed in the process's own memory"
            )),
            None => Ok(()),
        }
    }

    fn has_mapped(&self, group: u16, vmas: &[Vma]) -> bool {
        let offset = BUFFER_RINGS | u64::from(group) << GROUP_SHIFT;
        self.inode()
            .is_some_and(|inode| is_mapped(vmas, inode, offset))
    }

    fn inode(&self) -> Option<u64> {
        Figures::parse(&self.info).map(|figures| figures.inode)
    }

    /// `Err`: what has changed since it was read.
    pub(super) fn is_unchanged(&self, pid: i32) -> Result<(), String> {
        let now = Self::read(pid, self.number).map_err(|error| error.to_string())?;
        if Figures::parse(&now.info) == Figures::parse(&self.info) {
            Ok(())
        } else {
            Err("requests have completed meanwhile".into())
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figures {
    inode: u64,
    taken: u64,
    /// Completions, as the target sees them, and as the kernel counts.
    completed: [u64; 2],
    has_thread: bool,
    n_buffers: u64,
    n_waiting: usize,
    n_overflown: usize,
}

impl Figures {
    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let number = |name| field(name)?.parse().ok();
        Some(Self {
            inode: number("ino")?,
            taken: number("CachedSqHead")?,
            completed: [number("CqTail")?, number("CachedCqTail")?],
            has_thread: field("SqThread")? != "-1",
            n_buffers: number("UserBufs")?,
            n_waiting: n_entries(info, "PollList:")?,
            n_overflown: n_entries(info, "CqOverflowList:")?,
        })
    }

    fn check(&self) -> Result<(), String> {
        // Counters of 32 bits that wrap around; so is their difference.
        let under_way = (self.taken as u32).wrapping_sub(self.completed[0] as u32);
        let busy = [
            (self.has_thread, "a thread of the kernel takes its requests"),
            (self.n_buffers > 0, "it has registered buffers"),
            (self.n_overflown > 0, "its completions have overflown"),
            (
                under_way.cast_signed() < 0,
                "it has more completions than requests",
            ),
        ];
        if let Some((_, what)) = busy.iter().find(|(is_so, _)| *is_so) {
            return Err((*what).into());
        }
        match under_way as usize {
            0 if self.n_waiting > 0 => Err(format!("{} requests wait", self.n_waiting)),
            0 if self.completed[0] != self.completed[1] => Err("it is completing requests".into()),
            0 => Ok(()),
            n => Err(format!("{n} requests are not completed")),
        }
    }
}

/// The number of indented lines below `title`.
fn n_entries(info: &str, title: &str) -> Option<usize> {
    let mut lines = info.lines().skip_while(|line| *line != title);
    lines.next()?;
    Some(lines.take_while(|line| line.starts_with(' ')).count())
}

/// Whether there is a ring among the mappings that is none of `rings`, those on descriptors.
pub(super) fn has_hidden(vmas: &[Vma], rings: &[Ring]) -> bool {
    let mut mapped = vmas.iter().filter(|vma| &*vma.name == NAME);
    mapped.any(|vma| !rings.iter().any(|ring| ring.inode() == Some(vma.inode)))
}

/// Whether `offset` of the ring's file is mapped.
fn is_mapped(vmas: &[Vma], inode: u64, offset: u64) -> bool {
    let is_it = |vma: &Vma| (vma.inode, vma.offset) == (inode, offset) && &*vma.name == NAME;
    vmas.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::maps::vma;

    const IDLE: &str = "pos:\t0\nino:\t77\nSqHead:\t4\nSqTail:\t4\nCachedSqHead:\t4\nCqHead:\t4\n\
        CqTail:\t4\nCachedCqTail:\t4\nSQEs:\t0\nCQEs:\t0\nSqThread:\t-1\nUserFiles:\t0\nUserBufs:\t0\n\
        PollList:\nCqOverflowList:\nNAPI:\tdisabled\n";
    const MAPS: &[u8] = b"1000-2000 rw-s 10000000 00:10 77 anon_inode:[io_uring]\n\
        3000-4000 rw-s 00000000 00:10 77 anon_inode:[io_uring]\n";

    fn ring(info: &str) -> Ring {
        Ring {
            number: 3,
            info: info.into(),
        }
    }

    fn check(info: &str, maps: &[u8]) -> Result<(), String> {
        ring(info).check(&vma::parse(maps).unwrap())
    }

    #[test]
    fn an_idle_ring_is_idle() {
        assert_eq!(check(IDLE, MAPS), Ok(()));
    }

    #[test]
    fn whatever_may_be_under_way_is_busy() {
        for (from, to, why) in [
            (
                "CqTail:\t4\nCached",
                "CqTail:\t1\nCached",
                "3 requests are not",
            ),
            (
                "CqTail:\t4\nCached",
                "CqTail:\t5\nCached",
                "more completions",
            ),
            ("CachedCqTail:\t4", "CachedCqTail:\t5", "completing"),
            ("SqThread:\t-1", "SqThread:\t812", "thread of the kernel"),
            ("UserBufs:\t0", "UserBufs:\t2", "buffers"),
            (
                "PollList:\n",
                "PollList:\n  op=22, task_works=0\n",
                "1 requests wait",
            ),
            (
                "List:\nNAPI",
                "List:\n  user_data=1, res=2, flags=0\nNAPI",
                "overflown",
            ),
            ("PollList:\n", "", "cannot be read"),
            ("SqThread:\t-1\n", "", "cannot be read"),
        ] {
            let busy = IDLE.replace(from, to);
            assert_ne!(busy, IDLE, "{from}");
            let what = check(&busy, MAPS).err().unwrap_or_default();
            assert!(what.contains(why), "{why}: {what}");
        }
    }

    #[test]
    fn counters_wrap_around() {
        let wrapped = IDLE.replace(":\t4\nCached", ":\t4294967295\nCached");
        assert!(check(&wrapped, MAPS).is_err_and(|what| what.contains("5 requests")));
    }

    #[test]
    fn queues_in_the_targets_own_pages_are_busy() {
        for maps in [
            &b"1000-2000 rw-p 0 00:00 0\n"[..],
            b"1000-2000 rw-s 10000000 00:10 77 anon_inode:[io_uring]\n",
        ] {
            assert!(check(IDLE, maps).is_err_and(|what| what.contains("not mapped")));
        }
    }

    #[test]
    fn a_list_of_buffers_is_the_kernels_where_it_is_mapped() {
        let maps = b"5000-6000 rw-s 80070000 00:10 77 anon_inode:[io_uring]\n";
        let vmas = vma::parse(maps).unwrap();
        assert!(ring(IDLE).has_mapped(7, &vmas));
        assert!(!ring(IDLE).has_mapped(8, &vmas));
        assert!(!ring(&IDLE.replace("77", "78")).has_mapped(7, &vmas));
    }

    #[test]
    fn a_ring_without_a_descriptor_is_seen_by_its_mapping() {
        let vmas = vma::parse(MAPS).unwrap();
        assert!(!has_hidden(&vmas, &[ring(IDLE)]));
        assert!(has_hidden(&vmas, &[]));
        assert!(has_hidden(&vmas, &[ring(&IDLE.replace("77", "78"))]));
        let other = vma::parse(b"1000-2000 rw-s 0 00:10 77 anon_inode:[io_uring]s\n").unwrap();
        assert!(!has_hidden(&other, &[]));
    }
}
