//! `/proc/PID/maps` (proc_pid_maps(5)), line by line.
//!
//! ```text
//! 7f1c00000000-7f1c00021000 rw-p 00000000 00:00 0          [anon:arena]
//! start        end          perm offset   dev   inode      name (rest of the line, any bytes)
//! ```
//!
//! The kernel writes a newline in a name as `\012`; every other byte, spaces and
//! ` (deleted)` included, stands as it is and is kept as it is.

use super::MapsError;

/// A virtual memory area of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// Protection and kind.
    pub perms: Perms,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file.
    pub device: Device,
    /// Inode of the file; 0: none.
    pub inode: u64,
    /// Name as the kernel writes it, empty for plain anonymous memory.
    pub name: Box<[u8]>,
}

/// Major and minor number, of 12 and 20 bits (makedev(3)), in one word: of mappings there may be
/// as many as 65,530 in a memcr that is to stay small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(u32);

impl Device {
    const MINOR_BITS: u32 = 20;

    /// `None`: there are no such numbers.
    #[must_use]
    pub fn new(major: u64, minor: u64) -> Option<Self> {
        let fits = major < 1 << (u32::BITS - Self::MINOR_BITS) && minor < 1 << Self::MINOR_BITS;
        // What does not fit is cut off, and not answered.
        fits.then_some(Self((major as u32) << Self::MINOR_BITS | minor as u32))
    }

    /// Major number.
    #[must_use]
    pub fn major(self) -> u32 {
        self.0 >> Self::MINOR_BITS
    }

    /// Minor number.
    #[must_use]
    pub fn minor(self) -> u32 {
        self.0 & ((1 << Self::MINOR_BITS) - 1)
    }
}

/// The four letters of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Perms {
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED.
    pub shared: bool,
}

impl Vma {
    /// Length, bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// True when the pages have a file behind them: not written, they show the file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.name.starts_with(b"/") || self.inode != 0
    }
}

/// Parses the whole of `/proc/PID/maps`.
///
/// # Errors
/// [`MapsError::Line`] with the first line that is not understood.
pub fn parse(text: &[u8]) -> Result<Vec<Vma>, MapsError> {
    let lines = text
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(index, line)| parse_line(line).ok_or_else(|| not_understood("maps", index, line)))
        .collect()
}

/// The error of a line that is none.
pub(super) fn not_understood(file: &'static str, index: usize, line: &[u8]) -> MapsError {
    MapsError::Line {
        file,
        line: index + 1,
        text: String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned(),
    }
}

/// Parses one line; `smaps` begins each of its entries with the same.
pub(super) fn parse_line(line: &[u8]) -> Option<Vma> {
    let mut rest = line;
    let (start, end) = split_pair(word(&mut rest)?, b'-', 16)?;
    let perms = perms(word(&mut rest)?)?;
    let offset = number(word(&mut rest)?, 16)?;
    let (major, minor) = split_pair(word(&mut rest)?, b':', 16)?;
    let device = Device::new(major, minor)?;
    let inode = number(word(&mut rest)?, 10)?;
    let name = rest.trim_ascii_start();
    (start < end).then(|| Vma {
        start,
        end,
        perms,
        offset,
        device,
        inode,
        name: name.into(),
    })
}

/// Takes the next word off the front of `rest`.
fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let text = rest.trim_ascii_start();
    let end = text
        .iter()
        .position(|&byte| byte == b' ')
        .unwrap_or(text.len());
    let (word, tail) = text.split_at(end);
    *rest = tail;
    (!word.is_empty()).then_some(word)
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

fn split_pair(text: &[u8], separator: u8, radix: u32) -> Option<(u64, u64)> {
    let middle = text.iter().position(|&byte| byte == separator)?;
    Some((
        number(&text[..middle], radix)?,
        number(&text[middle + 1..], radix)?,
    ))
}

fn perms(text: &[u8]) -> Option<Perms> {
    let &[read, write, exec, kind] = text else {
        return None;
    };
    Some(Perms {
        read: read == b'r',
        write: write == b'w',
        exec: exec == b'x',
        shared: kind == b's',
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one(line: &str) -> Vma {
        parse(line.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn a_plain_line_is_parsed() {
        let vma = one("7ffc1000-7ffc3000 rw-p 00001000 103:20001 77                     [stack]\n");
        assert_eq!(
            (vma.start, vma.end, vma.offset, vma.inode),
            (0x7ffc_1000, 0x7ffc_3000, 0x1000, 77)
        );
        assert_eq!((vma.device.major(), vma.device.minor()), (0x103, 0x20001));
        assert_eq!(
            vma.perms,
            Perms {
                read: true,
                write: true,
                exec: false,
                shared: false
            }
        );
        assert_eq!(&*vma.name, b"[stack]");
    }

    #[test]
    fn names_keep_spaces_deleted_and_odd_bytes() {
        assert_eq!(
            &*one("1000-2000 r--p 0 08:01 9 /tmp/a b  c (deleted)").name,
            b"/tmp/a b  c (deleted)"
        );
        assert_eq!(
            &*one("1000-2000 r--p 0 08:01 9 /tmp/a\\012b").name,
            b"/tmp/a\\012b"
        );
        let long = format!("1000-2000 r--p 0 08:01 9 /{}", "x".repeat(5000));
        assert_eq!(one(&long).name.len(), 5001);
        let odd = parse(b"1000-2000 r--p 0 08:01 9 /tmp/\xff\xfe").unwrap();
        assert_eq!(&*odd[0].name, b"/tmp/\xff\xfe");
    }

    #[test]
    fn no_name_is_an_empty_name() {
        assert_eq!(&*one("1000-2000 ---p 00000000 00:00 0 ").name, b"");
        assert_eq!(&*one("1000-2000 ---p 00000000 00:00 0").name, b"");
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_line() {
        let error = parse(b"1000-2000 rw-p 0 0:0 0\n2000-1000 rw-p 0 0:0 0\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        for line in [
            "x",
            "1000 rw-p 0 0:0 0",
            "1000-2000 rw 0 0:0 0",
            "1000-2000 rw-p z 0:0 0",
            "1000-2000 rw-p 0 0 0",
            "1000-2000 rw-p 0 1000:0 0",
            "1000-2000 rw-p 0 0:100000 0",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn our_own_maps_are_understood() {
        let vmas = parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        assert!(vmas.iter().any(|vma| &*vma.name == b"[stack]"));
    }
}
