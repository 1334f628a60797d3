//! Modes of odd processes: vfork parents, shared memory without threads, a dead leader,
//! a process that watches its descriptors, one that opens some.
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

/// Files that it has opened by itself, each by its number and its inode.
struct Opener {
    filled: Filled,
    opened: Vec<(i32, u64)>,
}

impl Opener {
    /// `sockets`: a pair; `contexts`: four userfaultfds. The kernel gives the lowest numbers
    /// that are free.
    fn open(&mut self, what: &str) -> io::Result<()> {
        let mut numbers = [-1; 4];
        if what == "sockets" {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
            // SAFETY: room for the two numbers.
            check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, numbers.as_mut_ptr()) })?;
        } else {
            for number in &mut numbers {
                // SAFETY: takes no memory of ours.
                let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
                *number = check(made as i32)?;
            }
        }
        for number in numbers.into_iter().filter(|&number| number >= 0) {
            self.opened.push((number, inode(number)?));
        }
        Ok(())
    }
}

impl Victim for Opener {
    fn verify(&mut self) -> Result<u64, Wrong> {
        for &(number, opened) in &self.opened {
            let now = inode(number);
            if !now.as_ref().is_ok_and(|&now| now == opened) {
                let what = format!("descriptor {number}: inode {now:?}, opened was {opened}");
                return Err(Wrong::state(what));
            }
        }
        self.filled.verify()
    }

    fn command(&mut self, word: &str, rest: &str) -> Option<String> {
        (word == "open").then(|| match self.open(rest) {
            Ok(()) => "opened".into(),
            Err(error) => Wrong::state(format!("open {rest}: {error}")).to_string(),
        })
    }
}

/// Mode `opener`: opens files when it is told to, and complains when one is not what it was.
pub(crate) fn run_opener(opts: &Opts) -> io::Result<()> {
    let filled = Filled::make(opts)?;
    opts.done();
    serve(&mut Opener {
        filled,
        opened: Vec::new(),
    });
    Ok(())
}

fn inode(number: i32) -> io::Result<u64> {
    // SAFETY: all zeros is a value of this struct of integers.
    let mut file: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer.
    check(unsafe { libc::fstat(number, &raw mut file) })?;
    Ok(file.st_ino)
}
