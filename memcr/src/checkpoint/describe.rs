//! What an image says of its target, and what the kernel reads of one that stands still.

use std::io;

use crate::freeze::Frozen;
use crate::maps::vma::Vma;
use crate::pages::{PageRun, RemoteAddr};
use crate::sink::{ImageMeta, Protection, TargetIdentity, VmaRecord};
use crate::sys::ptrace::{self, RseqArea};
use crate::sys::{page_size, procfs};

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
    if let Some(&first) = frozen.tids().first() {
        let thread_pointer = ptrace::registers(first)?.map_or(0, |regs| regs.thread_pointer());
        needed.extend(rseq_range(ptrace::rseq_area(first)?, thread_pointer));
    }
    Ok(needed.into_iter().map(pages).collect())
}

/// The pages of a range.
fn pages((start, end): (u64, u64)) -> PageRun {
    let start = start / page_size() * page_size();
    PageRun {
        addr: RemoteAddr(start),
        len_bytes: end.next_multiple_of(page_size()) - start,
    }
}

/// Where the kernel may write for the sake of rseq. If it cannot tell: glibc (2.35) has the area
/// in its thread control block, behind the thread pointer or, on some architectures and from
/// 2.41 on, before it.
fn rseq_range(area: RseqArea, thread_pointer: u64) -> Option<(u64, u64)> {
    match area {
        RseqArea::None => None,
        RseqArea::At(area) => Some((area, area + RSEQ_LEN)),
        RseqArea::Unknown if thread_pointer == 0 => None,
        RseqArea::Unknown => Some((
            thread_pointer.saturating_sub(page_size()),
            thread_pointer.saturating_add(page_size() + 1),
        )),
    }
}

/// Length of `struct rseq` as this kernel knows it, or more, bytes (linux/rseq.h).
const RSEQ_LEN: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_for_rseq_is_kept_also_if_it_cannot_tell_where() {
        let page = page_size();
        let kept = |area, pointer| {
            let run = rseq_range(area, pointer).map(pages);
            run.map(|run| (run.addr.0 / page, run.len_bytes / page))
        };
        assert_eq!(kept(RseqArea::None, 7 * page), None);
        assert_eq!(kept(RseqArea::At(9 * page + 64), 7 * page), Some((9, 1)));
        // The page of the thread pointer, the one below and the one that follows.
        for offset in [0, 64, page - 64, page - 1] {
            let kept = kept(RseqArea::Unknown, 7 * page + offset);
            assert_eq!(kept, Some((6, 3)), "{offset}");
        }
        assert_eq!(kept(RseqArea::Unknown, 0), None);
    }
}
