//! Writing an image: where each part goes, and what the footer says of all of them.
//!
//! One worker at a time asks for a place, all of them write at once:
//!
//! ```text
//! worker 1 ──place──▶ ┌──────┐ ◀──place── worker 2
//!          ◀─offset── │ Body │ ──offset─▶            under the lock: next offset,
//!                     └──┬───┘                        index entries, totals
//!                        └─ a full index block is written before the next chunk's place
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use crc32fast::Hasher;
use memcr_plugin_api::abi;
use memcr_plugin_api::stage::StageError;

use crate::sink::bytes::put_bytes16;
use crate::sink::frame::{INDEX_ENTRY_LEN, INDEX_FIXED_LEN, IndexEntry};
use crate::sink::landed::{Landed, Mark};
use crate::sink::layout::{
    FOOTER_LEN, Footer, Header, SECTION_HEAD_LEN, SectionHead, Seed, limit, tag,
};
use crate::sink::{ImageMeta, WriteImage};

type Result<T> = std::result::Result<T, StageError>;

/// An image that is being written.
pub(crate) struct ImageWriter {
    seed: Seed,
    page_size: u32,
    body: Mutex<Body>,
}

struct Body {
    /// Where the next part goes.
    at: u64,
    /// Over the CRCs of header and sections so far.
    digest: Hasher,
    /// An index block: head, fixed part and the entries so far.
    block: Vec<u8>,
    footer: Footer,
    landed: Landed,
}

impl ImageWriter {
    /// Writes header and pipeline description. `recipe` is an encoded
    /// [`crate::sink::recipe::Recipe`].
    pub(crate) fn create(out: &dyn WriteImage, header: &Header, recipe: &[u8]) -> Result<Self> {
        let seed = Seed::new(&header.image_id);
        let bytes = header.encode();
        out.write_at(0, &bytes)?;
        let mut digest = seed.hasher();
        digest.update(&bytes[bytes.len() - 4..]);
        let footer = Footer {
            image_id: header.image_id,
            ..Footer::default()
        };
        let mut body = Body {
            at: bytes.len() as u64,
            digest,
            block: Vec::with_capacity(block_len()),
            footer,
            landed: Landed::default(),
        };
        body.start_block();
        body.section(out, &seed, tag::PIPE, limit::PIPE_LEN, recipe, &[])?;
        Ok(Self {
            seed,
            page_size: header.page_size,
            body: Mutex::new(body),
        })
    }

    /// Writes who the target is and its VMA table; chunks may follow.
    pub(crate) fn write_meta(&self, out: &dyn WriteImage, meta: &ImageMeta) -> Result<()> {
        let mut body = self.body();
        body.section(
            out,
            &self.seed,
            tag::TARGET,
            limit::TARGET_LEN,
            &meta.target.encode(),
            &[],
        )?;
        let (fixed, records) = meta.vmas.encode();
        body.section(out, &self.seed, tag::VMAS, limit::VMAS_LEN, &fixed, records)?;
        body.footer.body = body.at;
        let at = body.at;
        body.landed.begin(at);
        Ok(())
    }

    /// Enters a chunk in the index and answers where it goes; `entry.offset` does not
    /// count. Where writes must be in order, so must be place and write of a chunk. What was
    /// written there is to be told: [`ImageWriter::written`].
    pub(crate) fn place(&self, out: &dyn WriteImage, mut entry: IndexEntry) -> Result<u64> {
        let mut body = self.body();
        if body.block.len() == block_len() {
            body.write_block(out, &self.seed)?;
        }
        entry.offset = body.at;
        body.at += u64::from(entry.len);
        body.landed.placed(entry.offset);
        body.block.extend_from_slice(&entry.encode());
        let footer = &mut body.footer;
        footer.n_chunks += 1;
        footer.n_pages += u64::from(entry.raw_len / self.page_size);
        footer.n_zero_pages += u64::from(entry.n_zero_pages);
        footer.raw_bytes += u64::from(entry.raw_len);
        footer.stored_bytes += u64::from(entry.len);
        Ok(entry.offset)
    }

    /// The chunk of this index, which has its place at `offset`, is written, `len` bytes.
    pub(crate) fn written(&self, index: u64, offset: u64, len: u64) {
        self.body().landed.written(index, offset, offset + len);
    }

    /// Up to where all is written.
    pub(crate) fn mark(&self) -> Mark {
        self.body().landed.mark()
    }

    /// Number of chunks so far.
    pub(crate) fn n_chunks(&self) -> u64 {
        self.body().footer.n_chunks
    }

    /// Writes what is left of the index, the trailers and the footer, and answers it.
    pub(crate) fn finish(&self, out: &dyn WriteImage, trailers: &[Vec<u8>]) -> Result<Footer> {
        let mut body = self.body();
        if body.block.len() > SECTION_HEAD_LEN + INDEX_FIXED_LEN {
            body.write_block(out, &self.seed)?;
        }
        body.footer.trailers = body.at;
        let mut payload = Vec::new();
        trailers
            .iter()
            .for_each(|trailer| put_bytes16(&mut payload, trailer));
        body.section(
            out,
            &self.seed,
            tag::TRAILERS,
            limit::TRAILERS_LEN,
            &payload,
            &[],
        )?;
        body.footer.image_len = body.at + FOOTER_LEN as u64;
        body.footer.digest = body.digest.clone().finalize();
        out.write_at(body.at, &body.footer.encode(&self.seed))?;
        Ok(body.footer)
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        // A panic while it was held ends the image through the worker's failure.
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body {
    fn section(
        &mut self,
        out: &dyn WriteImage,
        seed: &Seed,
        tag: [u8; 4],
        limit: u64,
        fixed: &[u8],
        rest: &[u8],
    ) -> Result<()> {
        let len = (fixed.len() + rest.len()) as u64;
        if len > limit {
            let message = format!(
                "section {} of {len} bytes is longer than {limit}",
                tag.escape_ascii()
            );
            return Err(StageError::new(abi::code::UNSUPPORTED, message));
        }
        let head = SectionHead::of(seed, tag, fixed, rest);
        out.write_at(self.at, &[&head.encode()[..], fixed].concat())?;
        if !rest.is_empty() {
            out.write_at(self.at + (SECTION_HEAD_LEN + fixed.len()) as u64, rest)?;
        }
        self.sectioned(&head);
        Ok(())
    }

    fn sectioned(&mut self, head: &SectionHead) {
        self.digest.update(&head.crc.to_le_bytes());
        self.at += (SECTION_HEAD_LEN as u64) + u64::from(head.len);
    }

    fn start_block(&mut self) {
        self.block.clear();
        self.block.resize(SECTION_HEAD_LEN + INDEX_FIXED_LEN, 0);
    }

    /// Fills in head and fixed part (offset of the block before, number of entries) and
    /// writes the block. Nothing is allocated: this happens between chunks.
    fn write_block(&mut self, out: &dyn WriteImage, seed: &Seed) -> Result<()> {
        let (head, payload) = self.block.split_at_mut(SECTION_HEAD_LEN);
        let n_entries = ((payload.len() - INDEX_FIXED_LEN) / INDEX_ENTRY_LEN) as u32;
        payload[..8].copy_from_slice(&self.footer.last_index.to_le_bytes());
        payload[8..12].copy_from_slice(&n_entries.to_le_bytes());
        let section = SectionHead::of(seed, tag::INDEX, payload, &[]);
        head.copy_from_slice(&section.encode());
        out.write_at(self.at, &self.block)?;
        self.footer.last_index = self.at;
        self.footer.n_index_blocks += 1;
        self.sectioned(&section);
        self.start_block();
        Ok(())
    }
}

/// Length of a full index block, bytes.
fn block_len() -> usize {
    SECTION_HEAD_LEN + INDEX_FIXED_LEN + limit::INDEX_ENTRIES as usize * INDEX_ENTRY_LEN
}
