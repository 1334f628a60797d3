//! `/proc/PID/smaps` (proc_pid_smaps(5)): flags and resident size of every mapping.
//!
//! It begins each mapping with its line of `/proc/PID/maps`, so it tells everything.
//! Reading it walks all page tables (some 15 ms per GiB), so it is read before the
//! freeze, and again on the frozen target only if a thread has run since: mappings and
//! flags may be others then.

use std::io::{self, BufRead};

use super::vma::{self, Vma};

/// What smaps says of one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmaDetails {
    /// Resident KiB, as smaps has them. No larger type: there may be as many as 65,530 of these
    /// in a memcr that is to stay small.
    pub rss_kib: u32,
    /// Some of it is in swap.
    pub has_swapped: bool,
    /// No page of it is mapped anywhere else.
    pub is_private: bool,
    /// The kernel may back it with transparent huge pages.
    pub thp_eligible: bool,
    /// Its two-letter flags.
    pub flags: VmFlags,
}

impl VmaDetails {
    /// Resident bytes.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        u64::from(self.rss_kib) * 1024
    }

    /// No page of it is known to be in RAM or in swap.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.rss_kib == 0 && !self.has_swapped
    }

    /// No page is shared with anybody. That stays so while its process stands still: to share
    /// pages it would have to fork, and the kernel merges them (KSM) only where it was told that
    /// it may.
    #[must_use]
    pub fn is_unshared(&self) -> bool {
        self.is_private && !self.flags.mergeable
    }
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
    /// `mg`: the kernel may merge its pages with others of the same content (KSM).
    pub mergeable: bool,
}

/// All mappings of one reading, ascending, and what is known of each.
#[derive(Debug, Default)]
pub struct Details {
    vmas: Vec<Vma>,
    details: Vec<VmaDetails>,
}

impl Details {
    /// Reads smaps.
    ///
    /// # Errors
    /// When the file cannot be read, or an entry has no flags (Linux before 3.8, or a
    /// form we do not know), or does not begin as one does: which pages may go cannot be told
    /// then.
    pub fn read(mut smaps: impl BufRead) -> io::Result<Self> {
        let mut entries = Entries::default();
        let mut line = Vec::new();
        for index in 0.. {
            if smaps.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            entries.take(index, line.strip_suffix(b"\n").unwrap_or(&line))?;
            line.clear();
        }
        entries.close()?;
        Ok(entries.all)
    }

    /// The mappings, as `/proc/PID/maps` has them.
    #[must_use]
    pub fn vmas(&self) -> &[Vma] {
        &self.vmas
    }

    /// Each mapping with what is known of it.
    pub fn iter(&self) -> impl Iterator<Item = (&Vma, &VmaDetails)> {
        self.vmas.iter().zip(&self.details)
    }
}

/// The entries read so far, and the one that is being read.
#[derive(Default)]
struct Entries {
    all: Details,
    current: Option<Vma>,
    details: VmaDetails,
    /// Resident KiB that are mapped nowhere else.
    private_kib: u32,
    has_flags: bool,
}

impl Entries {
    fn take(&mut self, index: usize, line: &[u8]) -> io::Result<()> {
        // Fields begin with a capital, entries with an address in small hex digits.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            self.field(line);
            return Ok(());
        }
        self.close()?;
        // Passed over, its fields would be taken for those of the mapping before it.
        let vma = vma::parse_line(line).ok_or_else(|| {
            let error = vma::not_understood("smaps", index, line);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        self.current = Some(vma);
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let (mut details, has_flags) = (
            std::mem::take(&mut self.details),
            std::mem::take(&mut self.has_flags),
        );
        let private_kib = std::mem::take(&mut self.private_kib);
        details.is_private = private_kib == details.rss_kib && private_kib < u32::MAX;
        match self.current.take() {
            Some(Vma { start, end, .. }) if !has_flags => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no VmFlags for {start:#x}-{end:#x}"),
            )),
            Some(vma) => {
                self.all.vmas.push(vma);
                self.all.details.push(details);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn field(&mut self, line: &[u8]) {
        // Of some twenty fields few are wanted; the others are not even looked at.
        let value = |name: &[u8]| str::from_utf8(line.strip_prefix(name)?).ok();
        if let Some(value) = value(b"Rss:") {
            self.details.rss_kib = kib(value);
        } else if let Some(value) = value(b"Private_Clean:").or_else(|| value(b"Private_Dirty:")) {
            self.private_kib = self.private_kib.saturating_add(kib(value));
        } else if let Some(value) = value(b"Swap:") {
            self.details.has_swapped = kib(value) > 0;
        } else if let Some(value) = value(b"THPeligible:") {
            self.details.thp_eligible = value.trim() == "1";
        } else if let Some(value) = value(b"VmFlags:") {
            self.details.flags = VmFlags::parse(value);
            self.has_flags = true;
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
                "mg" => flags.mergeable = true,
                _ => {}
            }
        }
        flags
    }
}

/// As many as fit: of 4 TiB and more it is told wrong how much there is, and not known whether
/// anybody shares it.
fn kib(value: &str) -> u32 {
    let text = value.split_whitespace().next();
    let kib = text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    u32::try_from(kib).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "\
1000-3000 rw-p 00000000 00:00 0                          [anon:Odd: name]
Size:                  8 kB
Rss:                   8 kB
Shared_Clean:          4 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
THPeligible:           1
VmFlags: rd wr mr mw me lo ac dd sd
5000-6000 r--s 00000000 08:01 12                         /a b
Rss:                  12 kB
Private_Clean:         8 kB
Private_Dirty:         4 kB
THPeligible:           0
VmFlags: rd sh mr io
7000-8000 rw-p 00000000 00:00 0
Rss:                   4 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
Swap:                  0 kB
SwapPss:               4 kB
VmFlags: rd wr mg
9000-a000 rw-p 00000000 00:00 0
Rss:                   0 kB
Swap:                  4 kB
VmFlags: rd wr
b000-c000 ---p 00000000 00:00 0
Rss:                   0 kB
Swap:                  0 kB
VmFlags: mr mw
";

    #[test]
    fn sizes_and_flags_are_read_per_mapping() {
        let details = Details::read(TEXT.as_bytes()).unwrap();
        let all: Vec<_> = details.iter().collect();
        let [(vma, first), (_, second), (_, third), ..] = all[..] else {
            panic!("{details:?}");
        };
        assert_eq!((vma.start, vma.end), (0x1000, 0x3000));
        assert_eq!(&*vma.name, b"[anon:Odd: name]");
        assert_eq!((first.rss_bytes(), first.thp_eligible), (8192, true));
        assert!(first.flags.locked && first.flags.dont_dump && !first.flags.special);
        assert!(second.flags.special);
        let private = [first, second, third].map(|details| details.is_private);
        assert_eq!(private, [false, true, true]);
        let unshared = [first, second, third].map(VmaDetails::is_unshared);
        assert_eq!(unshared, [false, true, false]);
        let absent: Vec<_> = all.iter().map(|(_, it)| it.is_absent()).collect();
        assert_eq!(absent, [false, false, false, false, true]);
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

    #[test]
    fn fields_of_an_unknown_mapping_are_not_those_of_the_one_before() {
        let text = TEXT.replace("5000-6000 r--s", "5000-6000 r--s?");
        let error = Details::read(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 10 of /proc/PID/smaps"), "{error}");
    }
}
