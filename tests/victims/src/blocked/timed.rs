//! Calls with a timeout of their own.
#![allow(unsafe_code)]

use super::{Answer, Call, Ends, Make, answer};
use crate::sys::{check, check_long, now_ns, owned, pipe};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};

pub(super) const CALLS: &[(&str, Make)] = &[
    ("nanosleep", nanosleep),
    ("clock_nanosleep_relative", clock_relative),
    ("clock_nanosleep_absolute", clock_absolute),
    ("poll", poll),
    ("ppoll", ppoll),
    ("select", select),
    ("pselect", pselect),
    ("epoll_wait", epoll_wait),
    ("epoll_pwait", epoll_pwait),
    ("epoll_pwait2", epoll_pwait2),
    ("futex_relative", futex_relative),
    ("futex_absolute", futex_absolute),
    ("sigtimedwait", sigtimedwait),
    ("semtimedop", semtimedop),
    ("io_getevents", io_getevents),
    ("mq_timedreceive", mq_timedreceive),
    ("timerfd", timerfd),
];

/// A call that ends when its time is over.
pub(super) fn due(
    body: impl FnOnce() -> Answer + Send + 'static,
    right: fn(Answer) -> bool,
) -> io::Result<Call> {
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right,
    })
}

pub(super) fn zero(answer: Answer) -> bool {
    answer == (0, 0)
}

fn timed_out(answer: Answer) -> bool {
    answer == (-1, libc::ETIMEDOUT)
}

fn again(answer: Answer) -> bool {
    answer == (-1, libc::EAGAIN)
}

fn span(ms: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ms / 1000) as i64,
        tv_nsec: (ms % 1000 * 1_000_000) as i64,
    }
}

/// The monotonic time `ms` from now.
fn later(ms: u64) -> libc::timespec {
    let ns = now_ns() + ms * 1_000_000;
    libc::timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    }
}

fn nanosleep(ms: u64) -> io::Result<Call> {
    let span = span(ms);
    due(
        move || {
            // SAFETY: the span outlives the call.
            let ret = unsafe { libc::nanosleep(&raw const span, null_mut()) };
            answer(i64::from(ret))
        },
        zero,
    )
}

fn clock_nanosleep(flags: i32, at: libc::timespec) -> Answer {
    // clock_nanosleep answers the error itself.
    // SAFETY: the time outlives the call.
    let err =
        unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, flags, &raw const at, null_mut()) };
    if err == 0 { (0, 0) } else { (-1, err) }
}

fn clock_relative(ms: u64) -> io::Result<Call> {
    due(move || clock_nanosleep(0, span(ms)), zero)
}

fn clock_absolute(ms: u64) -> io::Result<Call> {
    due(
        move || clock_nanosleep(libc::TIMER_ABSTIME, later(ms)),
        zero,
    )
}

/// A pipe that nobody writes to, with a poll request for its read end.
pub(super) fn quiet() -> io::Result<((OwnedFd, OwnedFd), libc::pollfd)> {
    let ends = pipe()?;
    let request = libc::pollfd {
        fd: ends.0.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    Ok((ends, request))
}

fn poll(ms: u64) -> io::Result<Call> {
    let (ends, mut request) = quiet()?;
    due(
        move || {
            let _open = &ends;
            // SAFETY: one request, writable.
            answer(i64::from(unsafe {
                libc::poll(&raw mut request, 1, ms as i32)
            }))
        },
        zero,
    )
}

fn ppoll(ms: u64) -> io::Result<Call> {
    let (ends, mut request) = quiet()?;
    due(
        move || {
            let (_open, span) = (&ends, span(ms));
            // SAFETY: one writable request, a readable span, no mask.
            answer(i64::from(unsafe {
                libc::ppoll(&raw mut request, 1, &raw const span, null())
            }))
        },
        zero,
    )
}

/// A set with the one descriptor `fd`.
pub(super) fn set_of(fd: i32) -> libc::fd_set {
    // SAFETY: all zeros is an empty set; `fd` is below FD_SETSIZE in a small process.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::FD_SET(fd, &raw mut set);
        set
    }
}

fn select(ms: u64) -> io::Result<Call> {
    let (ends, request) = quiet()?;
    due(
        move || {
            let (_open, mut set) = (&ends, set_of(request.fd));
            let mut span = libc::timeval {
                tv_sec: (ms / 1000) as i64,
                tv_usec: (ms % 1000 * 1000) as i64,
            };
            // SAFETY: a set that covers the descriptor and a writable span.
            let ret = unsafe {
                libc::select(
                    request.fd + 1,
                    &raw mut set,
                    null_mut(),
                    null_mut(),
                    &raw mut span,
                )
            };
            answer(i64::from(ret))
        },
        zero,
    )
}

fn pselect(ms: u64) -> io::Result<Call> {
    let (ends, request) = quiet()?;
    due(
        move || {
            let (_open, mut set, span) = (&ends, set_of(request.fd), span(ms));
            let (set, span) = (&raw mut set, &raw const span);
            // SAFETY: a set that covers the descriptor, a readable span, no mask.
            answer(i64::from(unsafe {
                libc::pselect(request.fd + 1, set, null_mut(), null_mut(), span, null())
            }))
        },
        zero,
    )
}

/// An epoll instance that watches a quiet pipe.
pub(super) fn quiet_epoll() -> io::Result<(OwnedFd, (OwnedFd, OwnedFd))> {
    let (ends, request) = quiet()?;
    // SAFETY: makes a descriptor.
    let epoll = owned(i64::from(unsafe {
        libc::epoll_create1(libc::EPOLL_CLOEXEC)
    }))?;
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    // SAFETY: a readable event.
    check(unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            request.fd,
            &raw mut event,
        )
    })?;
    Ok((epoll, ends))
}

fn epoll_wait(ms: u64) -> io::Result<Call> {
    let (epoll, ends) = quiet_epoll()?;
    due(
        move || {
            let (_open, mut event) = (&ends, libc::epoll_event { events: 0, u64: 0 });
            // SAFETY: room for one event.
            answer(i64::from(unsafe {
                libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, ms as i32)
            }))
        },
        zero,
    )
}

fn epoll_pwait(ms: u64) -> io::Result<Call> {
    let (epoll, ends) = quiet_epoll()?;
    due(
        move || {
            let (_open, mut event) = (&ends, libc::epoll_event { events: 0, u64: 0 });
            // SAFETY: an empty set that lives through the call, room for one event.
            let ret = unsafe {
                let mask: libc::sigset_t = std::mem::zeroed();
                libc::epoll_pwait(
                    epoll.as_raw_fd(),
                    &raw mut event,
                    1,
                    ms as i32,
                    &raw const mask,
                )
            };
            answer(i64::from(ret))
        },
        zero,
    )
}

fn epoll_pwait2(ms: u64) -> io::Result<Call> {
    let (epoll, ends) = quiet_epoll()?;
    due(
        move || {
            let (_open, mut event, span) =
                (&ends, libc::epoll_event { events: 0, u64: 0 }, span(ms));
            let (fd, event) = (epoll.as_raw_fd(), &raw mut event);
            // SAFETY: room for one event, a readable span, no mask.
            answer(unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    fd,
                    event,
                    1,
                    &raw const span,
                    null::<u8>(),
                    0,
                )
            })
        },
        zero,
    )
}

/// Waits on a word that nobody changes.
fn futex(op: i32, at: libc::timespec) -> Answer {
    let word = 0u32;
    let (word, at) = (&raw const word, &raw const at);
    // SAFETY: word and time live through the call; the mask says "any waker".
    answer(unsafe { libc::syscall(libc::SYS_futex, word, op, 0, at, null::<u8>(), u32::MAX) })
}

fn futex_relative(ms: u64) -> io::Result<Call> {
    due(
        move || futex(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, span(ms)),
        timed_out,
    )
}

fn futex_absolute(ms: u64) -> io::Result<Call> {
    due(
        move || {
            futex(
                libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG,
                later(ms),
            )
        },
        timed_out,
    )
}

fn sigtimedwait(ms: u64) -> io::Result<Call> {
    due(
        move || {
            let (set, span) = (super::ipc::blocked_set(libc::SIGRTMIN() + 7), span(ms));
            // SAFETY: a readable set and span; nobody wants the details.
            answer(i64::from(unsafe {
                libc::sigtimedwait(&raw const set, null_mut(), &raw const span)
            }))
        },
        again,
    )
}

fn semtimedop(ms: u64) -> io::Result<Call> {
    let set = super::ipc::semaphores()?;
    due(
        move || {
            let mut take = libc::sembuf {
                sem_num: 0,
                sem_op: -1,
                sem_flg: 0,
            };
            let span = span(ms);
            // SAFETY: one operation, a readable span.
            answer(unsafe {
                libc::syscall(
                    libc::SYS_semtimedop,
                    set.id(),
                    &raw mut take,
                    1,
                    &raw const span,
                )
            })
        },
        again,
    )
}

/// An AIO context with nothing in it.
fn io_getevents(ms: u64) -> io::Result<Call> {
    let mut context = 0u64;
    // SAFETY: writes the context's id.
    check_long(unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) })?;
    due(
        move || {
            let (mut events, span) = ([0u64; 4], span(ms));
            let (events, span) = (events.as_mut_ptr(), &raw const span);
            // SAFETY: room for the one event of 32 bytes that is asked for.
            answer(unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, 1, events, span) })
        },
        zero,
    )
}

fn mq_timedreceive(ms: u64) -> io::Result<Call> {
    let queue = super::ipc::message_queue("timed")?;
    due(
        move || {
            let mut now = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let mut message = [0u8; 64];
            // SAFETY: the clock exists and `now` is writable; the buffer is as long as
            // the queue's longest message.
            let ret = unsafe {
                libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now);
                let ns = now.tv_nsec as u64 + ms % 1000 * 1_000_000;
                now.tv_sec += (ms / 1000 + ns / 1_000_000_000) as i64;
                now.tv_nsec = (ns % 1_000_000_000) as i64;
                let (buffer, len) = (message.as_mut_ptr(), message.len());
                libc::syscall(
                    libc::SYS_mq_timedreceive,
                    queue.as_raw_fd(),
                    buffer,
                    len,
                    null_mut::<u32>(),
                    &raw const now,
                )
            };
            answer(ret)
        },
        timed_out,
    )
}

fn timerfd(ms: u64) -> io::Result<Call> {
    // SAFETY: makes a descriptor.
    let timer = owned(i64::from(unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC)
    }))?;
    due(
        move || {
            let setting = libc::itimerspec {
                it_interval: span(0),
                it_value: span(ms),
            };
            let mut n_expired = 0u64;
            // SAFETY: a readable setting, and eight writable bytes.
            unsafe {
                libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const setting, null_mut());
                answer(libc::read(timer.as_raw_fd(), (&raw mut n_expired).cast(), 8) as i64)
            }
        },
        |answer| answer == (8, 0),
    )
}
