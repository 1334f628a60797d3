//! Pages of a private file mapping whose file was cut short while the target was held.
//!
//! Truncation takes the pages behind the new end from every process that maps the file,
//! written copies too (mmap(2): a touch of them is SIGBUS). A target that had not been
//! held would have lost them all the same, so they are passed over, and counted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use crate::maps::vma::{self, Vma};
use crate::sys::page_size;

/// True when the page at `addr` of `pid` is in a file mapping, behind the end of the file.
/// What cannot be found out is not: then the failure to write there stays one.
pub(super) fn is_behind_the_end(pid: i32, addr: u64) -> bool {
    let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else {
        return false;
    };
    let Ok(vmas) = vma::parse(&maps) else {
        return false;
    };
    let Some(vma) = vmas.iter().find(|vma| (vma.start..vma.end).contains(&addr)) else {
        return false;
    };
    let in_file = addr - vma.start + vma.offset;
    vma.is_file()
        && file_len(pid, vma).is_ok_and(|len| in_file >= len.next_multiple_of(page_size()))
}

/// Length of the mapped file, bytes: by the kernel's link to it (proc_pid_map_files(5)),
/// which needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, else by its name, if that still is the same file.
fn file_len(pid: i32, vma: &Vma) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
    if let Ok(file) = fs::metadata(link) {
        return Ok(file.len());
    }
    let file = fs::metadata(std::ffi::OsStr::from_bytes(&vma.name))?;
    if file.ino() == vma.inode {
        Ok(file.len())
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}
