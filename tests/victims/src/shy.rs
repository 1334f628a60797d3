//! Mode `shy`: a secret that is in memory only while the memory is kept out of core dumps
//! (MADV_DONTDUMP), which changes all the time.

use crate::opts::Opts;
use crate::region::Region;
use crate::sys::{nap_us, page_len};
use crate::talk::{Victim, Wrong, die, serve};
use std::io;

const LEN: usize = 64 << 10;
/// Every byte of the secret.
const SECRET: u8 = 0xa7;

/// Runs the mode. Options: `nap=300`, microseconds with and without the secret.
///
/// # Errors
/// When memory cannot be had.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let nap = opts.number("nap", 300);
    opts.done();
    // Between pages that nobody may touch: the bounds of the mapping never change.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let whole = Region::map(LEN + 2 * page_len(), libc::PROT_NONE, flags, None)?;
    let region = whole.part(page_len(), LEN);
    region.protect(libc::PROT_READ | libc::PROT_WRITE)?;
    std::thread::spawn(move || {
        if let Err(err) = hide_and_show(region, nap) {
            die(&format!("WRONG at 0x0: hide the secret: {err}"));
        }
    });
    serve(&mut Shy);
    Ok(())
}

fn hide_and_show(mut region: Region, nap: u64) -> io::Result<()> {
    loop {
        region.advise(libc::MADV_DONTDUMP)?;
        region.bytes_mut().fill(SECRET);
        nap_us(nap)?;
        region.bytes_mut().fill(1);
        region.advise(libc::MADV_DODUMP)?;
        nap_us(nap)?;
    }
}

struct Shy;

impl Victim for Shy {
    fn verify(&mut self) -> Result<u64, Wrong> {
        Ok(LEN as u64)
    }
}
