//! What a target has open of a guard whose maker died at it, or while it took it down.
//!
//! A number says little: the target may run on after the death of memcr, close what it never
//! opened, and be given the same number for a file of its own. So a descriptor of ours is noted
//! with the inode of its file, in the parasite's memory, which outlives memcr:
//!
//! | made by         | known from                        | believed as long as                   |
//! |-----------------|-----------------------------------|---------------------------------------|
//! | an earlier call | its note: number and inode        | the number means a file of that inode |
//! | the last call   | its answer, in the table or in the memory for arguments | the thread stands behind that call, in the parasite: the target has not run since but for a moment |
//!
//! The device is not noted: whoever opens it has the same inode. The table that uses it closes
//! it.

use std::io;
use std::os::unix::fs::MetadataExt;

use memcr_parasite::Entry;

use super::guard::{CONTROL_AT, CONTROL_LEN, PAIR_AT, received};
use super::saved::NOT_MADE;
use super::{Borrowed, Parasite, Result};
use crate::sys::arch::nr;
use crate::sys::proc_mem::ProcMem;

const SOCKET: &str = "socket:";
const DEVICE: &str = "/dev/userfaultfd";
const CONTEXT: &str = "anon_inode:[userfaultfd]";

/// Where the notes lie, in the scratch memory; each is two words, number and inode.
const NOTES_AT: u64 = 256;
const NOTE_LEN: usize = 16;

/// What is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    Context,
    First,
    Second,
}

impl Noted {
    const ALL: [Self; 3] = [Self::Context, Self::First, Self::Second];

    fn place(self) -> u64 {
        NOTES_AT + self as u64 * NOTE_LEN as u64
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Context => CONTEXT,
            Self::First | Self::Second => SOCKET,
        }
    }
}

/// Notes that the call which was just made has opened `number` for us.
///
/// # Errors
/// When the target's memory cannot be written.
pub(super) fn note(borrowed: &mut Borrowed<'_>, what: Noted, number: i32) -> Result<()> {
    let inode = inode(borrowed.frozen.pid(), number).unwrap_or(0);
    let words = [number as u64, inode];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    borrowed.write_scratch(what.place(), &bytes)?;
    Ok(())
}

/// The descriptors of the frozen process `pid` that a memcr which has gone has left open. Its
/// first thread must be where that has left it: it is not rescued yet.
///
/// # Errors
/// When the parasite's memory cannot be read.
pub fn leftovers(pid: i32, memory: &ProcMem, parasite: Parasite) -> io::Result<Vec<i32>> {
    let is_at_work = parasite.is_at_work(memory)?;
    let mut ours = Vec::new();
    for what in Noted::ALL {
        let number = memory.read_u64(parasite.scratch() + what.place())? as i32;
        let noted = memory.read_u64(parasite.scratch() + what.place() + 8)?;
        let is_it = match noted {
            // Of a memcr that noted none, or could not. 0 is where nothing was written.
            0 => is_at_work && number > 0,
            noted => inode(pid, number) == Some(noted),
        };
        if is_it && is_open_as(pid, number, what.kind()) {
            ours.push(number);
        }
    }
    if is_at_work {
        let made = of_last_call(memory, parasite)?.into_iter();
        let open = made.filter(|&(number, kind)| number > 0 && is_open_as(pid, number, kind));
        ours.extend(open.map(|(number, _)| number));
    }
    ours.sort_unstable();
    ours.dedup();
    Ok(ours)
}

/// What the last table has made, or was to close and has not: numbers and kinds.
fn of_last_call(memory: &ProcMem, parasite: Parasite) -> io::Result<Vec<(i32, &'static str)>> {
    let mut table = [Entry::default(); 2];
    parasite.unload(memory, &mut table)?;
    let [first, second] = table;
    let mut made = match first.nr {
        nr::SOCKETPAIR => {
            let pair = memory.read_u64(parasite.scratch() + PAIR_AT)?;
            vec![(pair as i32, SOCKET), ((pair >> 32) as i32, SOCKET)]
        }
        nr::RECVMSG => {
            let mut control = [0; CONTROL_LEN];
            memory.read(parasite.scratch() + CONTROL_AT, &mut control)?;
            let device = received(&control).into_iter();
            device.map(|device| (device, DEVICE)).collect()
        }
        nr::IOCTL | nr::USERFAULTFD => vec![(first.ret as i32, CONTEXT)],
        _ => Vec::new(),
    };
    if (second.nr, second.ret) == (nr::CLOSE, NOT_MADE) {
        made.push((second.args[0] as i32, DEVICE));
    }
    Ok(made)
}

fn is_open_as(pid: i32, number: i32, kind: &str) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}"));
    link.is_ok_and(|link| link.to_string_lossy().starts_with(kind))
}

/// The inode of the file that a descriptor of process `pid` means: one of its own for each
/// socket, and for each userfaultfd since Linux 5.12.
fn inode(pid: i32, number: i32) -> Option<u64> {
    let file = std::fs::metadata(format!("/proc/{pid}/fd/{number}"));
    Some(file.ok()?.ino())
}
