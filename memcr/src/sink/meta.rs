//! What an image says of its target: who it was, and its VMA table.

use serde::Serialize;

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
    /// Path or `[name]`, any bytes, as in `maps` (escapes undone or not: your choice,
    /// it is kept as it is).
    pub name: &'a [u8],
}

/// The VMA table, kept in the form it has in the image (48 bytes and the name each):
/// 60,000 mappings then cost 3 MiB, not the 10 MiB of as many records with owned names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmaTable {
    bytes: Vec<u8>,
    n_vmas: u32,
}

impl VmaTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a mapping. Names longer than 65,535 bytes are cut there.
    pub fn push(&mut self, _vma: &VmaRecord<'_>) {
        unimplemented!()
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
        std::iter::empty()
    }
}

/// What is written before the first chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMeta {
    /// Who the target is.
    pub target: TargetIdentity,
    /// Its mappings.
    pub vmas: VmaTable,
}
