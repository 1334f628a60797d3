//! Calls with a timeout that the program makes by itself, not by a function of the C library:
//! with registers that it relies on afterwards, or a timeout that nobody can write to.
#![allow(unsafe_code)]

use super::timed::{due, quiet, quiet_epoll, set_of, zero};
use super::{Answer, Call, Make, answer};
use crate::region::Region;
use crate::regs::inline_call;
use crate::sys::{check, page_len};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

pub(super) const CALLS: &[(&str, Make)] = &[
    ("epoll_bare", epoll),
    ("epoll_pwait2_bare", epoll_pwait2),
    ("ppoll_bare", ppoll),
    ("pselect_bare", pselect),
    ("select_bare", select),
];

/// Two words that cannot be written to, like a constant of the program.
fn constant(words: [i64; 2]) -> io::Result<Region> {
    let mut region = Region::anon(page_len())?;
    for (place, word) in region.bytes_mut().chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    // SAFETY: a mapping of ours, to which nobody writes from here on.
    check(unsafe { libc::mprotect(region.ptr().cast(), region.len(), libc::PROT_READ) })?;
    Ok(region)
}

fn span(ms: u64) -> io::Result<Region> {
    constant([(ms / 1000) as i64, (ms % 1000 * 1_000_000) as i64])
}

/// An epoll call that is an instruction of the program's. What its arguments were, the
/// registers still say afterwards: else the answer is a wrong one.
fn inline_epoll(nr: i64, epoll: i32, timeout: u64) -> Answer {
    const CHANGED: Answer = (-2, 0);
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let event = (&raw mut event).addr() as u64;
    let args = [epoll as u64, event, 1, timeout, 0, 0];
    // SAFETY: room for one event, a timeout as the call wants it, no mask.
    let (ret, after) = unsafe { inline_call(nr, args) };
    match u64::try_from(ret) {
        _ if after != args => CHANGED,
        Ok(_) => (ret, 0),
        Err(_) => (-1, -ret as i32),
    }
}

fn epoll(ms: u64) -> io::Result<Call> {
    let (epoll, ends) = quiet_epoll()?;
    due(
        move || {
            let _open = &ends;
            inline_epoll(libc::SYS_epoll_pwait, epoll.as_raw_fd(), ms)
        },
        zero,
    )
}

fn epoll_pwait2(ms: u64) -> io::Result<Call> {
    let ((epoll, ends), span) = (quiet_epoll()?, span(ms)?);
    due(
        move || {
            let _open = &ends;
            inline_epoll(
                libc::SYS_epoll_pwait2,
                epoll.as_raw_fd(),
                span.addr() as u64,
            )
        },
        zero,
    )
}

fn ppoll(ms: u64) -> io::Result<Call> {
    let ((ends, mut request), span) = (quiet()?, span(ms)?);
    due(
        move || {
            let _open = &ends;
            let mask = null::<u8>();
            // SAFETY: one writable request, a readable span, no mask.
            answer(unsafe {
                libc::syscall(libc::SYS_ppoll, &raw mut request, 1, span.ptr(), mask, 8)
            })
        },
        zero,
    )
}

/// `select(2)` or `pselect6(2)` for the read end of a quiet pipe.
fn select_by(nr: i64, span: Region) -> io::Result<Call> {
    let (ends, request) = quiet()?;
    due(
        move || {
            let (_open, mut set, none) = (&ends, set_of(request.fd), null_mut::<u8>());
            let (n, set) = (request.fd + 1, &raw mut set);
            // SAFETY: a set that covers the descriptor, a readable span, no mask.
            answer(unsafe { libc::syscall(nr, n, set, none, none, span.ptr(), none) })
        },
        zero,
    )
}

fn pselect(ms: u64) -> io::Result<Call> {
    select_by(libc::SYS_pselect6, span(ms)?)
}

fn select(ms: u64) -> io::Result<Call> {
    let span = constant([(ms / 1000) as i64, (ms % 1000 * 1000) as i64])?;
    select_by(libc::SYS_select, span)
}
