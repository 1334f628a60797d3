//! What an image says of its target, and what the kernel reads of one that stands still.

use std::io;

use crate::freeze::Frozen;
use crate::maps::vma::Vma;
use crate::pages::{PageRun, RemoteAddr};
use crate::sink::{ImageMeta, Protection, TargetIdentity, VmaRecord};
use crate::sys::{page_size, procfs, ptrace};

/// Who the target is and what it has mapped.
pub(super) fn describe(frozen: &Frozen, vmas: &[Vma]) -> io::Result<ImageMeta> {
    let pid = frozen.pid();
    let mut meta = ImageMeta {
        target: TargetIdentity {
            pid: pid.cast_unsigned(),
            start_time: frozen.target().start_time,
            boot_id: parse_boot_id(&procfs::boot_id()?),
            comm: std::fs::read(format!("/proc/{pid}/comm"))?
                .trim_ascii_end()
                .to_vec(),
            exe: exe(pid),
        },
        ..ImageMeta::default()
    };
    for vma in vmas {
        meta.vmas.push(&record(vma));
    }
    Ok(meta)
}

/// The link is empty for a program whose file system is gone: then so is the field.
fn exe(pid: i32) -> Vec<u8> {
    use std::os::unix::ffi::OsStringExt;
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map(|path| path.into_os_string().into_vec())
        .unwrap_or_default()
}

/// A UUID in text (random(4)); what is not one becomes zeros, which no boot has.
fn parse_boot_id(text: &str) -> [u8; 16] {
    u128::from_str_radix(&text.replace('-', ""), 16)
        .unwrap_or_default()
        .to_be_bytes()
}

fn record(vma: &Vma) -> VmaRecord<'_> {
    VmaRecord {
        start: vma.start,
        end: vma.end,
        protection: Protection {
            read: vma.perms.read,
            write: vma.perms.write,
            execute: vma.perms.exec,
            shared: vma.perms.shared,
        },
        offset: vma.offset,
        dev_major: vma.device.major(),
        dev_minor: vma.device.minor(),
        inode: vma.inode,
        name: &vma.name,
    }
}

/// Pages that must not be missing while the target is held under a guard: who reads them
/// would wait for the restore.
///
/// `ps` reads arguments and environment of every process (proc_pid_cmdline(5)), and the
/// kernel writes to the rseq area of a thread whenever it goes on: the first one makes
/// our calls.
pub(super) fn needed(frozen: &Frozen) -> io::Result<Vec<PageRun>> {
    let mut needed = procfs::argument_ranges(frozen.pid())?;
    if let Some(&first) = frozen.tids().first()
        && let Some(area) = ptrace::rseq_area(first)?
    {
        needed.push((area, area + RSEQ_LEN));
    }
    let pages = |(start, end): (u64, u64)| {
        let start = start / page_size() * page_size();
        PageRun {
            addr: RemoteAddr(start),
            len_bytes: end.next_multiple_of(page_size()) - start,
        }
    };
    Ok(needed.into_iter().map(pages).collect())
}

/// Length of `struct rseq` as this kernel knows it, or more, bytes (linux/rseq.h).
const RSEQ_LEN: u64 = 64;
