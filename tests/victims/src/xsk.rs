//! Memory that is pinned for a network device.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sys::{check, owned, page_len};
use crate::talk::{Victim, Wrong, serve};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const RULE: Rule = Rule {
    content: Content::Dense,
    seed: 1,
};

/// Mode `xsk`: an AF_XDP socket may write into private memory of ours, once a frame of it is
/// handed over. None is. `size=1M`: how much.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let len = opts.len("size", 1 << 20);
    opts.done();
    let mut frames = Region::anon(len)?;
    frames.fill(RULE);
    let socket = socket(frames)?;
    let rings = [
        libc::XDP_UMEM_PGOFF_FILL_RING,
        libc::XDP_UMEM_PGOFF_COMPLETION_RING,
    ];
    for offset in rings {
        Region::map(
            page_len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            Some((socket.as_fd(), offset.cast_signed())),
        )?;
    }
    serve(&mut Xsk {
        frames,
        _socket: socket,
    });
    Ok(())
}

fn socket(frames: Region) -> io::Result<OwnedFd> {
    const N_ENTRIES: u32 = 64;
    // SAFETY: all arguments are numbers.
    let socket = owned(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW, 0) }.into())?;
    let memory = libc::xdp_umem_reg {
        addr: frames.addr() as u64,
        len: frames.len() as u64,
        chunk_size: 4096,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set(&socket, libc::XDP_UMEM_REG, &memory)?;
    set(&socket, libc::XDP_UMEM_FILL_RING, &N_ENTRIES)?;
    set(&socket, libc::XDP_UMEM_COMPLETION_RING, &N_ENTRIES)?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the call reads as many bytes of a live value; the memory that one of them tells
    // of is mapped for ever.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(ret).map(drop)
}

struct Xsk {
    frames: Region,
    _socket: OwnedFd,
}

impl Victim for Xsk {
    fn verify(&mut self) -> Result<u64, Wrong> {
        self.frames.check(RULE)?;
        Ok(self.frames.len() as u64)
    }
}
