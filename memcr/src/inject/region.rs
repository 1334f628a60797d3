//! The parasite's mapping in the target: code (RX), then data (RW). Never both writable
//! and executable at once, so that W^X policies have nothing to object to: it is mapped
//! as code, and the data part then becomes writable and no longer executable.

use std::io;

use memcr_parasite::{DATA, DATA_LEN, ENTRIES, ENTRY_LEN, Entry, FLAGS, HOST, REGS};

use super::saved::{MARKED, NOT_MADE, Saved};
use crate::maps::vma::Vma;
use crate::sys::arch::{BLOB, nr};
use crate::sys::proc_mem::ProcMem;

/// Calls in one table: 64 KiB of it. A target fragmented into 100,000 runs then takes
/// a hundred stops, and its table no memory worth speaking of.
const CAPACITY: usize = 1024;
/// Entries that the host puts behind those asked for: the stop, the nudge, the mask, the
/// dispatch.
pub(super) const N_LAST: usize = 4;
/// Entries of the caller in one table.
pub(super) const BATCH: usize = CAPACITY - N_LAST;
/// Offset of the buffer for arguments in memory; it ends where the entries begin.
const SCRATCH: u64 = HOST + 0x200;

/// Where the parasite lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parasite(u64);

impl Parasite {
    /// The one whose mapping begins at `address`.
    #[must_use]
    pub fn at(address: u64) -> Self {
        Self(address)
    }

    /// First byte of the mapping.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0
    }

    /// Length of the whole mapping, bytes.
    pub(super) const LEN: u64 = DATA + DATA_LEN;

    /// The part that is data: address and length.
    pub(super) fn data_part(self) -> (u64, u64) {
        (self.data(), DATA_LEN)
    }

    /// True when `pc` is an address in the code.
    #[must_use]
    pub fn is_in(self, pc: u64) -> bool {
        (self.0..self.0 + DATA).contains(&pc)
    }

    /// Address of the first entry.
    pub(super) fn entries(self) -> u64 {
        self.data() + ENTRIES
    }

    /// Address of entry `index`.
    pub(super) fn entry(self, index: usize) -> u64 {
        self.entries() + (index * ENTRY_LEN) as u64
    }

    /// Finds the one that a memcr has left in a target: a mapping of its lengths in which
    /// registers are saved.
    #[must_use]
    pub fn find(vmas: &[Vma], memory: &ProcMem) -> Option<Self> {
        let is_ours = |pair: &&[Vma]| {
            let [code, data] = pair else { return false };
            // The kernel may have merged each with memory of the target's beside it.
            (code.len_bytes() >= DATA && data.len_bytes() >= DATA_LEN)
                && code.end == data.start
                && (code.perms.exec, data.perms.write) == (true, true)
        };
        let candidates = vmas.windows(2).filter(is_ours);
        let mut candidates = candidates.map(|pair| Self(pair[0].end - DATA));
        candidates.find(|parasite| parasite.saved(memory).is_ok())
    }

    /// Address of memory for arguments, at least 3 KiB.
    #[must_use]
    pub fn scratch(self) -> u64 {
        self.data() + SCRATCH
    }

    /// Address of the saved signal mask.
    pub(super) fn mask(self) -> u64 {
        self.data() + HOST + Saved::MASK_AT
    }

    /// Writes the code and the way back: from here on an orphaned thread cures itself.
    pub(super) fn install(self, memory: &ProcMem, saved: &Saved) -> io::Result<()> {
        // Code that is not writable is written the way a debugger does it.
        memory.write(self.0, BLOB)?;
        let (words, flags) = saved.way_back(memory);
        memory.write(self.data() + REGS, &bytes_of(&words))?;
        memory.write(self.data() + FLAGS, &flags.to_ne_bytes())?;
        memory.write(self.data() + HOST, &bytes_of(&saved.to_words()))
    }

    /// Reads what `install` wrote: another memcr puts it back.
    pub(super) fn saved(self, memory: &ProcMem) -> io::Result<Saved> {
        let mut bytes = vec![0; Saved::N_WORDS * 8];
        memory.read(self.data() + HOST, &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        Saved::from_words(&words)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no registers were saved"))
    }

    /// Whether the thread whose state is saved is borrowed: nobody has put it back.
    pub(super) fn is_lent(self, memory: &ProcMem) -> io::Result<bool> {
        Ok(memory.read_u64(self.data() + HOST + Saved::LENT_AT)? != 0)
    }

    /// Whether it may still be at the calls of a table: it is borrowed, and has not made
    /// the call by which it takes its own signal mask back.
    pub(super) fn is_at_work(self, memory: &ProcMem) -> io::Result<bool> {
        if !self.is_lent(memory)? {
            return Ok(false);
        }
        let mut table = vec![Entry::default(); CAPACITY];
        self.unload(memory, &mut table)?;
        let is_last =
            |entry: &&Entry| entry.nr == nr::RT_SIGPROCMASK && entry.args[1] == self.mask();
        let last = table.iter().find(is_last);
        Ok(last.is_none_or(|last| last.args[4] != MARKED || last.ret == NOT_MADE))
    }

    /// Says that it is not any more.
    pub(super) fn set_returned(self, memory: &ProcMem) -> io::Result<()> {
        memory.write(self.data() + HOST + Saved::LENT_AT, &[0; 8])
    }

    /// Writes `entries` (at most [`CAPACITY`]).
    pub(super) fn load(self, memory: &ProcMem, entries: &[Entry]) -> io::Result<()> {
        let words = entries.iter().flat_map(|entry| {
            let [a, b, c, d, e, f] = entry.args;
            [entry.nr, a, b, c, d, e, f, entry.ret.cast_unsigned()]
        });
        memory.write(self.entries(), &bytes_of(&words.collect::<Vec<_>>()))
    }

    /// Reads them back, with the answers of those that were made.
    pub(super) fn unload(self, memory: &ProcMem, entries: &mut [Entry]) -> io::Result<()> {
        let mut bytes = vec![0; entries.len() * ENTRY_LEN];
        memory.read(self.entries(), &mut bytes)?;
        let words = bytes.as_chunks::<8>().0;
        let words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let words: Vec<u64> = words.collect();
        for (entry, words) in entries.iter_mut().zip(words.as_chunks().0) {
            let [nr, a, b, c, d, e, f, ret] = *words;
            *entry = Entry {
                nr,
                args: [a, b, c, d, e, f],
                ret: ret.cast_signed(),
            };
        }
        Ok(())
    }

    fn data(self) -> u64 {
        self.0 + DATA
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::maps::vma;

    /// A line of maps(5) with these bounds.
    fn line(start: u64, end: u64, perms: &str) -> String {
        format!("{start:x}-{end:x} {perms} 00000000 00:00 0\n")
    }

    #[test]
    fn it_is_found_where_the_kernel_has_merged_it_with_its_neighbours() {
        // Our own memory stands for that of a target.
        let mut target = vec![0u8; (2 * DATA + DATA_LEN) as usize];
        let base = (target.as_ptr() as u64).next_multiple_of(DATA);
        let at = (base - target.as_ptr() as u64 + DATA + HOST) as usize;
        let words = bytes_of(&Saved::some().to_words());
        target[at..at + words.len()].copy_from_slice(&words);
        let memory = ProcMem::open(std::process::id().cast_signed()).unwrap();
        let find = |before: u64, behind: u64, len: u64| {
            let (code, data) = (base - before, base + DATA);
            let maps = line(code, data, "r-xp") + &line(data, data + len + behind, "rw-p");
            Parasite::find(&vma::parse(maps.as_bytes()).unwrap(), &memory)
        };
        let found = Some(Parasite::at(base));
        assert_eq!(find(0, 0, DATA_LEN), found);
        assert_eq!(
            find(0, 0x3000, DATA_LEN),
            found,
            "memory of the target's behind it"
        );
        assert_eq!(
            find(0x2000, 0, DATA_LEN),
            found,
            "code of the target's before it"
        );
        assert_eq!(find(0, 0, DATA_LEN - 0x1000), None);
    }
}
