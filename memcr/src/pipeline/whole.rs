//! Whether all of a shared object is there.
//!
//! ```text
//!   file   ├─ head ─┬─ program headers ─┬───── segments ─────┤ ◀─ length of the file
//!   whole:          └ within the file   └ LOAD: offset + size within the file
//! ```
//!
//! The loader maps what the program headers promise and believes them. Of a plugin whose
//! copying was cut short it maps pages behind the end of the file, and the first touch
//! of one ends memcr with SIGBUS. So the promise is held against the length of the file
//! first. Everything else that can be wrong with a file the loader finds itself, and
//! says so: whatever is not understood here is left to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest table of program headers that is looked at: far above what linkers make.
const MAX_HEADERS_LEN: usize = 64 << 10;
/// `p_type` of a segment that is mapped.
const PT_LOAD: u64 = 1;

/// Where the fields lie, by the class of the file (elf(5)): offset and width, bytes.
struct Layout {
    head_len: usize,
    phoff: (usize, usize),
    phentsize: usize,
    phnum: usize,
    p_offset: (usize, usize),
    p_filesz: (usize, usize),
    header_len: usize,
}

const ELF32: Layout = Layout {
    head_len: 52,
    phoff: (28, 4),
    phentsize: 42,
    phnum: 44,
    p_offset: (4, 4),
    p_filesz: (16, 4),
    header_len: 32,
};

const ELF64: Layout = Layout {
    head_len: 64,
    phoff: (32, 8),
    phentsize: 54,
    phnum: 56,
    p_offset: (8, 8),
    p_filesz: (32, 8),
    header_len: 56,
};

/// Checks that a shared object reaches as far as its headers say.
///
/// # Errors
/// What is missing, for people, or why the file cannot be read.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    match promised_len(&file, len).map_err(|e| e.to_string())? {
        Some(promised) if promised > len => Err(format!(
            "it is cut short: {len} bytes of at least {promised} are there"
        )),
        _ => Ok(()),
    }
}

/// How far the segments and their headers reach, bytes; `None` for what is no ELF file
/// of this machine's byte order.
fn promised_len(file: &File, len: u64) -> io::Result<Option<u64>> {
    let mut head = [0; 64];
    let n_read = read_up_to(file, &mut head, 0)?;
    let Some(layout) = layout(&head[..n_read]) else {
        return Ok(None);
    };
    let begin = field(&head, layout.phoff);
    let (size, count) = (
        field(&head, (layout.phentsize, 2)) as usize,
        field(&head, (layout.phnum, 2)) as usize,
    );
    let headers_len = size * count;
    if size < layout.header_len || headers_len > MAX_HEADERS_LEN {
        return Ok(None);
    }
    let end = begin.saturating_add(headers_len as u64);
    if end > len {
        return Ok(Some(end));
    }
    let mut headers = vec![0; headers_len];
    file.read_exact_at(&mut headers, begin)?;
    let segments = headers.chunks_exact(size).filter_map(|header| {
        let offset = field(header, layout.p_offset);
        (field(header, (0, 4)) == PT_LOAD)
            .then(|| offset.saturating_add(field(header, layout.p_filesz)))
    });
    Ok(Some(segments.fold(end, u64::max)))
}

fn layout(head: &[u8]) -> Option<&'static Layout> {
    let this_order = if cfg!(target_endian = "little") { 1 } else { 2 };
    let layout = match head {
        [0x7f, b'E', b'L', b'F', 1, order, ..] if *order == this_order => &ELF32,
        [0x7f, b'E', b'L', b'F', 2, order, ..] if *order == this_order => &ELF64,
        _ => return None,
    };
    (head.len() >= layout.head_len).then_some(layout)
}

/// An unsigned number of `width` bytes. The callers' offsets lie within their buffers.
fn field(bytes: &[u8], (offset, width): (usize, usize)) -> u64 {
    let bytes = &bytes[offset..offset + width];
    let digit = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
    if cfg!(target_endian = "little") {
        bytes.iter().rev().fold(0, digit)
    } else {
        bytes.iter().fold(0, digit)
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut n_read = 0;
    while n_read < buffer.len() {
        match file.read_at(&mut buffer[n_read..], offset + n_read as u64) {
            Ok(0) => break,
            Ok(n) => n_read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n_read)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// The test program itself: a whole ELF file of this machine.
    fn whole() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    fn check_bytes(bytes: &[u8]) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        check(file.path())
    }

    #[test]
    fn a_whole_one_passes() {
        check(Path::new("/proc/self/exe")).unwrap();
    }

    #[test]
    fn one_cut_short_is_told_wherever_it_was_cut() {
        let whole = whole();
        for len in [64, 65, 4096, 20_000] {
            let error = check_bytes(&whole[..len]).unwrap_err();
            assert!(
                error.starts_with(&format!("it is cut short: {len} bytes of at least ")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_elf_file_is_left_to_the_loader() {
        for bytes in [&b""[..], b"\x7fELF", b"text", &[0xff; 200], &whole()[..63]] {
            check_bytes(bytes).unwrap();
        }
    }

    #[test]
    fn numbers_without_limit_neither_overflow_nor_allocate() {
        let mut bytes = whole()[..64].to_vec();
        bytes[32..40].fill(0xff);
        assert!(check_bytes(&bytes).is_err());
        bytes[54..58].fill(0xff);
        check_bytes(&bytes).unwrap();
    }
}
