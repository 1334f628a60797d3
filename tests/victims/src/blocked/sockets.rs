//! Calls on sockets, on loopback or in a pair.
#![allow(unsafe_code)]

use super::{Answer, Call, Ends, Make, answer};
use crate::sys::check;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::ptr::null_mut;
use std::time::Duration;

pub(super) const CALLS: &[(&str, Make)] = &[
    ("accept", accept),
    ("accept_timeout", accept_timeout),
    ("recv", recv),
    ("recv_timeout", recv_timeout),
    ("recvmsg_timeout", recvmsg_timeout),
    ("send_timeout", send_timeout),
    ("tcp_recv_timeout", tcp_recv_timeout),
    ("splice_timeout", splice_timeout),
    ("sendfile_timeout", sendfile_timeout),
];

fn again(answer: Answer) -> bool {
    answer == (-1, libc::EAGAIN)
}

fn accept(_: u64) -> io::Result<Call> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    Ok(Call {
        body: Box::new(move || {
            // SAFETY: nobody wants the peer's address.
            let fd = unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) };
            answer(i64::from(fd))
        }),
        ends: Ends::Woken(Box::new(move || drop(TcpStream::connect(addr)))),
        right: |(fd, _)| fd > 0,
    })
}

/// Sets SO_RCVTIMEO or SO_SNDTIMEO.
fn limit(fd: i32, option: i32, ms: u64) -> io::Result<()> {
    let span = libc::timeval {
        tv_sec: (ms / 1000) as i64,
        tv_usec: (ms % 1000 * 1000) as i64,
    };
    let len = size_of::<libc::timeval>() as u32;
    // SAFETY: the option takes a timeval of that length.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const span).cast(), len) })
        .map(drop)
}

fn accept_timeout(ms: u64) -> io::Result<Call> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    limit(listener.as_raw_fd(), libc::SO_RCVTIMEO, ms)?;
    let body = move || {
        // SAFETY: nobody wants the peer's address.
        let fd = unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) };
        answer(i64::from(fd))
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

fn recv_on(fd: i32) -> Answer {
    let mut byte = 0u8;
    // SAFETY: one writable byte.
    answer(unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, 0) } as i64)
}

fn recv(_: u64) -> io::Result<Call> {
    let (mut near, far) = UnixStream::pair()?;
    Ok(Call {
        body: Box::new(move || recv_on(far.as_raw_fd())),
        ends: Ends::Woken(Box::new(move || {
            // The reader's answer shows whether this arrived.
            let _ = near.write_all(b"x");
        })),
        right: |answer| answer == (1, 0),
    })
}

fn recv_timeout(ms: u64) -> io::Result<Call> {
    let (near, far) = UnixDatagram::pair()?;
    far.set_read_timeout(Some(Duration::from_millis(ms)))?;
    let body = move || {
        let _open = &near;
        recv_on(far.as_raw_fd())
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

fn recvmsg_timeout(ms: u64) -> io::Result<Call> {
    let (near, far) = UnixStream::pair()?;
    far.set_read_timeout(Some(Duration::from_millis(ms)))?;
    let body = move || {
        let (_open, mut byte) = (&near, 0u8);
        let mut piece = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: all zeros is a valid empty msghdr; the one piece is writable.
        unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
            answer(libc::recvmsg(far.as_raw_fd(), &raw mut message, 0) as i64)
        }
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

/// A pair whose first socket takes nothing more.
fn full_pair(ms: u64) -> io::Result<(UnixStream, UnixStream)> {
    let (mut near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    while near.write(&[0; 4096]).is_ok() {}
    near.set_nonblocking(false)?;
    limit(near.as_raw_fd(), libc::SO_SNDTIMEO, ms)?;
    Ok((near, far))
}

fn splice_timeout(ms: u64) -> io::Result<Call> {
    let (near, far) = UnixStream::pair()?;
    far.set_read_timeout(Some(Duration::from_millis(ms)))?;
    let (reader, writer) = crate::sys::pipe()?;
    let body = move || {
        let _open = (&near, &reader);
        let (from, to) = (far.as_raw_fd(), writer.as_raw_fd());
        // SAFETY: neither has an offset.
        answer(unsafe { libc::splice(from, null_mut(), to, null_mut(), 1, 0) } as i64)
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

fn sendfile_timeout(ms: u64) -> io::Result<Call> {
    let (near, far) = full_pair(ms)?;
    let file = std::fs::File::open("/proc/self/exe")?;
    let body = move || {
        let _open = &far;
        let (to, from) = (near.as_raw_fd(), file.as_raw_fd());
        // SAFETY: the file's own offset is used.
        answer(unsafe { libc::sendfile(to, from, null_mut(), 1) } as i64)
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

fn send_timeout(ms: u64) -> io::Result<Call> {
    let (near, far) = full_pair(ms)?;
    let body = move || {
        let _open = &far;
        // SAFETY: one readable byte.
        answer(unsafe { libc::send(near.as_raw_fd(), [0u8].as_ptr().cast(), 1, 0) } as i64)
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}

fn tcp_recv_timeout(ms: u64) -> io::Result<Call> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    near.set_read_timeout(Some(Duration::from_millis(ms)))?;
    let body = move || {
        let _open = &listener;
        recv_on(near.as_raw_fd())
    };
    Ok(Call {
        body: Box::new(body),
        ends: Ends::Due,
        right: again,
    })
}
