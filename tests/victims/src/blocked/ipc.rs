//! Calls that wait for another process or thread.
#![allow(unsafe_code)]

use super::{Answer, Call, Ends, Make, Wake, answer};
use crate::sys::{check, fork, owned, pipe, tid};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

pub(super) const CALLS: &[(&str, Make)] = &[
    ("wait4", wait4),
    ("waitid", waitid),
    ("read_pipe", read_pipe),
    ("write_pipe", write_pipe),
    ("poll_for_ever", poll_for_ever),
    ("futex_wake", futex_wake),
    ("sigwaitinfo", sigwaitinfo),
    ("pause", pause),
    ("semop", semop),
    ("msgrcv", msgrcv),
    ("mq_receive", mq_receive),
    ("eventfd", eventfd),
    ("signalfd", signalfd),
    ("inotify", inotify),
    ("flock", flock),
    ("fcntl_lock", fcntl_lock),
];

fn woken(
    body: impl FnOnce() -> Answer + Send + 'static,
    wake: impl FnOnce() + Send + 'static,
) -> Call {
    Call {
        body: Box::new(body),
        ends: Ends::Woken(Box::new(wake)),
        right: |(ret, errno)| ret >= 0 && errno == 0,
    }
}

/// A child that ends when the returned pipe is closed.
fn child() -> io::Result<(i32, OwnedFd)> {
    let (wait_end, release) = pipe()?;
    let release_number = release.as_raw_fd();
    let pid = fork(move || {
        // SAFETY: the child's copy of the write end; open, it would keep the child waiting.
        unsafe { libc::close(release_number) };
        let _ = File::from(wait_end).read(&mut [0]);
        7
    })?;
    Ok((pid, release))
}

fn wait4(_: u64) -> io::Result<Call> {
    let (pid, release) = child()?;
    let body = move || {
        let mut status = 0;
        // SAFETY: a writable status, no usage wanted.
        let ret = unsafe { libc::wait4(pid, &raw mut status, 0, null_mut()) };
        if ret == pid && libc::WEXITSTATUS(status) == 7 {
            (i64::from(ret), 0)
        } else {
            answer(-1)
        }
    };
    Ok(woken(body, move || drop(release)))
}

fn waitid(_: u64) -> io::Result<Call> {
    let (pid, release) = child()?;
    let body = move || {
        // SAFETY: a writable siginfo.
        let ret = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid as u32, &raw mut info, libc::WEXITED)
        };
        answer(i64::from(ret))
    };
    Ok(woken(body, move || drop(release)))
}

fn write_all(fd: OwnedFd, bytes: &'static [u8]) -> impl FnOnce() + Send + 'static {
    move || {
        // The reader's answer shows whether this arrived.
        let _ = File::from(fd).write_all(bytes);
    }
}

fn read_on(fd: &OwnedFd, len: usize) -> Answer {
    let mut bytes = [0u8; 256];
    // SAFETY: at most as many bytes as there is room for.
    answer(unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), len.min(256)) } as i64)
}

fn read_pipe(_: u64) -> io::Result<Call> {
    let (reader, writer) = pipe()?;
    Ok(woken(move || read_on(&reader, 1), write_all(writer, b"x")))
}

/// Writes into a pipe that is full. (A call that has written a part already answers that
/// part at any stop, as write(2) may: the kernel leaves no way around that.)
fn write_pipe(_: u64) -> io::Result<Call> {
    let (reader, writer) = pipe()?;
    fill(&writer)?;
    let body = move || {
        let page = [7u8; 4096];
        // SAFETY: a readable buffer of that length.
        answer(unsafe { libc::write(writer.as_raw_fd(), page.as_ptr().cast(), page.len()) } as i64)
    };
    let drain = move || {
        let mut bytes = Vec::new();
        let _ = File::from(reader).read_to_end(&mut bytes);
    };
    Ok(woken(body, drain))
}

/// Writes until nothing more fits, without waiting.
fn fill(writer: &OwnedFd) -> io::Result<()> {
    let set_flags = |flags: i32| {
        // SAFETY: a descriptor of our own; the flag is a number.
        check(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) })
    };
    set_flags(libc::O_NONBLOCK)?;
    while File::from(writer.try_clone()?).write(&[7; 4096]).is_ok() {}
    set_flags(0).map(drop)
}

fn poll_for_ever(_: u64) -> io::Result<Call> {
    let (reader, writer) = pipe()?;
    let body = move || {
        let mut request = libc::pollfd {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one writable request.
        answer(i64::from(unsafe { libc::poll(&raw mut request, 1, -1) }))
    };
    Ok(woken(body, write_all(writer, b"x")))
}

fn futex_wake(_: u64) -> io::Result<Call> {
    let word = Arc::new(AtomicU32::new(0));
    let other = Arc::clone(&word);
    let body = move || {
        let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word lives as long as the Arc; no timeout.
        let ret = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 0, null::<u8>()) };
        // A wait that begins after the word was changed answers EAGAIN, as it should.
        let answer = answer(ret);
        let woken = word.load(Ordering::SeqCst) == 1;
        match answer {
            (0, 0) | (-1, libc::EAGAIN) if woken => (0, 0),
            (0, 0) => (-1, libc::EINTR),
            other => other,
        }
    };
    let wake = move || {
        other.store(1, Ordering::SeqCst);
        let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the word is alive.
        unsafe { libc::syscall(libc::SYS_futex, other.as_ptr(), op, 1) };
    };
    Ok(woken(body, wake))
}

/// Blocks `signal` in the calling thread and answers the set with it.
pub(super) fn blocked_set(signal: i32) -> libc::sigset_t {
    // SAFETY: all zeros is an empty set on Linux, and the calls only fill and read it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut());
        set
    }
}

/// Sends `signal` to the thread whose id `tid` holds.
fn poke(tid: &AtomicI32, signal: i32) {
    // SAFETY: a signal to a thread of our own.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            tid.load(Ordering::SeqCst),
            signal,
        )
    };
}

/// A call on a thread that has `signal` blocked, and that this signal ends.
fn signalled(signal: i32, body: impl FnOnce(libc::sigset_t) -> Answer + Send + 'static) -> Call {
    let receiver = Arc::new(AtomicI32::new(0));
    let sender = Arc::clone(&receiver);
    let body = move || {
        let set = blocked_set(signal);
        receiver.store(tid(), Ordering::SeqCst);
        body(set)
    };
    woken(body, move || poke(&sender, signal))
}

fn sigwaitinfo(_: u64) -> io::Result<Call> {
    let signal = libc::SIGRTMIN() + 8;
    Ok(signalled(signal, move |set| {
        // SAFETY: a readable set; nobody wants the details.
        let got = unsafe { libc::sigwaitinfo(&raw const set, null_mut()) };
        if got == signal {
            (i64::from(got), 0)
        } else {
            answer(-1)
        }
    }))
}

fn signalfd(_: u64) -> io::Result<Call> {
    Ok(signalled(libc::SIGRTMIN() + 9, |set| {
        // SAFETY: a readable set; makes a descriptor.
        let fd = owned(i64::from(unsafe {
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC)
        }));
        fd.map_or_else(|_| answer(-1), |fd| read_on(&fd, 128))
    }))
}

/// `pause` only returns after a handler ran; the handler here is our own.
fn pause(_: u64) -> io::Result<Call> {
    static N_HANDLED: AtomicI32 = AtomicI32::new(0);
    extern "C" fn handler(_: i32) {
        N_HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    let signal = libc::SIGRTMIN() + 10;
    // SAFETY: the handler only adds to an atomic.
    unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    let receiver = Arc::new(AtomicI32::new(0));
    let sender = Arc::clone(&receiver);
    let body = move || {
        receiver.store(tid(), Ordering::SeqCst);
        // SAFETY: no preconditions.
        unsafe { libc::pause() };
        if N_HANDLED.load(Ordering::SeqCst) == 1 {
            (0, 0)
        } else {
            (-1, libc::EINTR)
        }
    };
    Ok(woken(body, move || poke(&sender, signal)))
}

/// A set of one System V semaphore, removed on drop.
pub(super) struct Semaphores(i32);

impl Semaphores {
    pub(super) fn id(&self) -> i32 {
        self.0
    }
}

impl Drop for Semaphores {
    fn drop(&mut self) {
        // SAFETY: removes our own set.
        unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) };
    }
}

pub(super) fn semaphores() -> io::Result<Semaphores> {
    // SAFETY: makes a set.
    check(unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) }).map(Semaphores)
}

fn semop(_: u64) -> io::Result<Call> {
    let set = semaphores()?;
    let id = set.id();
    let change = |id: i32, by: i16| {
        let mut change = libc::sembuf {
            sem_num: 0,
            sem_op: by,
            sem_flg: 0,
        };
        // SAFETY: one operation.
        answer(i64::from(unsafe { libc::semop(id, &raw mut change, 1) }))
    };
    let body = move || change(set.id(), -1);
    Ok(woken(body, move || {
        change(id, 1);
    }))
}

fn msgrcv(_: u64) -> io::Result<Call> {
    // SAFETY: makes a queue.
    let id = check(unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) })?;
    let body = move || {
        let mut message = [0i64; 4];
        // SAFETY: type and 24 bytes of text fit; the queue is removed afterwards.
        unsafe {
            let got = answer(libc::msgrcv(id, message.as_mut_ptr().cast(), 24, 0, 0) as i64);
            libc::msgctl(id, libc::IPC_RMID, null_mut());
            got
        }
    };
    let wake = move || {
        // SAFETY: a message of type 1 with 8 bytes of text.
        unsafe { libc::msgsnd(id, [1i64, 2].as_ptr().cast(), 8, 0) };
    };
    Ok(woken(body, wake))
}

/// A POSIX message queue without a name.
pub(super) fn message_queue(name: &str) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(format!("victim-{}-{name}", std::process::id()))?;
    // SAFETY: all zeros is a valid attribute block; the name is unlinked at once.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (4, 64);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let fd = owned(libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags,
            0o600,
            &raw const attributes,
        ));
        libc::syscall(libc::SYS_mq_unlink, name.as_ptr());
        fd
    }
}

fn mq_receive(_: u64) -> io::Result<Call> {
    let queue = Arc::new(message_queue("plain")?);
    let other = Arc::clone(&queue);
    let body = move || {
        let mut message = [0u8; 64];
        let (fd, buffer, len) = (queue.as_raw_fd(), message.as_mut_ptr(), message.len());
        // SAFETY: the buffer is as long as the queue's longest message.
        answer(unsafe {
            libc::syscall(
                libc::SYS_mq_timedreceive,
                fd,
                buffer,
                len,
                null_mut::<u32>(),
                null::<u8>(),
            )
        })
    };
    let wake = move || {
        // SAFETY: one readable byte.
        unsafe {
            libc::syscall(
                libc::SYS_mq_timedsend,
                other.as_raw_fd(),
                b"x".as_ptr(),
                1,
                0,
                null::<u8>(),
            )
        };
    };
    Ok(woken(body, wake))
}

fn eventfd(_: u64) -> io::Result<Call> {
    // SAFETY: makes a descriptor.
    let fd = owned(i64::from(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }))?;
    let other = fd.try_clone()?;
    Ok(woken(
        move || read_on(&fd, 8),
        write_all(other, &[1, 0, 0, 0, 0, 0, 0, 0]),
    ))
}

/// A scratch file of this victim.
fn scratch(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("victim-{}-{name}", std::process::id()))
}

fn inotify(_: u64) -> io::Result<Call> {
    let dir = scratch("watched");
    std::fs::create_dir(&dir)?;
    // SAFETY: makes a descriptor.
    let fd = owned(i64::from(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }))?;
    let path = std::ffi::CString::new(dir.to_string_lossy().as_bytes())?;
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), libc::IN_DELETE_SELF) })?;
    let wake: Wake = Box::new(move || drop(std::fs::remove_dir(dir)));
    Ok(woken(move || read_on(&fd, 256), wake))
}

/// A file without a name, opened twice, so that the two opens can lock each other out.
fn opened_twice(name: &str) -> io::Result<(File, File)> {
    let path = scratch(name);
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
    };
    let files = (open()?, open()?);
    std::fs::remove_file(&path)?;
    Ok(files)
}

fn flock(_: u64) -> io::Result<Call> {
    let (held, wanted) = opened_twice("flock")?;
    // SAFETY: descriptors of our own.
    check(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX) })?;
    let body = move || {
        // SAFETY: as above.
        let ret = unsafe { libc::flock(wanted.as_raw_fd(), libc::LOCK_EX) };
        answer(i64::from(ret))
    };
    Ok(woken(body, move || drop(held)))
}

/// An open-file-description lock, which threads of one process do compete for.
fn fcntl_lock(_: u64) -> io::Result<Call> {
    let (held, wanted) = opened_twice("fcntl")?;
    let lock = |file: &File, command: i32| {
        // SAFETY: all zeros with a type is a lock on the whole file.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = libc::F_WRLCK as i16;
            libc::fcntl(file.as_raw_fd(), command, &raw const lock)
        }
    };
    check(lock(&held, libc::F_OFD_SETLK))?;
    Ok(woken(
        move || answer(i64::from(lock(&wanted, libc::F_OFD_SETLKW))),
        move || drop(held),
    ))
}
