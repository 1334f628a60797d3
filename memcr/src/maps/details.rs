//! `/proc/PID/smaps` (proc_pid_smaps(5)): flags and resident size of every mapping.
//!
//! Reading it walks all page tables (some 15 ms per GiB), so it is read before the
//! freeze, and again on the frozen target only if a thread has run since: the flags may
//! be others then, which nothing else tells. [`Details::of`] answers only for a mapping
//! that still has the same bounds.

use std::collections::HashMap;
use std::io::{self, BufRead};

use super::vma::{self, Vma};

/// What smaps says of one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmaDetails {
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Resident bytes that have no file behind them.
    pub anonymous_bytes: u64,
    /// The kernel may back it with transparent huge pages.
    pub thp_eligible: bool,
    /// Its two-letter flags.
    pub flags: VmFlags,
}

/// The flags that decide something here, out of `VmFlags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)] // a set of flags, as the kernel has it
pub struct VmFlags {
    /// `lo`: pages are locked in memory.
    pub locked: bool,
    /// `io`, `pf`, `mm`: device memory, page frames without page structures, or a mix.
    pub special: bool,
    /// `ht`: huge TLB pages.
    pub hugetlb: bool,
    /// `dd`: not to be in core dumps.
    pub dont_dump: bool,
    /// `um`, `uw`, `ui`: registered with a userfaultfd of the target's own.
    pub userfault: bool,
    /// `ss`: a shadow stack.
    pub shadow_stack: bool,
    /// `dp`: droppable, the kernel itself may take the pages away.
    pub droppable: bool,
}

/// All mappings of one reading.
#[derive(Debug, Default)]
pub struct Details(HashMap<(u64, u64), VmaDetails>);

impl Details {
    /// Reads smaps.
    ///
    /// # Errors
    /// When the file cannot be read, or an entry has no flags (Linux before 3.8, or a
    /// form we do not know): which pages may go cannot be told then.
    pub fn read(mut smaps: impl BufRead) -> io::Result<Self> {
        let mut entries = Entries::default();
        let mut line = Vec::new();
        while smaps.read_until(b'\n', &mut line)? != 0 {
            entries.take(line.strip_suffix(b"\n").unwrap_or(&line))?;
            line.clear();
        }
        entries.close()?;
        Ok(Self(entries.all))
    }

    /// What is known of `vma`, if it has the bounds it had when smaps was read.
    #[must_use]
    pub fn of(&self, vma: &Vma) -> Option<VmaDetails> {
        self.0.get(&(vma.start, vma.end)).copied()
    }

    /// Anonymous resident bytes of all mappings.
    #[must_use]
    pub fn anonymous_bytes(&self) -> u64 {
        self.0.values().map(|details| details.anonymous_bytes).sum()
    }
}

/// The entries read so far, and the one that is being read.
#[derive(Default)]
struct Entries {
    all: HashMap<(u64, u64), VmaDetails>,
    current: Option<(u64, u64)>,
    details: VmaDetails,
    has_flags: bool,
}

impl Entries {
    fn take(&mut self, line: &[u8]) -> io::Result<()> {
        // Fields begin with a capital, entries with an address in small hex digits.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            self.field(line);
        } else if let Some(vma) = vma::parse_line(line) {
            self.close()?;
            self.current = Some((vma.start, vma.end));
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let (details, has_flags) = (
            std::mem::take(&mut self.details),
            std::mem::take(&mut self.has_flags),
        );
        match self.current.take() {
            Some((start, end)) if !has_flags => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no VmFlags for {start:#x}-{end:#x}"),
            )),
            Some(bounds) => {
                self.all.insert(bounds, details);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn field(&mut self, line: &[u8]) {
        let Ok(text) = std::str::from_utf8(line) else {
            return;
        };
        let Some((name, value)) = text.split_once(':') else {
            return;
        };
        match name {
            "Rss" => self.details.rss_bytes = kib(value),
            "Anonymous" => self.details.anonymous_bytes = kib(value),
            "THPeligible" => self.details.thp_eligible = value.trim() == "1",
            "VmFlags" => {
                self.details.flags = VmFlags::parse(value);
                self.has_flags = true;
            }
            _ => {}
        }
    }
}

impl VmFlags {
    fn parse(text: &str) -> Self {
        let mut flags = Self::default();
        for word in text.split_whitespace() {
            match word {
                "lo" => flags.locked = true,
                "io" | "pf" | "mm" => flags.special = true,
                "ht" => flags.hugetlb = true,
                "dd" => flags.dont_dump = true,
                "um" | "uw" | "ui" => flags.userfault = true,
                "ss" => flags.shadow_stack = true,
                "dp" => flags.droppable = true,
                _ => {}
            }
        }
        flags
    }
}

fn kib(value: &str) -> u64 {
    value
        .split_whitespace()
        .next()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "\
1000-3000 rw-p 00000000 00:00 0                          [anon:Odd: name]
Size:                  8 kB
Rss:                   8 kB
Anonymous:             4 kB
THPeligible:           1
VmFlags: rd wr mr mw me lo ac dd sd
5000-6000 r--s 00000000 08:01 12                         /a b
Rss:                   0 kB
THPeligible:           0
VmFlags: rd sh mr io
";

    fn vma(start: u64, end: u64) -> Vma {
        vma::parse_line(format!("{start:x}-{end:x} rw-p 0 0:0 0").as_bytes()).unwrap()
    }

    #[test]
    fn sizes_and_flags_are_read_per_mapping() {
        let details = Details::read(TEXT.as_bytes()).unwrap();
        let first = details.of(&vma(0x1000, 0x3000)).unwrap();
        assert_eq!(
            (first.rss_bytes, first.anonymous_bytes, first.thp_eligible),
            (8192, 4096, true)
        );
        assert!(first.flags.locked && first.flags.dont_dump && !first.flags.special);
        assert!(details.of(&vma(0x5000, 0x6000)).unwrap().flags.special);
        assert_eq!(details.anonymous_bytes(), 4096);
    }

    #[test]
    fn a_mapping_with_other_bounds_is_not_known() {
        let details = Details::read(TEXT.as_bytes()).unwrap();
        assert_eq!(details.of(&vma(0x1000, 0x2000)), None);
    }

    #[test]
    fn an_entry_without_flags_is_an_error() {
        let text = "1000-3000 rw-p 00000000 00:00 0\nRss: 8 kB\n";
        assert!(
            Details::read(text.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("0x1000-0x3000")
        );
    }
}
