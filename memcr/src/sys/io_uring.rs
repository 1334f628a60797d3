//! Questions to an io_uring of another process (io_uring_register(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

// linux/io_uring.h
const REGISTER_PBUF_RING: libc::c_uint = 22;
const REGISTER_PBUF_STATUS: libc::c_uint = 26;

/// `struct io_uring_buf_status`.
#[repr(C)]
#[derive(Default)]
struct Status {
    group: u32,
    head: u32,
    reserved: [u32; 8],
}

/// `struct io_uring_buf_reg`.
#[repr(C)]
#[derive(Default)]
struct Registration {
    address: u64,
    n_entries: u32,
    group: u16,
    flags: u16,
    reserved: [u64; 3],
}

/// The groups of `ring` whose provided buffers are listed in a ring of their own
/// (IORING_REGISTER_PBUF_RING). There is no call that lists them: each of the 65,536 that
/// there can be is asked for, which takes some 30 ms. Nothing of the ring changes.
///
/// # Errors
/// EEXIST: it takes no calls but of the thread that made it (IORING_SETUP_SINGLE_ISSUER);
/// EACCES: it is restricted (IORING_REGISTER_RESTRICTIONS); EOPNOTSUPP: it is none.
pub fn buffer_rings(ring: BorrowedFd<'_>) -> io::Result<Vec<u16>> {
    if knows(ring, REGISTER_PBUF_STATUS)? {
        return with(|group| has_status(ring, group));
    }
    // Before Linux 6.8.
    if knows(ring, REGISTER_PBUF_RING)? {
        return with(|group| is_taken(ring, group));
    }
    // Before Linux 5.19, which brought them.
    Ok(Vec::new())
}

fn with(is_one: impl Fn(u16) -> io::Result<bool>) -> io::Result<Vec<u16>> {
    let mut groups = Vec::new();
    for group in 0..=u16::MAX {
        if is_one(group)? {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// Whether the kernel has the request `code`: then it is the argument that it objects to,
/// which lies where nothing can.
fn knows(ring: BorrowedFd<'_>, code: libc::c_uint) -> io::Result<bool> {
    match register(
        ring,
        code,
        std::ptr::without_provenance_mut::<Status>(usize::MAX),
    ) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks for the group's head, which a ring of buffers has, and a list of them has not.
fn has_status(ring: BorrowedFd<'_>, group: u16) -> io::Result<bool> {
    let mut status = Status {
        group: group.into(),
        ..Status::default()
    };
    match register(ring, REGISTER_PBUF_STATUS, &raw mut status) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Offers memory that nobody can have for a ring of the group: whether it has one already, or a
/// list of buffers, is looked at before the memory is.
fn is_taken(ring: BorrowedFd<'_>, group: u16) -> io::Result<bool> {
    let mut registration = Registration {
        address: 0_u64.wrapping_sub(super::page_size()),
        n_entries: 1,
        group,
        ..Registration::default()
    };
    match register(ring, REGISTER_PBUF_RING, &raw mut registration) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EOVERFLOW)) => {
            Ok(false)
        }
        Err(error) => Err(error),
        Ok(()) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `argument`: one structure of what `code` asks for.
fn register<T>(ring: BorrowedFd<'_>, code: libc::c_uint, argument: *mut T) -> io::Result<()> {
    let number = libc::SYS_io_uring_register;
    // SAFETY: both requests read one structure of 40 bytes at the argument, and the status is
    // written back there: it is a place of ours of that type, or an address at which the
    // kernel finds no memory, which it answers.
    let answer = unsafe { libc::syscall(number, ring.as_raw_fd(), code, argument, 1_u32) };
    super::check(answer).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    use super::*;
    use crate::sys::check;

    /// A ring of ours; `None`: not to be had here. `flags`: IORING_SETUP_*.
    fn make(flags: u32) -> Option<OwnedFd> {
        // struct io_uring_params; the flags are its third word.
        let mut params = [0_u32; 30];
        params[2] = flags;
        // SAFETY: 120 writable bytes, the length of the structure.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, params.as_mut_ptr()) };
        let ring = check(ring).ok()?;
        // SAFETY: it was just handed out, and nobody else has it.
        Some(unsafe { OwnedFd::from_raw_fd(ring as i32) })
    }

    #[test]
    fn groups_with_a_ring_are_found_by_either_question() {
        let Some(ring) = make(0) else { return };
        assert_eq!(buffer_rings(ring.as_fd()).unwrap(), [] as [u16; 0]);
        let page_len = crate::sys::page_size() as usize;
        let memory = vec![0_u8; 2 * page_len];
        let address = (memory.as_ptr() as u64).next_multiple_of(page_len as u64);
        for group in [0, 700, u16::MAX] {
            let mut registration = Registration {
                address,
                n_entries: 16,
                group,
                ..Registration::default()
            };
            register(ring.as_fd(), REGISTER_PBUF_RING, &raw mut registration).unwrap();
        }
        let ring = ring.as_fd();
        assert_eq!(buffer_rings(ring).unwrap(), [0, 700, u16::MAX]);
        let taken = with(|group| is_taken(ring, group));
        assert_eq!(taken.unwrap(), [0, 700, u16::MAX]);
    }

    #[test]
    fn a_ring_of_another_thread_alone_is_not_taken_for_one_without_groups() {
        const SINGLE_ISSUER: u32 = 1 << 12;
        let Some(ring) = make(SINGLE_ISSUER) else {
            return;
        };
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| buffer_rings(ring.as_fd()));
            asking.join().unwrap()
        });
        assert_eq!(asked.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }
}
