//! Mode `witness`: threads that look at one word of their memory for ever, and write down
//! in a file what nobody may ever see, and that they run at all.
//!
//! The file is mapped shared: its page stays where it is whatever becomes of the rest,
//! and can be read when the witnesses are dead. Word, place and loop are in registers,
//! the code is clean: a thread that runs without its memory gets as far as telling.
#![allow(unsafe_code)]

use crate::opts::Opts;
use crate::region::Region;
use crate::sleepers::Sleepers;
use crate::talk::{Victim, Wrong, serve};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// What the word is; zeros are what the kernel shows in its place.
const WORD: u64 = 0x5eed_5eed_5eed_5eed;

/// Runs the mode: `threads=8 sleepers=0 dir=DIR`, with so many more threads that only sleep.
/// The file is `DIR/seen`: a word that is 1 once they have seen it, and one that changes as
/// long as any of them runs.
///
/// # Errors
/// When there is no memory, or no file.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let (n_threads, dir) = (opts.len("threads", 8), opts.text("dir", "/tmp"));
    let n_sleepers = opts.len("sleepers", 0);
    opts.done();
    let page_len = crate::sys::page_len();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(PathBuf::from(dir).join("seen"))?;
    file.set_len(page_len as u64)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let seen = Region::map(page_len, prot, libc::MAP_SHARED, Some((file.as_fd(), 0)))?;
    let memory = Region::anon(page_len)?;
    // SAFETY: both are mappings of a page that are never unmapped.
    unsafe {
        memory.ptr().cast::<u64>().write_volatile(WORD);
        seen.ptr().cast::<[u64; 2]>().write_volatile([0, 0]);
    }
    for _ in 0..n_threads {
        std::thread::spawn(move || watch(memory, seen));
    }
    serve(&mut Witness(Sleepers::start(n_sleepers)?));
    Ok(())
}

fn watch(memory: Region, seen: Region) {
    let (word, seen) = (memory.ptr().cast::<u64>(), seen.ptr().cast::<u64>());
    loop {
        // SAFETY: as above; nobody writes the word. What the threads write to the other
        // page is the same, or a count that may be wrong as long as it changes.
        unsafe {
            let beats = seen.add(1);
            beats.write_volatile(beats.read_volatile().wrapping_add(1));
            if word.read_volatile() != WORD {
                seen.write_volatile(1);
            }
        }
    }
}

struct Witness(Sleepers);

impl Victim for Witness {
    fn verify(&mut self) -> Result<u64, Wrong> {
        Ok(8 + self.0.check()?)
    }
}
