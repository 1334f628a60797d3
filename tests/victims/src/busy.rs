//! Modes with input and output in flight: the kernel will write to memory later.
#![allow(unsafe_code)]

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sys::{check, check_long, owned, page_len, pipe};
use crate::talk::{Victim, Wrong, serve};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SHARED: i32 = libc::MAP_SHARED | libc::MAP_POPULATE;

fn has_thread_named(begin: &str) -> io::Result<bool> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(thread?.path().join("comm"))?;
        if name.starts_with(begin) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Mode `uring`: `inflight=1`: a read of an empty pipe waits in an io_uring; or an idle ring.
/// `kind=plain|polled|own`: a thread of the kernel takes requests; the queues lie in memory
/// of our own; `single`: it takes calls of the thread that made it only. `multishot=1`: one
/// request, one completion, and it still waits for more. `buffers=own|mapped`: provided buffers,
/// listed in memory of our own or of the kernel's. `hidden=1`: the ring has no descriptor, but a
/// place among the registered ones.
/// `size=1M content=dense`: memory.
pub(crate) fn run_uring(opts: &Opts) -> io::Result<()> {
    const SETUP_SQPOLL: u32 = 1 << 1;
    const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
    const SETUP_NO_MMAP: u32 = 1 << 14;
    let (buffers, is_hidden) = (opts.text("buffers", ""), opts.flag("hidden"));
    let (in_flight, multishot) = (opts.flag("inflight"), opts.flag("multishot"));
    let (kind, len) = (opts.text("kind", "plain"), opts.len("size", 1 << 20));
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: 1,
    };
    opts.done();
    let mut ring = match kind.as_str() {
        "polled" => {
            let ring = Ring::make(SETUP_SQPOLL)?;
            // Who looks at us is not to see it change its name.
            while !has_thread_named("iou-sqp-")? {
                std::thread::yield_now();
            }
            ring
        }
        "own" => Ring::make(SETUP_NO_MMAP)?,
        "single" => Ring::make(SETUP_SINGLE_ISSUER)?,
        _ => Ring::make(0)?,
    };
    if multishot {
        let (reader, writer) = pipe()?;
        ring.submit_multishot_poll(&reader)?;
        File::from(writer.try_clone()?).write_all(b"x")?;
        ring.reap()?;
        // Open until the end.
        std::mem::forget((reader, writer));
    }
    if !buffers.is_empty() {
        ring.provide_buffers(buffers == "mapped")?;
    }
    if is_hidden {
        // Of no use to us any more, but it stays.
        ring.hide()?;
    }
    let buffer = filled(len, rule)?;
    let (reader, writer) = pipe()?;
    if in_flight {
        ring.submit_read(&reader, buffer)?;
    }
    serve(&mut Busy {
        buffer,
        rule,
        writer: Some(writer),
        _reader: reader,
        fetch: Box::new(move || ring.reap()),
        in_flight,
    });
    Ok(())
}

/// Mode `aio`: `inflight=1`: a poll of an empty pipe waits in an AIO context; or an idle one.
pub(crate) fn run_aio(opts: &Opts) -> io::Result<()> {
    const IOCB_CMD_POLL: u16 = 5;
    let in_flight = opts.flag("inflight");
    opts.done();
    let mut context = 0u64;
    // SAFETY: writes the context's id.
    check_long(unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) })?;
    let buffer = filled(1 << 20, RULE)?;
    let (reader, writer) = pipe()?;
    if in_flight {
        // SAFETY: all zeros is a valid block to start from; it is read during the call.
        unsafe {
            let mut block: libc::iocb = std::mem::zeroed();
            block.aio_lio_opcode = IOCB_CMD_POLL;
            block.aio_fildes = reader.as_raw_fd() as u32;
            block.aio_buf = libc::POLLIN as u64;
            check_long(libc::syscall(
                libc::SYS_io_submit,
                context,
                1,
                &[&raw mut block],
            ))?;
        }
    }
    let fetch = move || {
        let mut event = [0u64; 4];
        // SAFETY: room for one event of 32 bytes, no timeout.
        check_long(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                1,
                1,
                event.as_mut_ptr(),
                std::ptr::null::<u8>(),
            )
        })?;
        // The buffer takes no part: what the event says is what must have survived.
        Ok(if event[2] & libc::POLLIN as u64 != 0 {
            MESSAGE.len() as i32
        } else {
            -1
        })
    };
    serve(&mut Busy {
        buffer,
        rule: RULE,
        writer: Some(writer),
        _reader: reader,
        fetch: Box::new(fetch),
        in_flight,
    });
    Ok(())
}

const RULE: Rule = Rule {
    content: Content::Dense,
    seed: 1,
};

/// Memory whose first page is for what the kernel writes.
fn filled(len: usize, rule: Rule) -> io::Result<Region> {
    let buffer = Region::anon(len)?;
    behind_first(buffer).fill(rule);
    Ok(buffer)
}

fn behind_first(buffer: Region) -> Region {
    buffer.part(page_len(), buffer.len() - page_len())
}

const MESSAGE: &[u8] = b"written by the kernel while nobody looked";

/// Something in flight, and the pipe that completes it.
struct Busy {
    buffer: Region,
    rule: Rule,
    writer: Option<OwnedFd>,
    _reader: OwnedFd,
    fetch: Box<dyn FnMut() -> io::Result<i32>>,
    in_flight: bool,
}

impl Busy {
    /// Completes the operation and looks at what arrived.
    fn complete(&mut self) -> Result<(), Wrong> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let trouble = |err: io::Error| Wrong::state(format!("complete the read: {err}"));
        File::from(writer).write_all(MESSAGE).map_err(trouble)?;
        let len = (self.fetch)().map_err(trouble)?;
        if len != MESSAGE.len() as i32 {
            return Err(Wrong::state(format!(
                "the operation answered {len}, want {}",
                MESSAGE.len()
            )));
        }
        Ok(())
    }
}

impl Victim for Busy {
    fn verify(&mut self) -> Result<u64, Wrong> {
        if self.in_flight {
            self.complete()?;
        }
        behind_first(self.buffer).check(self.rule)?;
        Ok(self.buffer.len() as u64)
    }
}

/// A small io_uring, driven by hand.
struct Ring {
    fd: OwnedFd,
    queues: Region,
    entries: Region,
    offsets: Offsets,
}

/// `struct io_uring_params` as numbers: the fields we use, by index of u32.
struct Offsets {
    sq_tail: usize,
    sq_mask: usize,
    sq_array: usize,
    cq_head: usize,
    cq_tail: usize,
    cq_mask: usize,
    cqes: usize,
}

impl Ring {
    fn make(flags: u32) -> io::Result<Self> {
        const FLAGS: usize = 2;
        let mut params = [0u32; 30];
        params[FLAGS] = flags;
        let own = [Region::anon(page_len())?, Region::anon(page_len())?];
        let is_own = flags & (1 << 14) != 0;
        if is_own {
            // The last word of each of the two tables of offsets: an address of ours.
            for (word, region) in [(18, own[0]), (28, own[1])] {
                let addr = region.addr() as u64;
                (params[word], params[word + 1]) = (addr as u32, (addr >> 32) as u32);
            }
        }
        // SAFETY: 120 writable bytes, the length of io_uring_params; own memory is mapped
        // for ever and used for nothing else.
        let fd = owned(unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, params.as_mut_ptr()) })?;
        let at = |i: usize| params[i] as usize;
        // sq_off begins at word 10 (head, tail, mask, entries, flags, dropped, array),
        // cq_off at word 20 (head, tail, mask, entries, overflow, cqes).
        let offsets = Offsets {
            sq_tail: at(11),
            sq_mask: at(12),
            sq_array: at(16),
            cq_head: at(20),
            cq_tail: at(21),
            cq_mask: at(22),
            cqes: at(25),
        };
        if is_own {
            let [entries, queues] = own;
            return Ok(Self {
                fd,
                queues,
                entries,
                offsets,
            });
        }
        // With IORING_FEAT_SINGLE_MMAP (5.4) both queues lie in one mapping.
        let len = (offsets.sq_array + at(0) * 4).max(offsets.cqes + at(1) * 16);
        let queues = Region::map(len, READ_WRITE, SHARED, Some((fd.as_fd(), 0)))?;
        let entries = Region::map(
            at(0) * 64,
            READ_WRITE,
            SHARED,
            Some((fd.as_fd(), 0x1000_0000)),
        )?;
        Ok(Self {
            fd,
            queues,
            entries,
            offsets,
        })
    }

    /// A word of the queues that the kernel writes or reads at the same time.
    fn word(&self, offset: usize) -> &AtomicU32 {
        let place = self.queues.part(offset, 4).ptr();
        // SAFETY: inside the mapping, aligned by the kernel, alive as long as the ring.
        unsafe { AtomicU32::from_ptr(place.cast()) }
    }

    /// Registers a list of buffers for group 7, as io_uring_setup_buf_ring(3) does.
    fn provide_buffers(&self, mapped: bool) -> io::Result<()> {
        const REGISTER_PBUF_RING: i32 = 22;
        const GROUP: u64 = 7;
        const MAPPED: u64 = 1;
        let own = Region::anon(page_len())?.addr() as u64;
        let (address, flags) = if mapped { (0, MAPPED) } else { (own, 0) };
        // struct io_uring_buf_reg: address; entries, group, flags; reserved.
        let mut registration = [address, 16 | GROUP << 32 | flags << 48, 0, 0, 0];
        self.register(REGISTER_PBUF_RING, registration.as_mut_ptr().cast())?;
        if mapped {
            let at = 0x8000_0000 | (GROUP << 16) as i64;
            Region::map(page_len(), READ_WRITE, SHARED, Some((self.fd.as_fd(), at)))?;
        }
        Ok(())
    }

    /// Registers the ring with the thread, and closes its descriptor.
    fn hide(&mut self) -> io::Result<()> {
        const REGISTER_RING_FDS: i32 = 20;
        // struct io_uring_rsrc_update: offset (any), reserved; descriptor.
        let mut update = [u64::from(u32::MAX), self.fd.as_raw_fd() as u64];
        self.register(REGISTER_RING_FDS, update.as_mut_ptr().cast())?;
        // In its place something else that can be closed.
        self.fd = pipe()?.0;
        Ok(())
    }

    fn register(&self, code: i32, argument: *mut u8) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: one structure of the kind that the code asks for.
        let ret = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, code, argument, 1) };
        check(ret as i32).map(drop)
    }

    fn submit_read(&mut self, from: &OwnedFd, into: Region) -> io::Result<()> {
        const IORING_OP_READ: u8 = 22;
        let entry = self.entries.bytes_mut();
        entry[0] = IORING_OP_READ;
        entry[4..8].copy_from_slice(&from.as_raw_fd().to_le_bytes());
        entry[16..24].copy_from_slice(&(into.addr() as u64).to_le_bytes());
        entry[24..28].copy_from_slice(&(MESSAGE.len() as u32).to_le_bytes());
        self.submit()
    }

    /// A poll that completes again and again.
    fn submit_multishot_poll(&mut self, of: &OwnedFd) -> io::Result<()> {
        const IORING_OP_POLL_ADD: u8 = 6;
        const IORING_POLL_ADD_MULTI: u32 = 1;
        let entry = self.entries.bytes_mut();
        entry[0] = IORING_OP_POLL_ADD;
        entry[4..8].copy_from_slice(&of.as_raw_fd().to_le_bytes());
        entry[24..28].copy_from_slice(&IORING_POLL_ADD_MULTI.to_le_bytes());
        entry[28..32].copy_from_slice(&u32::from(libc::POLLIN.cast_unsigned()).to_le_bytes());
        self.submit()
    }

    /// Submits the first entry.
    fn submit(&mut self) -> io::Result<()> {
        let tail = self.word(self.offsets.sq_tail);
        let slot =
            tail.load(Ordering::Acquire) & self.word(self.offsets.sq_mask).load(Ordering::Acquire);
        self.word(self.offsets.sq_array + slot as usize * 4)
            .store(0, Ordering::Release);
        tail.fetch_add(1, Ordering::Release);
        self.enter(1, 0)
    }

    fn enter(&self, n_submit: u32, n_wait: u32) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        let (fd, flags) = (self.fd.as_raw_fd(), if n_wait > 0 { GETEVENTS } else { 0 });
        // SAFETY: no signal mask is passed.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                n_submit,
                n_wait,
                flags,
                std::ptr::null::<u8>(),
                0,
            )
        };
        check(ret as i32).map(drop)
    }

    /// Waits for one completion; answers its result.
    fn reap(&mut self) -> io::Result<i32> {
        let (head, tail) = (
            self.word(self.offsets.cq_head),
            self.word(self.offsets.cq_tail),
        );
        while head.load(Ordering::Acquire) == tail.load(Ordering::Acquire) {
            self.enter(0, 1)?;
        }
        let slot =
            head.load(Ordering::Acquire) & self.word(self.offsets.cq_mask).load(Ordering::Acquire);
        let result = self
            .word(self.offsets.cqes + slot as usize * 16 + 8)
            .load(Ordering::Acquire);
        head.fetch_add(1, Ordering::Release);
        Ok(result.cast_signed())
    }
}
