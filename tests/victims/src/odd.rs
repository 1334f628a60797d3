//! Modes of odd processes: vfork parents, shared memory without threads, a dead leader,
//! a process that watches its descriptors.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sys::{check, pipe};
use crate::talk::{Victim, Wrong, serve};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

struct Filled {
    region: Region,
    rule: Rule,
    release: Option<OwnedFd>,
}

impl Filled {
    fn make(opts: &Opts) -> io::Result<Self> {
        let rule = Rule {
            content: Content::Dense,
            seed: opts.number("seed", 1),
        };
        let mut region = Region::anon(opts.len("size", 8 << 20))?;
        region.fill(rule);
        Ok(Self {
            region,
            rule,
            release: None,
        })
    }
}

impl Victim for Filled {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.region.check(self.rule)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        (word == "release").then(|| {
            self.release = None;
            "released".into()
        })
    }
}

/// A child on this memory, on a stack of its own, that waits for the end of a pipe.
fn clone_sharing(flags: i32, wait_fd: i32) -> io::Result<i32> {
    extern "C" fn wait(fd: *mut c_void) -> i32 {
        let mut byte = 0u8;
        // SAFETY: plain system calls on a descriptor that was passed as a number; no
        // code that could touch what the parent's threads own.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::syscall(libc::SYS_read, fd.addr() as i32, &raw mut byte, 1);
            libc::syscall(libc::SYS_exit, 0);
        }
        0
    }
    let stack = Region::anon(256 << 10)?;
    let top = stack.part(stack.len() - 64, 64).ptr();
    // SAFETY: a stack of its own that is never freed; `wait` makes raw calls only.
    check(unsafe {
        libc::clone(
            wait,
            top,
            flags | libc::SIGCHLD,
            std::ptr::without_provenance_mut(wait_fd as usize),
        )
    })
}

/// Mode `vfork`: a thread waits uninterruptibly for a vfork child; `release` ends that.
pub(crate) fn run_vfork(opts: &Opts) -> io::Result<()> {
    let mut filled = Filled::make(opts)?;
    opts.done();
    let (wait_end, release) = pipe()?;
    filled.release = Some(release);
    std::thread::spawn(move || {
        // Without CLONE_FILES the child has descriptors of its own, also of the write
        // end: with it, closing ours is what ends the read.
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
        if let Err(err) = clone_sharing(flags, wait_end.as_raw_fd()) {
            crate::talk::die(&format!("vfork: {err}"));
        }
        std::thread::park();
    });
    serve(&mut filled);
    Ok(())
}

/// Mode `sharedvm`: another process has the same memory.
pub(crate) fn run_shared_vm(opts: &Opts) -> io::Result<()> {
    let mut filled = Filled::make(opts)?;
    opts.done();
    let (wait_end, release) = pipe()?;
    filled.release = Some(release);
    clone_sharing(libc::CLONE_VM | libc::CLONE_FILES, wait_end.as_raw_fd())?;
    serve(&mut filled);
    Ok(())
}

/// Mode `leader`: the first thread has exited, another one talks.
pub(crate) fn run_leader_exited(opts: &Opts) -> io::Result<()> {
    let mut filled = Filled::make(opts)?;
    opts.done();
    std::thread::spawn(move || {
        serve(&mut filled);
        std::process::exit(0);
    });
    // SAFETY: ends this thread only; nothing of it is needed any more.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit returned");
}

/// Mode `fdclose`: looks at its descriptor table all the time and complains about any
/// descriptor that it did not open.
pub(crate) fn run_fd_watch(opts: &Opts) -> io::Result<()> {
    let mut filled = Filled::make(opts)?;
    opts.done();
    let n_open = count_fds()?;
    let (tell, is_looking) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        loop {
            match count_fds() {
                // The thread's own memory is all there once it has looked and told.
                Ok(n) if n == n_open => drop(tell.send(())),
                other => crate::talk::die(&format!("open descriptors: {other:?}, want {n_open}")),
            }
        }
    });
    // Fails only if the thread has complained, which ends the process.
    let _ = is_looking.recv();
    drop(is_looking);
    serve(&mut filled);
    Ok(())
}

/// Open descriptors below 256.
fn count_fds() -> io::Result<usize> {
    // SAFETY: asks for flags only.
    Ok((0..256)
        .filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1)
        .count())
}
