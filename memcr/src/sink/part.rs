//! An image that was never finished, up to where its writer had come: it has no footer, and
//! the index of its last chunks was never written, so the chunks tell where they are.
//!
//! ```text
//!   header PIPE TGET VMAS │ CHNK CHNK … INDX CHNK CHNK │▒▒▒ whatever
//!                         └ body                       └ mark, told by a journal
//! ```
//!
//! A head is believed as far as its length leads to the next part; the rest of it, and the
//! chunk's CRC, are checked when the chunk is read.

use crate::sink::error::{ImageError, Result, corrupt};
use crate::sink::frame::{CHUNK_HEAD_LEN, ChunkHead, IndexEntry, RUN_LEN, check_runs};
use crate::sink::layout::{Footer, Header, SECTION_HEAD_LEN, limit, tag};
use crate::sink::read::{read_block, read_exact};
use crate::sink::tile::Walk;

/// Chunks that may be missing among those that are there: a worker each was at them.
const MOST_MISSING: u64 = 4096;

/// What is found between the tables and the mark.
pub(super) struct Part {
    /// In the order of the file.
    pub(super) chunks: Vec<IndexEntry>,
    /// What a footer would say if the image ended here.
    pub(super) footer: Footer,
    /// Length of the longest chunk, bytes.
    pub(super) max_chunk: usize,
}

impl Part {
    /// Walks from the end of the tables to the mark, before which all chunks of an index below
    /// `n_chunks` are.
    pub(super) fn read(walk: &mut Walk<'_>, header: &Header, n_chunks: u64) -> Result<Self> {
        let mut part = Self {
            chunks: Vec::new(),
            footer: Footer {
                image_id: header.image_id,
                body: walk.at,
                trailers: walk.end,
                image_len: walk.end,
                ..Footer::default()
            },
            max_chunk: 0,
        };
        while walk.at < walk.end {
            let mut begin = [0; 4];
            read_exact(walk.source, "part", walk.at, &mut begin)?;
            if begin == tag::INDEX {
                let (crc, payload) = read_block(walk.source, walk.seed, walk.at)?;
                walk.passed(crc, payload.len());
                part.footer.last_index = walk.at - (SECTION_HEAD_LEN + payload.len()) as u64;
                part.footer.n_index_blocks += 1;
            } else {
                part.chunk(walk, header)?;
            }
        }
        if walk.at != walk.end {
            let why = "a chunk reaches beyond what its writer said is written";
            return Err(corrupt("chunk", walk.at, 0, why));
        }
        part.check_indices(n_chunks)?;
        part.footer.digest = walk.digest.clone().finalize();
        Ok(part)
    }

    fn chunk(&mut self, walk: &mut Walk<'_>, header: &Header) -> Result<()> {
        let offset = walk.at;
        let bad = |why: String| corrupt("chunk", offset, CHUNK_HEAD_LEN as u64, why);
        let mut bytes = [0; CHUNK_HEAD_LEN];
        read_exact(walk.source, "chunk", offset, &mut bytes)?;
        let head = ChunkHead::decode(&bytes).map_err(bad)?;
        if head.n_runs > header.chunk_len / header.page_size || head.stored_len > limit::FRAME_LEN {
            let why = format!(
                "{} runs and {} bytes cannot be",
                head.n_runs, head.stored_len
            );
            return Err(bad(why));
        }
        let mut runs = vec![0; head.n_runs as usize * RUN_LEN];
        read_exact(
            walk.source,
            "chunk",
            offset + CHUNK_HEAD_LEN as u64,
            &mut runs,
        )?;
        let (page_size, chunk_len) = (header.page_size, header.chunk_len);
        let n_zero_pages = check_runs(&head, &runs, page_size, chunk_len, &mut Vec::new());
        let n_zero_pages = n_zero_pages.map_err(bad)?;
        // Both are below their limits.
        let len = (head.runs_end() + head.stored_len as usize) as u32;
        self.chunks.push(IndexEntry {
            offset,
            index: head.index,
            address: head.address,
            len,
            raw_len: head.raw_len,
            crc: head.crc,
            n_zero_pages: n_zero_pages as u16,
            class: head.class,
            last: head.last,
        });
        self.max_chunk = self.max_chunk.max(len as usize);
        let totals = &mut self.footer;
        totals.n_chunks += 1;
        totals.n_pages += u64::from(head.raw_len / page_size);
        totals.n_zero_pages += u64::from(n_zero_pages);
        totals.raw_bytes += u64::from(head.raw_len);
        totals.stored_bytes += u64::from(len);
        walk.at += u64::from(len);
        Ok(())
    }

    /// No chunk is there twice, none below `n_chunks` is missing, and next to none above.
    fn check_indices(&self, n_chunks: u64) -> std::result::Result<(), ImageError> {
        let mut indices: Vec<u64> = self.chunks.iter().map(|chunk| chunk.index).collect();
        indices.sort_unstable();
        let bad = |why: String| Err(corrupt("body", self.footer.body, 0, why));
        if let Some(twice) = indices.windows(2).find(|pair| pair[0] == pair[1]) {
            return bad(format!("chunk {} is there twice", twice[0]));
        }
        let missing = (0..n_chunks).zip(&indices).find(|(n, index)| n != *index);
        if let Some((n, _)) = missing {
            return bad(format!("chunk {n} is missing"));
        }
        match indices.last() {
            _ if (indices.len() as u64) < n_chunks => bad(format!(
                "{} chunks are there, its writer wrote {n_chunks}",
                indices.len()
            )),
            Some(&last) if last >= self.footer.n_chunks + MOST_MISSING => bad(format!(
                "there is a chunk {last} among {}",
                self.footer.n_chunks
            )),
            _ => Ok(()),
        }
    }
}
