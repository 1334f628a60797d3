//! Making the file of a new image: private, and without a name where that is possible.

use std::fs::File;

use memcr_plugin_api::abi::code;
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Result, StageError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Resource;

use crate::image_file::stat;
use crate::{Directory, room};

const OWNER_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);

/// A file without a name; `None` where the file system has none such: overlayfs before
/// Linux 6.3, vfat, NFS, FUSE before 6.2.
pub(crate) fn unnamed(dir: &Directory) -> Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags, OWNER_ONLY) {
        Ok(fd) => Ok(Some(File::from(fd))),
        // Kernels without O_TMPFILE see its other half, O_DIRECTORY with O_RDWR.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(e) => Err(not_made(dir, e)),
    }
}

/// A file of a temporary name.
pub(crate) fn hidden(dir: &Directory, name: &str) -> Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, OWNER_ONLY)
        .map(File::from)
        .map_err(|e| not_made(dir, e))
}

/// Makes sure that nobody but the owner can open the new file of `dir`.
pub(crate) fn ensure_private(file: &File, dir: &str) -> Result<()> {
    // The umask may have taken the owner's bits. A file system without modes refuses
    // this, or just does not do it: the look at the result decides.
    let _ = rustix::fs::fchmod(file, OWNER_ONLY);
    let mode = stat(file, dir)?.st_mode & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let message = format!(
        "{dir} makes files of mode {mode:04o}, whatever is asked: others could use the image"
    );
    Err(StageError::new(code::PERMISSION, message)
        .hint("set another `dir`, or mount the file system with umask=077"))
}

fn not_made(dir: &Directory, e: Errno) -> StageError {
    let hint = match e {
        // The directory is open: what is not found is a way to make files in it (/proc).
        Errno::NOENT => "set `dir` to a directory that takes files",
        _ => hint_of(&e.into()),
    };
    StageError::io(format!("make an image in {}", dir.path()), &e.into()).hint(hint)
}

/// The name of an image.
pub(crate) fn name(image: &NewImage) -> String {
    format!("pages-{}.img", image.pid)
}

/// Its name if that one is taken. The id of an image is random: nobody else has it.
pub(crate) fn other_name(image: &NewImage) -> String {
    format!("pages-{}-{}.img", image.pid, hex(&image.id))
}

/// A temporary name that nobody guesses.
pub(crate) fn hidden_name(name: &str, id: &[u8; 16]) -> String {
    format!(".{name}.{}", hex(id))
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RLIMIT_FSIZE, bytes. Over it the kernel does not only fail the write but sends
/// SIGXFSZ, which would kill memcr with a frozen target.
pub(crate) fn file_limit(image: &NewImage) -> Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Fsize)
        .current
        .unwrap_or(i64::MAX as u64);
    if room::least_len(image) > limit {
        let what = format!("store an image of {}", room::mib(image.expected_len));
        return Err(over_limit(&what, limit));
    }
    Ok(limit)
}

/// The failure of a file that would be longer than RLIMIT_FSIZE.
pub(crate) fn over_limit(what: &str, limit: u64) -> StageError {
    StageError::new(
        code::NO_SPACE,
        format!("{what}: files may be {limit} bytes long at most (RLIMIT_FSIZE)"),
    )
    .hint("raise it: ulimit -f unlimited")
}

/// What helps against a failure to make or write an image.
pub(crate) fn hint_of(e: &std::io::Error) -> &'static str {
    match StageError::io("", e).code {
        code::NO_SPACE => {
            "make room, set another `dir`, or put a compressing stage before the sink"
        }
        code::PERMISSION => "set `dir` to a directory that you may write",
        _ if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            "set `dir` to a directory of a file system that is mounted for writing"
        }
        _ => "",
    }
}
