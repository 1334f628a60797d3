//! Whether the parts of an image tile it: one behind the other, without a gap, and adding
//! up to what the footer says.

use crc32fast::Hasher;

use crate::sink::bytes::Fields;
use crate::sink::error::{Result, corrupt};
use crate::sink::frame::{CHUNK_HEAD_LEN, INDEX_ENTRY_LEN, INDEX_FIXED_LEN, IndexEntry, RUN_LEN};
use crate::sink::layout::{
    FOOTER_LEN, Footer, HEADER_LEN, Header, SECTION_HEAD_LEN, Seed, limit, tag,
};
use crate::sink::read::{read_block, read_exact, read_section};
use crate::sink::recipe::Recipe;
use crate::sink::{ReadImage, TargetIdentity, VmaTable};

/// Length of an index block with one entry, bytes.
const SMALLEST_BLOCK: u64 = (SECTION_HEAD_LEN + INDEX_FIXED_LEN + INDEX_ENTRY_LEN) as u64;

/// Reads parts one behind the other.
pub(super) struct Walk<'a> {
    pub(super) source: &'a dyn ReadImage,
    pub(super) seed: &'a Seed,
    pub(super) at: u64,
    /// No part may reach beyond.
    pub(super) end: u64,
    pub(super) digest: Hasher,
}

impl<'a> Walk<'a> {
    /// From the end of a header with this CRC to `end`.
    pub(super) fn behind_header(
        source: &'a dyn ReadImage,
        seed: &'a Seed,
        header_crc: u32,
        end: u64,
    ) -> Self {
        let mut digest = seed.hasher();
        digest.update(&header_crc.to_le_bytes());
        Self {
            source,
            seed,
            at: HEADER_LEN as u64,
            end,
            digest,
        }
    }

    fn section(&mut self, what: &'static str, tag: [u8; 4], limit: u64) -> Result<Vec<u8>> {
        let room = self.end.saturating_sub(self.at + SECTION_HEAD_LEN as u64);
        let (crc, payload) =
            read_section(self.source, self.seed, what, tag, self.at, limit.min(room))?;
        self.passed(crc, payload.len());
        Ok(payload)
    }

    pub(super) fn passed(&mut self, crc: u32, len: usize) {
        self.digest.update(&crc.to_le_bytes());
        self.at += (SECTION_HEAD_LEN + len) as u64;
    }

    pub(super) fn recipe(&mut self) -> Result<Recipe> {
        let at = self.at;
        let payload = self.section("pipeline description", tag::PIPE, limit::PIPE_LEN)?;
        Recipe::decode(&payload)
            .map_err(|why| corrupt("pipeline description", at, payload.len() as u64, why))
    }

    pub(super) fn target(&mut self) -> Result<TargetIdentity> {
        let at = self.at;
        let payload = self.section("target identity", tag::TARGET, limit::TARGET_LEN)?;
        let len = payload.len() as u64;
        TargetIdentity::decode(&payload)
            .map_err(|_| corrupt("target identity", at, len, "its fields do not fill it"))
    }

    pub(super) fn vmas(&mut self) -> Result<VmaTable> {
        let at = self.at;
        let payload = self.section("VMA table", tag::VMAS, limit::VMAS_LEN)?;
        let len = payload.len() as u64;
        VmaTable::decode(payload)
            .map_err(|_| corrupt("VMA table", at, len, "its mappings do not fill it"))
    }

    pub(super) fn trailers(&mut self, n_stages: usize) -> Result<Vec<Vec<u8>>> {
        let at = self.at;
        let payload = self.section("trailers", tag::TRAILERS, limit::TRAILERS_LEN)?;
        let mut f = Fields::new(&payload);
        let trailers: Option<Vec<_>> = (0..n_stages)
            .map(|_| f.bytes16().ok().map(<[u8]>::to_vec))
            .collect();
        let bad = |why| corrupt("trailers", at, payload.len() as u64, why);
        let trailers = trailers.filter(|_| f.is_empty());
        if self.at != self.end {
            return Err(bad("the footer does not follow them"));
        }
        trailers.ok_or_else(|| bad("they are not one for each stage"))
    }

    /// Checks that chunks and index blocks tile the body, and answers the blocks.
    pub(super) fn body(
        &mut self,
        header: &Header,
        footer: &Footer,
        tally: &mut Tally,
    ) -> Result<Vec<u64>> {
        if self.at != footer.body {
            return Err(corrupt(
                "body",
                footer.body,
                0,
                format!("it begins at {} in truth", self.at),
            ));
        }
        let blocks = self.find_blocks(footer)?;
        tally.expect(footer, blocks.len())?;
        let mut before = 0;
        for &offset in &blocks {
            self.block(offset, before, header, tally)?;
            before = offset;
        }
        if self.at != footer.trailers {
            return Err(corrupt(
                "body",
                self.at,
                0,
                format!("the trailers begin at {}, not behind it", footer.trailers),
            ));
        }
        Ok(blocks)
    }

    /// One block at `offset`, behind the chunks it lists.
    fn block(
        &mut self,
        offset: u64,
        before: u64,
        header: &Header,
        tally: &mut Tally,
    ) -> Result<()> {
        let (crc, payload) = read_block(self.source, self.seed, offset)?;
        let bad = |why: String| corrupt("index", offset, payload.len() as u64, why);
        let (fixed, entries) = payload.split_at(INDEX_FIXED_LEN);
        if fixed[..8] != u64::to_le_bytes(before) || fixed[12..] != [0; 4] {
            return Err(bad("it does not name the block before it".into()));
        }
        for entry in entries.as_chunks::<INDEX_ENTRY_LEN>().0 {
            let entry = IndexEntry::decode(entry)
                .ok_or_else(|| bad("an entry has unknown flags".into()))?;
            let IndexEntry {
                index, offset, len, ..
            } = entry;
            if offset != self.at {
                return Err(bad(format!(
                    "chunk {index} is at {offset}, not at {}",
                    self.at
                )));
            }
            tally.add(&entry, header).map_err(&bad)?;
            self.at += u64::from(len);
        }
        if self.at != offset {
            return Err(bad(format!("the chunks before it end at {}", self.at)));
        }
        self.passed(crc, payload.len());
        Ok(())
    }

    /// Follows the blocks from last to first. Offsets must fall, so it ends.
    fn find_blocks(&self, footer: &Footer) -> Result<Vec<u64>> {
        let mut blocks = Vec::new();
        let (mut at, mut before) = (footer.last_index, footer.trailers);
        while at != 0 {
            let fits = at >= footer.body
                && at
                    .checked_add(SMALLEST_BLOCK)
                    .is_some_and(|end| end <= before);
            if !fits || blocks.len() as u64 >= footer.n_index_blocks {
                return Err(corrupt(
                    "index",
                    at,
                    0,
                    "it is not where an index block can be",
                ));
            }
            blocks.push(at);
            let mut fixed = [0; 8];
            read_exact(
                self.source,
                "index",
                at + SECTION_HEAD_LEN as u64,
                &mut fixed,
            )?;
            (before, at) = (at, u64::from_le_bytes(fixed));
        }
        if blocks.len() as u64 != footer.n_index_blocks {
            let why = format!(
                "{} blocks, the footer says {}",
                blocks.len(),
                footer.n_index_blocks
            );
            return Err(corrupt("index", footer.last_index, 0, why));
        }
        blocks.reverse();
        Ok(blocks)
    }
}

/// What the index adds up to.
pub(super) struct Tally {
    /// One bit for each of the chunks the footer promises.
    seen: Vec<u64>,
    promised: u64,
    totals: Footer,
    pub(super) max_chunk: usize,
}

impl Tally {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            seen: Vec::new(),
            promised: 0,
            totals: Footer {
                image_id: header.image_id,
                ..Footer::default()
            },
            max_chunk: 0,
        }
    }

    /// Makes room for the chunks that the footer promises, once the blocks are there that list
    /// them: the length of a file, and what it says of itself, are no reason to take memory.
    fn expect(&mut self, footer: &Footer, n_blocks: usize) -> Result<()> {
        let n_chunks = footer.n_chunks;
        if n_chunks > n_blocks as u64 * u64::from(limit::INDEX_ENTRIES) {
            let why = format!("{n_chunks} chunks do not fit into {n_blocks} index blocks");
            let len = FOOTER_LEN as u64;
            return Err(corrupt("footer", footer.image_len - len, len, why));
        }
        self.seen = vec![0; n_chunks.div_ceil(64) as usize];
        self.promised = n_chunks;
        Ok(())
    }

    fn add(&mut self, entry: &IndexEntry, header: &Header) -> std::result::Result<(), String> {
        let IndexEntry {
            index,
            len,
            raw_len,
            ..
        } = *entry;
        let pages = u64::from(raw_len / header.page_size) + u64::from(entry.n_zero_pages);
        let max_runs = header.chunk_len / header.page_size;
        let max_len = (CHUNK_HEAD_LEN as u32) + max_runs * RUN_LEN as u32 + limit::FRAME_LEN;
        let min_len = (CHUNK_HEAD_LEN + RUN_LEN) as u32;
        if raw_len % header.page_size != 0 || pages == 0 || pages > u64::from(max_runs) {
            return Err(format!(
                "chunk {index} of {raw_len} bytes and {} zero pages cannot be",
                entry.n_zero_pages
            ));
        }
        if len < min_len || len > max_len {
            return Err(format!(
                "chunk {index} of {len} bytes is not within {min_len}..={max_len}"
            ));
        }
        self.mark(index)?;
        self.max_chunk = self.max_chunk.max(len as usize);
        self.totals.n_chunks += 1;
        self.totals.n_pages += u64::from(raw_len / header.page_size);
        self.totals.n_zero_pages += u64::from(entry.n_zero_pages);
        self.totals.raw_bytes += u64::from(raw_len);
        self.totals.stored_bytes += u64::from(len);
        if entry.last != (index + 1 == self.promised) {
            return Err(format!(
                "chunk {index} is{} said to be the last",
                if entry.last { "" } else { " not" }
            ));
        }
        Ok(())
    }

    fn mark(&mut self, index: u64) -> std::result::Result<(), String> {
        let bit = 1 << (index % 64);
        let word = usize::try_from(index / 64)
            .ok()
            .filter(|_| index < self.promised);
        match word.and_then(|at| self.seen.get_mut(at)) {
            Some(word) if *word & bit == 0 => *word |= bit,
            Some(_) => return Err(format!("chunk {index} is there twice")),
            None => return Err(format!("there is no chunk {index}")),
        }
        Ok(())
    }

    pub(super) fn check(&self, footer: &Footer, digest: u32, len: u64) -> Result<()> {
        let bad = |why: String| corrupt("footer", len - FOOTER_LEN as u64, FOOTER_LEN as u64, why);
        let sums = |f: &Footer| {
            (
                f.n_chunks,
                f.n_pages,
                f.n_zero_pages,
                f.raw_bytes,
                f.stored_bytes,
            )
        };
        if sums(footer) != sums(&self.totals) || footer.image_id != self.totals.image_id {
            return Err(bad(format!(
                "its totals {:?} are not those of the index {:?}",
                sums(footer),
                sums(&self.totals)
            )));
        }
        if footer.digest != digest {
            return Err(bad(format!(
                "the digest of all parts is {digest:08x}, it says {:08x}",
                footer.digest
            )));
        }
        Ok(())
    }
}
