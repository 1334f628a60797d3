//! The fixed parts of an image. `docs/image-format.md` is the normative text.
//!
//! ```text
//! 0        ┌────────────────────────────────┐
//!          │ header                96 bytes │ Header
//! 96       ├────────────────────────────────┤
//!          │ PIPE  the pipeline             │ section = 16 bytes of head + payload
//!          │ TGET  who the target was       │
//!          │ VMAS  its mappings             │
//! body ──▶ ├────────────────────────────────┤
//!          │ CHNK CHNK CHNK … CHNK          │ in any order, each 48 bytes + runs + frame
//!          │ INDX  where those chunks are   │ one block per 1024 chunks
//!          │ CHNK … CHNK  INDX              │
//! trailers ├────────────────────────────────┤
//!          │ TRLR  last words of the stages │
//!          ├────────────────────────────────┤
//!          │ footer               128 bytes │ Footer: totals, offsets, digest, end mark
//! length   └────────────────────────────────┘
//! ```
//!
//! Every part has a CRC-32 that begins with the image's random identity, so that a part
//! of another image, or a stale one in a reused file, is as wrong as a flipped bit. The
//! parts leave no gap: what no CRC covers does not exist.
//!
//! The index lies in blocks between the chunks, not in one piece at the end, so that a
//! writer needs memory for 1024 entries and not for all of a target's.

use crc32fast::Hasher;

use crate::sink::bytes::{Block, Fields, Short};

/// First bytes. Not text, and broken by every conversion of line ends.
pub(crate) const MAGIC: [u8; 8] = *b"\x89MEMCR\r\n";
/// Last bytes of a complete image.
pub(crate) const END_MAGIC: [u8; 8] = *b"MEMCREND";
/// Format version this program writes, and the newest it reads.
pub(crate) const VERSION: (u16, u16) = (1, 0);
/// Incompatible features this program understands: none are defined yet.
pub(crate) const KNOWN_INCOMPATIBLE: u64 = 0;

/// Length of the header, bytes.
pub(crate) const HEADER_LEN: usize = 96;
/// Length of a section's head, bytes.
pub(crate) const SECTION_HEAD_LEN: usize = 16;
/// Length of the footer, bytes.
pub(crate) const FOOTER_LEN: usize = 128;

/// Limits that are checked before a length is believed.
pub(crate) mod limit {
    /// Shortest and longest chunk, bytes.
    pub(crate) const CHUNK_LEN: std::ops::RangeInclusive<u32> = 4096..=16 << 20;
    /// Smallest and largest page, bytes.
    pub(crate) const PAGE_SIZE: std::ops::RangeInclusive<u32> = 4096..=1 << 20;
    /// Longest pipeline description, bytes.
    pub(crate) const PIPE_LEN: u64 = 1 << 20;
    /// Longest target identity, bytes.
    pub(crate) const TARGET_LEN: u64 = 256 << 10;
    /// Longest VMA table, bytes: twice the million mappings that distributions allow, each with
    /// a name. It is read as a whole.
    pub(crate) const VMAS_LEN: u64 = 256 << 20;
    /// Longest trailers, bytes: 16 stages of 4096 with their lengths.
    pub(crate) const TRAILERS_LEN: u64 = 128 << 10;
    /// Most stages of a pipeline, its sink included.
    pub(crate) const STAGES: usize = 16;
    /// Longest frame, bytes: a chunk of 16 MiB that every stage made a little longer.
    pub(crate) const FRAME_LEN: u32 = 64 << 20;
    /// Entries of an index block.
    pub(crate) const INDEX_ENTRIES: u32 = 1024;
}

/// The four bytes a part begins with.
pub(crate) mod tag {
    pub(crate) const PIPE: [u8; 4] = *b"PIPE";
    pub(crate) const TARGET: [u8; 4] = *b"TGET";
    pub(crate) const VMAS: [u8; 4] = *b"VMAS";
    pub(crate) const CHUNK: [u8; 4] = *b"CHNK";
    pub(crate) const INDEX: [u8; 4] = *b"INDX";
    pub(crate) const TRAILERS: [u8; 4] = *b"TRLR";
    pub(crate) const FOOTER: [u8; 4] = *b"FOOT";
}

/// A CRC-32 that begins with the identity of an image.
#[derive(Clone)]
pub(crate) struct Seed(Hasher);

impl Seed {
    pub(crate) fn new(image_id: &[u8; 16]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(image_id);
        Self(hasher)
    }

    /// A digest to go on with.
    pub(crate) fn hasher(&self) -> Hasher {
        self.0.clone()
    }

    /// The CRC of the identity and of `parts`, one behind the other.
    pub(crate) fn crc(&self, parts: &[&[u8]]) -> u32 {
        let mut hasher = self.0.clone();
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// The first part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: (u16, u16),
    /// Bits a reader must know.
    pub(crate) incompatible: u64,
    /// Bits a reader may ignore.
    pub(crate) compatible: u64,
    pub(crate) image_id: [u8; 16],
    /// ELF `e_machine` of the target.
    pub(crate) arch: u16,
    pub(crate) page_size: u32,
    pub(crate) chunk_len: u32,
    /// Unix time, seconds.
    pub(crate) created: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = Block::<HEADER_LEN>::new()
            .put(&MAGIC)
            .put(&self.version.0.to_le_bytes())
            .put(&self.version.1.to_le_bytes())
            .put(&(HEADER_LEN as u32).to_le_bytes())
            .put(&self.incompatible.to_le_bytes())
            .put(&self.compatible.to_le_bytes())
            .put(&self.image_id)
            .put(&self.arch.to_le_bytes())
            .put(&[0; 2])
            .put(&self.page_size.to_le_bytes())
            .put(&self.chunk_len.to_le_bytes())
            .put(&[0; 4])
            .put(&self.created.to_le_bytes())
            .put(&[0; 24])
            .end();
        let crc = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Takes the fields apart. Whether they make sense is [`Header::check`]'s to say.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<(Self, u32), Short> {
        let mut f = Fields::new(&bytes[MAGIC.len()..]);
        let version = (f.u16()?, f.u16()?);
        f.u32()?;
        let (incompatible, compatible) = (f.u64()?, f.u64()?);
        let image_id = f.array()?;
        let arch = f.u16()?;
        f.u16()?;
        let (page_size, chunk_len) = (f.u32()?, f.u32()?);
        f.u32()?;
        let created = f.u64()?;
        f.bytes(20)?;
        let crc = f.u32()?;
        Ok((
            Self {
                version,
                incompatible,
                compatible,
                image_id,
                arch,
                page_size,
                chunk_len,
                created,
            },
            crc,
        ))
    }

    /// Whether the numbers are ones that a writer writes.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !limit::PAGE_SIZE.contains(&self.page_size) || !self.page_size.is_power_of_two() {
            return Err(format!("page size {} is none", self.page_size));
        }
        if !limit::CHUNK_LEN.contains(&self.chunk_len)
            || !self.chunk_len.is_multiple_of(self.page_size)
        {
            return Err(format!(
                "chunk length {} is not a multiple of the page size {} in {:?}",
                self.chunk_len,
                self.page_size,
                limit::CHUNK_LEN
            ));
        }
        Ok(())
    }
}

/// What a section begins with: `tag, payload length, 0, CRC of all this and the payload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHead {
    pub(crate) tag: [u8; 4],
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl SectionHead {
    /// The head of a section whose payload is `fixed` and `rest`, together below 4 GiB
    /// (the limits see to that).
    pub(crate) fn of(seed: &Seed, tag: [u8; 4], fixed: &[u8], rest: &[u8]) -> Self {
        let mut head = Self {
            tag,
            len: (fixed.len() + rest.len()) as u32,
            crc: 0,
        };
        let bytes = head.encode();
        head.crc = seed.crc(&[&bytes[..SECTION_HEAD_LEN - 4], fixed, rest]);
        head
    }

    pub(crate) fn encode(&self) -> [u8; SECTION_HEAD_LEN] {
        Block::<SECTION_HEAD_LEN>::new()
            .put(&self.tag)
            .put(&self.len.to_le_bytes())
            .put(&[0; 4])
            .put(&self.crc.to_le_bytes())
            .end()
    }

    pub(super) fn decode(bytes: &[u8; SECTION_HEAD_LEN]) -> Result<Self, Short> {
        let mut f = Fields::new(bytes);
        let (tag, len) = (f.array()?, f.u32()?);
        f.u32()?;
        Ok(Self {
            tag,
            len,
            crc: f.u32()?,
        })
    }
}

/// The last part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Footer {
    pub(crate) image_id: [u8; 16],
    pub(crate) n_chunks: u64,
    pub(crate) n_pages: u64,
    pub(crate) n_zero_pages: u64,
    pub(crate) raw_bytes: u64,
    /// Length of all chunks in the image, heads and runs included.
    pub(crate) stored_bytes: u64,
    /// First byte behind the VMA table.
    pub(crate) body: u64,
    /// Offset of the last index block, 0 if there is no chunk.
    pub(crate) last_index: u64,
    pub(crate) n_index_blocks: u64,
    pub(crate) trailers: u64,
    pub(crate) image_len: u64,
    /// CRC of the CRCs of header and sections in the order of the file.
    pub(crate) digest: u32,
}

impl Footer {
    pub(crate) fn encode(&self, seed: &Seed) -> [u8; FOOTER_LEN] {
        let mut block = Block::<FOOTER_LEN>::new()
            .put(&tag::FOOTER)
            .put(&(FOOTER_LEN as u32).to_le_bytes())
            .put(&self.image_id);
        for number in self.numbers() {
            block = block.put(&number.to_le_bytes());
        }
        let mut bytes = block
            .put(&self.digest.to_le_bytes())
            .put(&[0; 12])
            .put(&END_MAGIC)
            .end();
        let crc = seed.crc(&[&bytes[..116]]);
        bytes[116..120].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn numbers(&self) -> [u64; 10] {
        [
            self.n_chunks,
            self.n_pages,
            self.n_zero_pages,
            self.raw_bytes,
            self.stored_bytes,
            self.body,
            self.last_index,
            self.n_index_blocks,
            self.trailers,
            self.image_len,
        ]
    }

    /// Takes the fields apart; `None` when tag, length, identity, CRC or end mark do
    /// not fit.
    pub(crate) fn decode(bytes: &[u8; FOOTER_LEN], seed: &Seed) -> Option<Self> {
        let mut f = Fields::new(bytes);
        let fits = f.array::<4>().ok()? == tag::FOOTER && f.u32().ok()? == FOOTER_LEN as u32;
        let image_id = f.array().ok()?;
        let mut numbers = [0; 10];
        for number in &mut numbers {
            *number = f.u64().ok()?;
        }
        let digest = f.u32().ok()?;
        f.u64().ok()?;
        let crc = f.u32().ok()?;
        if !fits || crc != seed.crc(&[&bytes[..116]]) || f.array::<8>().ok()? != END_MAGIC {
            return None;
        }
        let [
            n_chunks,
            n_pages,
            n_zero_pages,
            raw_bytes,
            stored_bytes,
            body,
            last_index,
            n_index_blocks,
            trailers,
            image_len,
        ] = numbers;
        Some(Self {
            image_id,
            n_chunks,
            n_pages,
            n_zero_pages,
            raw_bytes,
            stored_bytes,
            body,
            last_index,
            n_index_blocks,
            trailers,
            image_len,
            digest,
        })
    }
}

/// ELF machine number of the architecture this program runs on; 0 for one it does not
/// know. By name, because `cfg(target_arch)` belongs to `sys/arch/`.
pub(crate) fn this_arch() -> u16 {
    match std::env::consts::ARCH {
        "x86" => 3,
        "arm" => 40,
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv32" | "riscv64" => 243,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn header_comes_back() {
        let header = Header {
            version: (1, 7),
            incompatible: 1 << 40,
            compatible: 3,
            image_id: [9; 16],
            arch: 62,
            page_size: 16384,
            chunk_len: 1 << 20,
            created: 1_700_000_000,
        };
        let bytes = header.encode();
        let (back, crc) = Header::decode(&bytes).unwrap();
        assert_eq!(back, header);
        assert_eq!(crc, crc32fast::hash(&bytes[..92]));
        header.check().unwrap();
        assert!(
            Header {
                chunk_len: 5000,
                ..header
            }
            .check()
            .is_err()
        );
        assert!(
            Header {
                page_size: 6000,
                chunk_len: 6000,
                ..header
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn footer_comes_back_and_no_bit_of_it_may_flip() {
        let seed = Seed::new(&[7; 16]);
        let footer = Footer {
            image_id: [7; 16],
            n_chunks: 1,
            n_pages: 2,
            n_zero_pages: 3,
            raw_bytes: 4,
            stored_bytes: 5,
            body: 6,
            last_index: 7,
            n_index_blocks: 8,
            trailers: 9,
            image_len: 10,
            digest: 11,
        };
        let bytes = footer.encode(&seed);
        assert_eq!(Footer::decode(&bytes, &seed), Some(footer));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Footer::decode(&flipped, &seed), None, "bit {bit}");
        }
        assert_eq!(Footer::decode(&bytes, &Seed::new(&[8; 16])), None);
    }

    #[test]
    fn section_head_comes_back() {
        let seed = Seed::new(&[1; 16]);
        let head = SectionHead::of(&seed, tag::PIPE, b"pay", b"load");
        assert_eq!(SectionHead::decode(&head.encode()).unwrap(), head);
        assert_ne!(
            head.crc,
            SectionHead::of(&seed, tag::TARGET, b"payload", b"").crc
        );
    }
}
