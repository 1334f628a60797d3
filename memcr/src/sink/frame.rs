//! A chunk in the image: its head, its runs, its entry in the index.
//!
//! ```text
//! 0      4      6      7  8       16        24       28       32     34   36          40   44     48
//! │ CHNK │flags │class │0 │ index │ address │raw_len │ n_runs │ pass │ 0  │ stored_len│ 0  │ CRC  │
//! 48                          48+16·n_runs                    48+16·n_runs+stored_len
//! │ n_runs × {address, n_pages, zero} │ stored_len bytes: the frame │
//!
//! associated data of a stage: image id ‖ bytes 0..36 ‖ runs
//! ```
//!
//! Everything a stage that authenticates must know is in the first 36 bytes; what is
//! behind (the length of the frame, the CRC) is known only when all stages are done.
//! While stage k runs, `pass` holds the bits of the stages before k, on both ways.
//!
//! Example: three pages at 0x1000, the middle one of zeros, one stage, it compressed
//! 8192 to 100 bytes: n_runs 3, raw_len 8192, stored_len 100, the chunk takes
//! 48 + 3·16 + 100 = 196 bytes.

use crate::pages::{ChunkClass, PageRun, RemoteAddr};
use crate::sink::bytes::{Block, Fields, Short};
use crate::sink::layout::{Seed, tag};

/// Length of a chunk's head, bytes.
pub(crate) const CHUNK_HEAD_LEN: usize = 48;
/// How much of the head stages authenticate.
pub(crate) const CHUNK_AAD_LEN: usize = 36;
/// Length of one run, bytes.
pub(crate) const RUN_LEN: usize = 16;
/// Length of one index entry, bytes.
pub(crate) const INDEX_ENTRY_LEN: usize = 40;
/// Length of the fixed part of an index block's payload, bytes.
pub(crate) const INDEX_FIXED_LEN: usize = 16;

/// Where in a head the pass mask is.
const PASS_AT: usize = 32;
const FLAG_LAST: u16 = 1;
const RUN_ZERO: u32 = 1;

/// The head of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    /// No chunk has a higher index.
    pub(crate) last: bool,
    pub(crate) class: ChunkClass,
    pub(crate) index: u64,
    pub(crate) address: u64,
    /// Bytes before the first stage: stored pages only.
    pub(crate) raw_len: u32,
    pub(crate) n_runs: u32,
    /// Bit k: stage k left the frame as it was.
    pub(crate) pass: u16,
    /// Length of the frame, bytes.
    pub(crate) stored_len: u32,
    pub(crate) crc: u32,
}

impl ChunkHead {
    pub(crate) fn encode(&self) -> [u8; CHUNK_HEAD_LEN] {
        Block::<CHUNK_HEAD_LEN>::new()
            .put(&tag::CHUNK)
            .put(&if self.last { FLAG_LAST } else { 0 }.to_le_bytes())
            .put(&[class_bits(self.class), 0])
            .put(&self.index.to_le_bytes())
            .put(&self.address.to_le_bytes())
            .put(&self.raw_len.to_le_bytes())
            .put(&self.n_runs.to_le_bytes())
            .put(&self.pass.to_le_bytes())
            .put(&[0; 2])
            .put(&self.stored_len.to_le_bytes())
            .put(&[0; 4])
            .put(&self.crc.to_le_bytes())
            .end()
    }

    /// Takes a head apart that a CRC has vouched for or will.
    pub(crate) fn decode(bytes: &[u8; CHUNK_HEAD_LEN]) -> Result<Self, String> {
        let short = |Short| String::from("it is too short");
        let mut f = Fields::new(bytes);
        if f.array::<4>().map_err(short)? != tag::CHUNK {
            return Err("no chunk begins here".into());
        }
        let flags = f.u16().map_err(short)?;
        let class = class_of(f.u8().map_err(short)?);
        let reserved = f.u8().map_err(short)?;
        let Some(class) = class.filter(|_| flags <= FLAG_LAST && reserved == 0) else {
            return Err(format!("flags {flags:#x} or class of its head are unknown"));
        };
        let (index, address) = (f.u64().map_err(short)?, f.u64().map_err(short)?);
        let (raw_len, n_runs) = (f.u32().map_err(short)?, f.u32().map_err(short)?);
        let (pass, _) = (f.u16().map_err(short)?, f.u16().map_err(short)?);
        let (stored_len, _, crc) = (
            f.u32().map_err(short)?,
            f.u32().map_err(short)?,
            f.u32().map_err(short)?,
        );
        Ok(Self {
            last: flags == FLAG_LAST,
            class,
            index,
            address,
            raw_len,
            n_runs,
            pass,
            stored_len,
            crc,
        })
    }

    /// Length of head and runs, bytes.
    pub(crate) fn runs_end(&self) -> usize {
        CHUNK_HEAD_LEN + self.n_runs as usize * RUN_LEN
    }
}

/// The CRC of a whole chunk whose head has 0 for a CRC in its last four bytes.
pub(crate) fn chunk_crc(seed: &Seed, chunk: &[u8]) -> u32 {
    seed.crc(&[&chunk[..CHUNK_HEAD_LEN - 4], &chunk[CHUNK_HEAD_LEN..]])
}

/// Puts a pass mask into bytes that begin as a head does.
pub(crate) fn set_pass(head: &mut [u8], pass: u16) {
    head[PASS_AT..PASS_AT + 2].copy_from_slice(&pass.to_le_bytes());
}

/// Consecutive pages of a chunk: stored ones, or zeros that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRun {
    pub(crate) address: u64,
    pub(crate) n_pages: u32,
    pub(crate) zero: bool,
}

impl FrameRun {
    pub(crate) fn encode(&self) -> [u8; RUN_LEN] {
        Block::<RUN_LEN>::new()
            .put(&self.address.to_le_bytes())
            .put(&self.n_pages.to_le_bytes())
            .put(&if self.zero { RUN_ZERO } else { 0 }.to_le_bytes())
            .end()
    }

    fn decode(bytes: &[u8; RUN_LEN]) -> Result<Self, String> {
        let short = |Short| String::from("it is too short");
        let mut f = Fields::new(bytes);
        let (address, n_pages) = (f.u64().map_err(short)?, f.u32().map_err(short)?);
        match f.u32().map_err(short)? {
            0 => Ok(Self {
                address,
                n_pages,
                zero: false,
            }),
            RUN_ZERO => Ok(Self {
                address,
                n_pages,
                zero: true,
            }),
            flags => Err(format!(
                "flags {flags:#x} of the run at {address:#x} are unknown"
            )),
        }
    }
}

impl FrameRun {
    /// The run in bytes, if it can follow one that ends at `end`.
    fn pages(&self, page_size: u32, end: u64) -> Result<PageRun, String> {
        let Self {
            address, n_pages, ..
        } = *self;
        if n_pages == 0 || address % u64::from(page_size) != 0 || address < end {
            return Err(format!(
                "the run of {n_pages} pages at {address:#x} is empty, askew or out of order"
            ));
        }
        let len_bytes = u64::from(n_pages) * u64::from(page_size);
        match address.checked_add(len_bytes) {
            Some(_) => Ok(PageRun {
                addr: RemoteAddr(address),
                len_bytes,
            }),
            None => Err(format!("the run at {address:#x} wraps around")),
        }
    }
}

/// Checks the runs of a chunk against its head, hands the stored ones to `stored`, and
/// answers the number of zero pages.
pub(crate) fn check_runs(
    head: &ChunkHead,
    bytes: &[u8],
    page_size: u32,
    chunk_len: u32,
    stored: &mut Vec<PageRun>,
) -> Result<u32, String> {
    stored.clear();
    let (runs, rest) = bytes.as_chunks::<RUN_LEN>();
    if runs.len() != head.n_runs as usize || runs.is_empty() || !rest.is_empty() {
        return Err(format!(
            "{} bytes hold no {} runs",
            bytes.len(),
            head.n_runs
        ));
    }
    let (mut raw_len, mut zero_len, mut first, mut end) = (0u64, 0u64, None, 0u64);
    for run in runs {
        let run = FrameRun::decode(run)?;
        let page_run = run.pages(page_size, end)?;
        first.get_or_insert(run.address);
        end = page_run.end().0;
        if run.zero {
            zero_len += page_run.len_bytes;
        } else {
            raw_len += page_run.len_bytes;
            stored.push(page_run);
        }
        if raw_len + zero_len > u64::from(chunk_len) {
            return Err(format!(
                "its runs are longer than a chunk of {chunk_len} bytes"
            ));
        }
    }
    let first = first.unwrap_or(0);
    if raw_len != u64::from(head.raw_len) || first != head.address {
        return Err(format!(
            "its runs begin at {first:#x} and hold {raw_len} bytes, its head says {:#x} and {}",
            head.address, head.raw_len
        ));
    }
    if zero_len > 0 && !head.class.elide_zero {
        return Err("it leaves out pages of zeros that would not read as zeros".into());
    }
    // Both numbers are at most a chunk's pages.
    Ok((zero_len / u64::from(page_size)) as u32)
}

/// Where a chunk is, and what its head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) offset: u64,
    pub(crate) index: u64,
    pub(crate) address: u64,
    /// Length of head, runs and frame, bytes.
    pub(crate) len: u32,
    pub(crate) raw_len: u32,
    pub(crate) crc: u32,
    pub(crate) n_zero_pages: u16,
    pub(crate) class: ChunkClass,
    pub(crate) last: bool,
}

impl IndexEntry {
    pub(crate) fn encode(&self) -> [u8; INDEX_ENTRY_LEN] {
        Block::<INDEX_ENTRY_LEN>::new()
            .put(&self.offset.to_le_bytes())
            .put(&self.index.to_le_bytes())
            .put(&self.address.to_le_bytes())
            .put(&self.len.to_le_bytes())
            .put(&self.raw_len.to_le_bytes())
            .put(&self.crc.to_le_bytes())
            .put(&self.n_zero_pages.to_le_bytes())
            .put(&[class_bits(self.class), u8::from(self.last)])
            .end()
    }

    pub(crate) fn decode(bytes: &[u8; INDEX_ENTRY_LEN]) -> Option<Self> {
        let mut f = Fields::new(bytes);
        Some(Self {
            offset: f.u64().ok()?,
            index: f.u64().ok()?,
            address: f.u64().ok()?,
            len: f.u32().ok()?,
            raw_len: f.u32().ok()?,
            crc: f.u32().ok()?,
            n_zero_pages: f.u16().ok()?,
            class: class_of(f.u8().ok()?)?,
            last: match f.u8().ok()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }

    /// Whether the chunk that was read is the one the index speaks of.
    pub(crate) fn agrees(&self, head: &ChunkHead, n_zero_pages: u32) -> bool {
        let same_words = (
            self.index,
            self.address,
            self.raw_len,
            self.crc,
            self.class,
            self.last,
        ) == (
            head.index,
            head.address,
            head.raw_len,
            head.crc,
            head.class,
            head.last,
        );
        let len = head.runs_end() as u64 + u64::from(head.stored_len);
        same_words && u64::from(self.len) == len && u32::from(self.n_zero_pages) == n_zero_pages
    }
}

fn class_bits(class: ChunkClass) -> u8 {
    u8::from(class.through_proc_mem) | u8::from(class.elide_zero) << 1 | u8::from(class.huge) << 2
}

fn class_of(bits: u8) -> Option<ChunkClass> {
    (bits < 8).then_some(ChunkClass {
        through_proc_mem: bits & 1 != 0,
        elide_zero: bits & 2 != 0,
        huge: bits & 4 != 0,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const CLASS: ChunkClass = ChunkClass {
        through_proc_mem: false,
        elide_zero: true,
        huge: true,
    };

    fn head() -> ChunkHead {
        ChunkHead {
            last: true,
            class: CLASS,
            index: 5,
            address: 0x1000,
            raw_len: 8192,
            n_runs: 3,
            pass: 0b101,
            stored_len: 100,
            crc: 77,
        }
    }

    fn runs(list: &[(u64, u32, bool)]) -> Vec<u8> {
        list.iter()
            .flat_map(|&(address, n_pages, zero)| {
                FrameRun {
                    address,
                    n_pages,
                    zero,
                }
                .encode()
            })
            .collect()
    }

    #[test]
    fn head_and_entry_come_back() {
        assert_eq!(ChunkHead::decode(&head().encode()).unwrap(), head());
        let entry = IndexEntry {
            offset: 1 << 40,
            index: 5,
            address: 0x1000,
            len: 48 + 48 + 100,
            raw_len: 8192,
            crc: 77,
            n_zero_pages: 1,
            class: CLASS,
            last: true,
        };
        assert_eq!(IndexEntry::decode(&entry.encode()), Some(entry));
        assert!(entry.agrees(&head(), 1));
        assert!(!entry.agrees(&head(), 2));
        assert!(!entry.agrees(&ChunkHead { index: 6, ..head() }, 1));
    }

    #[test]
    fn good_runs_are_taken() {
        let bytes = runs(&[(0x1000, 1, false), (0x2000, 1, true), (0x3000, 1, false)]);
        let mut stored = Vec::new();
        assert_eq!(check_runs(&head(), &bytes, 4096, 65536, &mut stored), Ok(1));
        assert_eq!(stored.len(), 2);
        assert_eq!(
            stored[1],
            PageRun {
                addr: RemoteAddr(0x3000),
                len_bytes: 4096
            }
        );
    }

    #[test]
    fn bad_runs_are_refused_with_the_reason() {
        type Runs<'a> = &'a [(u64, u32, bool)];
        let cases: [(Runs<'_>, &str); 7] = [
            (&[(0x1000, 2, false), (0x3000, 1, true)], "hold no"),
            (
                &[(0x1000, 1, false), (0x1000, 1, true), (0x3000, 1, false)],
                "out of order",
            ),
            (
                &[(0x1000, 1, false), (0x2010, 1, true), (0x3000, 1, false)],
                "askew",
            ),
            (
                &[(0x1000, 1, false), (0x2000, 0, true), (0x3000, 1, false)],
                "empty",
            ),
            (
                &[(0x1000, 1, false), (0x2000, 90, true), (0x90000, 1, false)],
                "longer than a chunk",
            ),
            (
                &[(0x1000, 1, false), (0x2000, 1, true), (0x3000, 2, false)],
                "its head says",
            ),
            (
                &[(0x2000, 1, false), (0x3000, 1, true), (0x4000, 1, false)],
                "its head says",
            ),
        ];
        for (list, reason) in cases {
            let error = check_runs(&head(), &runs(list), 4096, 65536, &mut Vec::new()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let wrapping = runs(&[
            (0x1000, 1, false),
            (0x2000, 1, false),
            (u64::MAX - 4095, 1, true),
        ]);
        assert!(
            check_runs(&head(), &wrapping, 4096, 65536, &mut Vec::new())
                .unwrap_err()
                .contains("wraps")
        );
        let file = ChunkHead {
            class: ChunkClass {
                elide_zero: false,
                ..CLASS
            },
            ..head()
        };
        let bytes = runs(&[(0x1000, 1, false), (0x2000, 1, true), (0x3000, 1, false)]);
        assert!(check_runs(&file, &bytes, 4096, 65536, &mut Vec::new()).is_err());
    }
}
