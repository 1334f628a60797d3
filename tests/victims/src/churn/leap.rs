//! Mode `leap`: a process that becomes another program although all its memory is gone.
//!
//! A thread on a stack of shared memory, which nobody takes, waits in read(2) and then calls
//! execve(2) with words that lie there too: whoever continues the process while it is held sees it
//! become a `memory` victim.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::talk::{die, say};
use std::ffi::{c_char, c_void};
use std::io;

const STACK_LEN: usize = 256 << 10;
/// Zero bytes end each word.
const WORDS: [&[u8]; 4] = [b"/proc/self/exe\0", b"memory\0", b"size=1048576\0", b"\0"];

/// What the thread needs, at the bottom of its stack.
#[repr(C)]
struct Leap {
    words: [[u8; 32]; WORDS.len()],
    argv: [*const c_char; WORDS.len()],
    byte: u8,
}

/// `size=8M`: on a line of input it goes.
pub(crate) fn run_leap(opts: &Opts) -> io::Result<()> {
    let mut ballast = Region::anon(opts.len("size", 8 << 20))?;
    opts.done();
    ballast.fill(Rule {
        content: Content::Random,
        seed: 1,
    });
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    let stack = Region::map(STACK_LEN, prot, flags, None)?;
    let leap: *mut Leap = stack.ptr().cast();
    // SAFETY: the bottom of a mapping that is longer, zeroed and never unmapped.
    let there = unsafe { &mut *leap };
    for (n, word) in WORDS.iter().enumerate() {
        there.words[n][..word.len()].copy_from_slice(word);
        there.argv[n] = there.words[n].as_ptr().cast();
    }
    // The last word is none.
    there.argv[WORDS.len() - 1] = std::ptr::null();
    start(stack, leap)?;
    say("ready");
    loop {
        std::thread::park();
    }
}

/// Starts the thread.
fn start(stack: Region, leap: *mut Leap) -> io::Result<()> {
    // SAFETY: attributes are made before they are used; the stack is as long as is said, and
    // nobody else has it.
    let failed = unsafe {
        let mut attributes = std::mem::zeroed::<libc::pthread_attr_t>();
        let mut thread = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut attributes);
        match libc::pthread_attr_setstack(&raw mut attributes, stack.ptr().cast(), STACK_LEN) {
            0 => libc::pthread_create(&raw mut thread, &raw const attributes, go, leap.cast()),
            failed => failed,
        }
    };
    match failed {
        0 => Ok(()),
        failed => Err(io::Error::from_raw_os_error(failed)),
    }
}

/// Touches nothing but its stack: functions of the C library for these calls look at its
/// variables first.
extern "C" fn go(leap: *mut c_void) -> *mut c_void {
    let leap: *mut Leap = leap.cast();
    // SAFETY: `run_leap` filled it, and nobody else looks at it.
    unsafe {
        let (byte, argv) = (&raw mut (*leap).byte, &raw const (*leap).argv);
        while libc::syscall(libc::SYS_read, 0, byte, 1) == 1 && *byte != b'\n' {}
        libc::syscall(
            libc::SYS_execve,
            (*argv)[0],
            argv,
            std::ptr::null::<c_void>(),
        );
    }
    die("execve")
}
