//! What an image says of its target: who it was, and its VMA table.
//!
//! ```text
//! TGET  pid u32 · start time u64 · boot id 16 · comm (u16 + bytes) · exe (u16 + bytes)
//! VMAS  n u32 · 0 u32 · n × { start u64 · end u64 · offset u64 · inode u64 ·
//!                             major u32 · minor u32 · prot u8 · 0 u8 · name_len u16 · 0 u32 · name }
//! ```

use serde::Serialize;

use crate::sink::bytes::{Fields, Short, put_bytes16};

/// Length of a VMA in the table without its name, bytes.
const VMA_LEN: usize = 48;

/// Who the target is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetIdentity {
    /// Process id in our pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`, as 16 bytes.
    pub boot_id: [u8; 16],
    /// `/proc/PID/comm`, any bytes.
    pub comm: Vec<u8>,
    /// Target of the link `/proc/PID/exe`, any bytes.
    pub exe: Vec<u8>,
}

impl TargetIdentity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.comm.len() + self.exe.len());
        out.extend_from_slice(&self.pid.to_le_bytes());
        out.extend_from_slice(&self.start_time.to_le_bytes());
        out.extend_from_slice(&self.boot_id);
        put_bytes16(&mut out, &self.comm);
        put_bytes16(&mut out, &self.exe);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Short> {
        let mut f = Fields::new(bytes);
        let identity = Self {
            pid: f.u32()?,
            start_time: f.u64()?,
            boot_id: f.array()?,
            comm: f.bytes16()?.to_vec(),
            exe: f.bytes16()?.to_vec(),
        };
        if f.is_empty() {
            Ok(identity)
        } else {
            Err(Short)
        }
    }
}

/// Protection and sharing of a VMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Protection {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub execute: bool,
    /// `s` rather than `p`
    pub shared: bool,
}

impl Protection {
    fn bits(self) -> u8 {
        u8::from(self.read)
            | u8::from(self.write) << 1
            | u8::from(self.execute) << 2
            | u8::from(self.shared) << 3
    }

    fn from_bits(bits: u8) -> Self {
        Self {
            read: bits & 1 != 0,
            write: bits & 2 != 0,
            execute: bits & 4 != 0,
            shared: bits & 8 != 0,
        }
    }
}

impl std::fmt::Display for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = |set, letter| if set { letter } else { '-' };
        let kind = if self.shared { 's' } else { 'p' };
        write!(
            f,
            "{}{}{}{kind}",
            letter(self.read, 'r'),
            letter(self.write, 'w'),
            letter(self.execute, 'x')
        )
    }
}

/// One mapping of the target, as `/proc/PID/maps` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmaRecord<'a> {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// Protection.
    pub protection: Protection,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file.
    pub dev_major: u32,
    /// Device of the file.
    pub dev_minor: u32,
    /// Inode of the file, 0 if there is none.
    pub inode: u64,
    /// Path or `[name]`, any bytes; kept as it is.
    pub name: &'a [u8],
}

impl std::fmt::Display for VmaRecord<'_> {
    /// A line of `maps`, without its padding.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:x}-{:x} {} {:08x} {:02x}:{:02x} {}",
            self.start,
            self.end,
            self.protection,
            self.offset,
            self.dev_major,
            self.dev_minor,
            self.inode
        )?;
        if self.name.is_empty() {
            Ok(())
        } else {
            write!(f, " {}", String::from_utf8_lossy(self.name))
        }
    }
}

/// The VMA table, kept in the form it has in the image (48 bytes and the name each):
/// 60,000 mappings then cost 3 MiB, not the 10 MiB of as many records with owned names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmaTable {
    /// The payload of the section without its first 8 bytes.
    records: Vec<u8>,
    n_vmas: u32,
}

impl VmaTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a mapping. Names longer than 65,535 bytes are cut there.
    pub fn push(&mut self, vma: &VmaRecord<'_>) {
        let out = &mut self.records;
        for number in [vma.start, vma.end, vma.offset, vma.inode] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&vma.dev_major.to_le_bytes());
        out.extend_from_slice(&vma.dev_minor.to_le_bytes());
        out.extend_from_slice(&[vma.protection.bits(), 0]);
        let name_len = u16::try_from(vma.name.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&name_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&vma.name[..usize::from(name_len)]);
        self.n_vmas += 1;
    }

    /// Number of mappings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_vmas as usize
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_vmas == 0
    }

    /// The mappings, in order.
    pub fn iter(&self) -> impl Iterator<Item = VmaRecord<'_>> {
        let mut fields = Fields::new(&self.records);
        // Records were encoded by `push` or checked by `decode`: an Err is the end.
        std::iter::from_fn(move || decode_vma(&mut fields).ok())
    }

    /// The two parts of the section's payload.
    pub(super) fn encode(&self) -> ([u8; 8], &[u8]) {
        let mut fixed = [0; 8];
        fixed[..4].copy_from_slice(&self.n_vmas.to_le_bytes());
        (fixed, &self.records)
    }

    /// Takes the payload of a section, checking that its records fill it exactly.
    pub(super) fn decode(mut payload: Vec<u8>) -> Result<Self, Short> {
        let mut f = Fields::new(&payload);
        let (n_vmas, _) = (f.u32()?, f.u32()?);
        for _ in 0..n_vmas {
            decode_vma(&mut f)?;
        }
        if !f.is_empty() {
            return Err(Short);
        }
        payload.drain(..8);
        Ok(Self {
            records: payload,
            n_vmas,
        })
    }
}

fn decode_vma<'a>(f: &mut Fields<'a>) -> Result<VmaRecord<'a>, Short> {
    let mut fixed = Fields::new(f.bytes(VMA_LEN)?);
    let (start, end, offset, inode) = (fixed.u64()?, fixed.u64()?, fixed.u64()?, fixed.u64()?);
    let (dev_major, dev_minor) = (fixed.u32()?, fixed.u32()?);
    let protection = Protection::from_bits(fixed.u8()?);
    fixed.u8()?;
    let name = f.bytes(usize::from(fixed.u16()?))?;
    Ok(VmaRecord {
        start,
        end,
        protection,
        offset,
        dev_major,
        dev_minor,
        inode,
        name,
    })
}

/// What is written before the first chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMeta {
    /// Who the target is.
    pub target: TargetIdentity,
    /// Its mappings.
    pub vmas: VmaTable,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn vma(name: &[u8]) -> VmaRecord<'_> {
        VmaRecord {
            start: 0x5555_0000_0000,
            end: 0x5555_0001_0000,
            protection: Protection {
                read: true,
                write: false,
                execute: true,
                shared: false,
            },
            offset: 0x2000,
            dev_major: 259,
            dev_minor: 70_000,
            inode: 1 << 40,
            name,
        }
    }

    fn payload(table: &VmaTable) -> Vec<u8> {
        let (fixed, records) = table.encode();
        [&fixed[..], records].concat()
    }

    #[test]
    fn names_of_any_bytes_come_back() {
        let long = vec![b'x'; 70_000];
        let names: [&[u8]; 4] = [b"", b"/lib/a b\n\xff (deleted)", b"[anon:\0]", &long];
        let mut table = VmaTable::new();
        names.iter().for_each(|name| table.push(&vma(name)));
        let back = VmaTable::decode(payload(&table)).unwrap();
        assert_eq!(back, table);
        assert_eq!(back.len(), 4);
        let read: Vec<_> = back.iter().collect();
        assert_eq!(read[1], vma(names[1]));
        assert_eq!(read[3].name.len(), 65_535);
        assert_eq!(
            read[0].to_string(),
            "555500000000-555500010000 r-xp 00002000 103:11170 1099511627776"
        );
    }

    #[test]
    fn a_table_that_is_cut_or_too_long_is_refused() {
        let mut table = VmaTable::new();
        table.push(&vma(b"name"));
        let whole = payload(&table);
        for len in 0..whole.len() {
            assert_eq!(VmaTable::decode(whole[..len].to_vec()), Err(Short), "{len}");
        }
        assert_eq!(VmaTable::decode([&whole[..], b"x"].concat()), Err(Short));
        let mut many = whole;
        many[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(VmaTable::decode(many), Err(Short));
    }

    #[test]
    fn sixty_thousand_mappings_take_three_mebibytes() {
        let mut table = VmaTable::new();
        (0..60_000).for_each(|_| table.push(&vma(b"")));
        assert_eq!(payload(&table).len(), 60_000 * 48 + 8);
        assert_eq!(table.iter().count(), 60_000);
    }

    #[test]
    fn identity_comes_back() {
        let identity = TargetIdentity {
            pid: 7,
            start_time: 8,
            boot_id: [9; 16],
            comm: b"a b\n".to_vec(),
            exe: b"/bin/\xff".to_vec(),
        };
        let bytes = identity.encode();
        assert_eq!(TargetIdentity::decode(&bytes), Ok(identity));
        assert!(TargetIdentity::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
