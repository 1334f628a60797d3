//! The parasite's two mappings in the target: code (RX) and table (RW). Never both
//! writable and executable at once, so that W^X policies have nothing to object to.

use std::io;

use memcr_parasite::{ENTRY_LEN, Entry};

use crate::sys::arch::BLOB;
use crate::sys::page_size;
use crate::sys::proc_mem::ProcMem;

/// Calls in one table: 64 KiB of it. A target fragmented into 100,000 runs then takes
/// a hundred stops, and its table no memory worth speaking of.
pub(super) const CAPACITY: usize = 1024;

/// Where the parasite lies. An address below 0 is an error of mmap(2).
#[derive(Debug)]
pub(super) struct Parasite {
    code: i64,
    table: i64,
}

impl Parasite {
    pub(super) fn new(code: i64, table: i64) -> Self {
        Self { code, table }
    }

    pub(super) fn code_len() -> u64 {
        (BLOB.len() as u64).next_multiple_of(page_size())
    }

    pub(super) fn table_len() -> u64 {
        ((CAPACITY * ENTRY_LEN) as u64).next_multiple_of(page_size())
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.code >= 0 && self.table >= 0
    }

    pub(super) fn code(&self) -> u64 {
        self.code.cast_unsigned()
    }

    pub(super) fn table(&self) -> u64 {
        self.table.cast_unsigned()
    }

    /// The mappings that exist, for munmap.
    pub(super) fn mappings(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        [
            (self.code, Self::code_len()),
            (self.table, Self::table_len()),
        ]
        .into_iter()
        .filter(|(addr, _)| *addr >= 0)
        .map(|(addr, len)| (addr.cast_unsigned(), len))
    }

    /// Writes the code.
    pub(super) fn install(&self, memory: &ProcMem) -> io::Result<()> {
        memory.write(self.code(), BLOB)
    }

    /// Writes `entries` (at most [`CAPACITY`]) to the table.
    pub(super) fn load(&self, memory: &ProcMem, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY_LEN);
        for entry in entries {
            bytes.extend_from_slice(&entry.nr.to_ne_bytes());
            entry
                .args
                .iter()
                .for_each(|arg| bytes.extend_from_slice(&arg.to_ne_bytes()));
            bytes.extend_from_slice(&entry.ret.to_ne_bytes());
        }
        memory.write(self.table(), &bytes)
    }

    /// Reads the answers back.
    pub(super) fn unload(&self, memory: &ProcMem, entries: &mut [Entry]) -> io::Result<()> {
        let mut bytes = vec![0; entries.len() * ENTRY_LEN];
        memory.read(self.table(), &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        for (entry, words) in entries.iter_mut().zip(words.chunks_exact(ENTRY_LEN / 8)) {
            entry.ret = i64::from_ne_bytes(words[ENTRY_LEN / 8 - 1]);
        }
        Ok(())
    }
}
