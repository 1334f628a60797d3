//! Parts that are shared: with children, through files without a name, through a segment.
#![allow(unsafe_code)]

use super::{Check, Setup, failed};
use crate::region::Region;
use crate::sys::{check, fork, owned, pipe};
use crate::talk::Wrong;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Children of a prefork server.
const N_CHILDREN: usize = 3;

/// A child that checks its copy of `region` whenever it gets a byte.
struct Child {
    ask: File,
    answer: File,
}

impl Child {
    fn start(region: Region, rule: crate::fill::Rule) -> io::Result<Self> {
        let (ask_end, ask) = pipe()?;
        let (answer, answer_end) = pipe()?;
        fork(move || {
            let (mut ask_end, mut answer_end) = (File::from(ask_end), File::from(answer_end));
            while ask_end.read_exact(&mut [0]).is_ok() {
                let verdict = u8::from(region.check(rule).is_err());
                if answer_end.write_all(&[verdict]).is_err() {
                    break;
                }
            }
            0
        })?;
        Ok(Self {
            ask: ask.into(),
            answer: answer.into(),
        })
    }

    fn check(&mut self, n: usize) -> Result<(), Wrong> {
        let mut verdict = [9];
        let asked = self
            .ask
            .write_all(&[1])
            .and_then(|()| self.answer.read_exact(&mut verdict));
        asked.map_err(|err| failed(&format!("ask child {n}"), &err))?;
        if verdict == [0] {
            Ok(())
        } else {
            Err(Wrong::state(format!("child {n} found its copy wrong")))
        }
    }
}

/// Memory that children have since the fork: nobody's alone.
pub(super) fn fork_shared(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    let (rule, mut children) = (setup.rule, children(region, setup.rule)?);
    Ok(Box::new(move || {
        for (n, child) in children.iter_mut().enumerate() {
            child.check(n)?;
        }
        region.check(rule)
    }))
}

/// As [`fork_shared`], but the parent has rewritten every third page since: those are
/// its own.
pub(super) fn fork_partly(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    let rule = setup.rule;
    let own = crate::fill::Rule {
        seed: rule.seed + 1000,
        ..rule
    };
    let mut children = children(region, rule)?;
    region.every(0, 3).for_each(|mut page| page.fill(own));
    Ok(Box::new(move || {
        for (n, child) in children.iter_mut().enumerate() {
            child.check(n)?;
        }
        let mut len = region
            .every(0, 3)
            .try_fold(0, |sum, page| page.check(own).map(|n| sum + n))?;
        for first in [1, 2] {
            len = region
                .every(first, 3)
                .try_fold(len, |sum, page| page.check(rule).map(|n| sum + n))?;
        }
        Ok(len)
    }))
}

fn children(region: Region, rule: crate::fill::Rule) -> io::Result<Vec<Child>> {
    (0..N_CHILDREN)
        .map(|_| Child::start(region, rule))
        .collect()
}

/// A shared mapping, filled.
fn filled(setup: &Setup, flags: i32, file: Option<&OwnedFd>) -> io::Result<Region> {
    let mut region = Region::map(setup.len, READ_WRITE, flags, file.map(|fd| (fd.as_fd(), 0)))?;
    region.fill(setup.rule);
    Ok(region)
}

pub(super) fn anon(setup: &Setup) -> io::Result<Check> {
    let region = filled(setup, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    Ok(super::anon::whole(region, setup.rule))
}

pub(super) fn memfd(setup: &Setup) -> io::Result<Check> {
    let fd = make_memfd(setup.len)?;
    let region = filled(setup, libc::MAP_SHARED, Some(&fd))?;
    let rule = setup.rule;
    Ok(Box::new(move || {
        // The descriptor belongs to the part: it must still be the same file.
        let len = File::from(fd.try_clone().map_err(|err| failed("dup memfd", &err))?).metadata();
        let len = len.map_err(|err| failed("stat memfd", &err))?.len();
        if len != region.len() as u64 {
            return Err(Wrong::state(format!(
                "memfd has {len} bytes, want {}",
                region.len()
            )));
        }
        region.check(rule)
    }))
}

/// A memfd of `len` bytes.
pub(super) fn make_memfd(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name.
    let fd = owned(i64::from(unsafe {
        libc::memfd_create(c"victim".as_ptr(), libc::MFD_CLOEXEC)
    }))?;
    File::from(fd.try_clone()?).set_len(len as u64)?;
    Ok(fd)
}

/// A System V segment, already marked for removal.
pub(super) fn sysv(setup: &Setup) -> io::Result<Check> {
    // SAFETY: creates a segment; no memory is touched.
    let id = check(unsafe { libc::shmget(libc::IPC_PRIVATE, setup.len, 0o600) })?;
    // SAFETY: the kernel chooses a free place.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    // SAFETY: marks the segment for removal after the last detach.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    if at.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: attached just now, never detached, known to this part only.
    let mut region = unsafe { Region::adopt(at.expose_provenance(), setup.len) };
    region.fill(setup.rule);
    Ok(super::anon::whole(region, setup.rule))
}
