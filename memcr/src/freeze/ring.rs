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
//! counts as busy. What the kernel does not tell: rings of provided buffers that lie in
//! the target's own pages (IORING_REGISTER_PBUF_RING), and requests under way beside just
//! as many completions without a request. The latter are found when they complete while
//! pages are stored: the figures must stay the same.

use std::fs;
use std::io;

use crate::maps::vma::Vma;

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
        if !is_mapped(vmas, figures.inode) {
            return Err("its queues are not mapped by the kernel".into());
        }
        Ok(())
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

/// Whether the queues are mapped: at offset 0 (IORING_OFF_SQ_RING).
fn is_mapped(vmas: &[Vma], inode: u64) -> bool {
    vmas.iter()
        .any(|vma| vma.inode == inode && vma.offset == 0 && &*vma.name == b"anon_inode:[io_uring]")
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

    fn check(info: &str, maps: &[u8]) -> Result<(), String> {
        let ring = Ring {
            number: 3,
            info: info.into(),
        };
        ring.check(&vma::parse(maps).unwrap())
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
}
