//! An older kernel, as far as ptrace(2) tells.

use crate::sys::prctl;
use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `victim older REQUEST[,REQUEST…] PROGRAM [ARG…]`: becomes the program, for which the kernel
/// does not know these requests of ptrace (numbers in hexadecimal). Answers why not.
pub(crate) fn become_program(mut args: impl Iterator<Item = String>) -> io::Error {
    let requests = args.next().unwrap_or_default();
    let requests: Result<Vec<u32>, _> = requests
        .split(',')
        .map(|number| u32::from_str_radix(number, 16))
        .collect();
    let (Ok(requests), Some(program)) = (requests, args.next()) else {
        return io::Error::other("numbers of requests and a program are wanted");
    };
    match forget(&requests) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// A classic BPF program: EIO for any of `requests`, all else is allowed.
fn forget(requests: &[u32]) -> io::Result<()> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NR: u32 = offset_of!(libc::seccomp_data, nr) as u32;
    // The lower half of the first argument: all architectures are little-endian here.
    const REQUEST: u32 = offset_of!(libc::seccomp_data, args) as u32;
    let word = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let n = requests.len() as u8;
    let mut program = vec![
        word(LOAD, 0, 0, NR),
        // Else over all that follows to the "allow".
        word(JUMP_IF_EQUAL, 0, n + 1, libc::SYS_ptrace as u32),
        word(LOAD, 0, 0, REQUEST),
    ];
    for (i, &request) in (0..).zip(requests) {
        program.push(word(JUMP_IF_EQUAL, n - i, 0, request));
    }
    program.push(word(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let eio = libc::SECCOMP_RET_ERRNO | libc::EIO as u32;
    program.push(word(RETURN, 0, 0, eio));
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    let mode = u64::from(libc::SECCOMP_MODE_FILTER);
    let header = (&raw const header).addr() as u64;
    prctl(libc::PR_SET_SECCOMP, mode, header, 0, 0).map(drop)
}
