//! Reading an image that nobody has vouched for.
//!
//! ```text
//! open   header → footer → PIPE, TGET, VMAS → index blocks, last to first →
//!        first to last: chunks and blocks must tile the body exactly → TRLR → digest, totals
//! then   IndexCursor hands out entries in the order of the file; read_chunk reads one
//! ```
//!
//! A length is believed only when it is within its limit and within the file. Memory is
//! bounded by the longest chunk, not by the image: index blocks are read again when
//! chunks are decoded, and their CRC is checked again. Of an image that is there in part the
//! entries are kept, some 50 bytes for each chunk.

use std::sync::Arc;

use crc32fast::Hasher;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::StageError;

use crate::sink::bytes::Fields;
use crate::sink::error::{ImageError, Result, corrupt};
use crate::sink::frame::{
    CHUNK_HEAD_LEN, ChunkHead, INDEX_ENTRY_LEN, INDEX_FIXED_LEN, IndexEntry, RUN_LEN, chunk_crc,
};
use crate::sink::layout::{
    FOOTER_LEN, Footer, HEADER_LEN, Header, KNOWN_INCOMPATIBLE, MAGIC, SECTION_HEAD_LEN,
    SectionHead, Seed, VERSION, limit, tag,
};
use crate::sink::part::Part;
use crate::sink::recipe::Recipe;
use crate::sink::tile::{Tally, Walk};
use crate::sink::{Mark, ReadImage, TargetIdentity, VmaTable};

/// An image whose every part but the chunks was checked.
pub struct ImageReader {
    source: Arc<dyn ReadImage>,
    seed: Seed,
    header: Header,
    footer: Footer,
    tables: Tables,
    trailers: Vec<Vec<u8>>,
    index: Index,
    /// Length of the longest chunk, bytes.
    max_chunk: usize,
}

/// What stands before the chunks.
struct Tables {
    recipe: Recipe,
    target: TargetIdentity,
    /// Offset of the VMA table's section.
    vmas: u64,
    n_vmas: usize,
}

impl Tables {
    fn read(walk: &mut Walk<'_>) -> Result<Self> {
        let (recipe, target) = (walk.recipe()?, walk.target()?);
        let vmas = walk.at;
        Ok(Self {
            recipe,
            target,
            vmas,
            n_vmas: walk.vmas()?.len(),
        })
    }
}

/// Where the chunks are.
pub(super) enum Index {
    /// Offsets of the index blocks, first to last.
    Blocks(Vec<u64>),
    /// Of an image that is there in part: its chunks.
    Chunks(Vec<IndexEntry>),
}

impl ImageReader {
    /// Reads and checks everything but the chunks.
    ///
    /// # Errors
    /// [`ImageError`], naming the place.
    pub fn open(source: Arc<dyn ReadImage>) -> Result<Self> {
        let len = source.len().map_err(|source| ImageError::Io {
            offset: 0,
            len_bytes: 0,
            source,
        })?;
        let (header, header_crc) = read_header(&*source, len)?;
        let seed = Seed::new(&header.image_id);
        let footer = read_footer(&*source, &seed, len)?;
        let mut walk = Walk::behind_header(&*source, &seed, header_crc, footer.trailers);
        let tables = Tables::read(&mut walk)?;
        let mut tally = Tally::new(&header);
        let index = Index::Blocks(walk.body(&header, &footer, &mut tally)?);
        walk.end = len - FOOTER_LEN as u64;
        let trailers = walk.trailers(tables.recipe.stages.len() - 1)?;
        let digest = walk.digest.finalize();
        tally.check(&footer, digest, len)?;
        let max_chunk = tally.max_chunk;
        Ok(Self {
            source,
            seed,
            header,
            footer,
            tables,
            trailers,
            index,
            max_chunk,
        })
    }

    /// Reads and checks everything but the chunks of an image whose writer had come as far as
    /// `mark` when it died or gave up.
    ///
    /// # Errors
    /// [`ImageError`], naming the place.
    pub fn open_part(source: Arc<dyn ReadImage>, mark: Mark) -> Result<Self> {
        let (header, header_crc) = read_header(&*source, mark.len_bytes)?;
        let seed = Seed::new(&header.image_id);
        let mut walk = Walk::behind_header(&*source, &seed, header_crc, mark.len_bytes);
        let tables = Tables::read(&mut walk)?;
        let part = Part::read(&mut walk, &header, mark.n_chunks)?;
        Ok(Self {
            source,
            seed,
            header,
            footer: part.footer,
            tables,
            trailers: Vec::new(),
            index: Index::Chunks(part.chunks),
            max_chunk: part.max_chunk,
        })
    }

    /// Who the target was.
    #[must_use]
    pub fn target(&self) -> &TargetIdentity {
        &self.tables.target
    }

    /// Reads the VMA table again: it is not kept, because it may be long.
    ///
    /// # Errors
    /// As [`ImageReader::open`].
    pub fn read_vmas(&self) -> Result<VmaTable> {
        let end = self.footer.body;
        Walk {
            source: &*self.source,
            seed: &self.seed,
            at: self.tables.vmas,
            end,
            digest: Hasher::new(),
        }
        .vmas()
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn footer(&self) -> &Footer {
        &self.footer
    }

    pub(crate) fn recipe(&self) -> &Recipe {
        &self.tables.recipe
    }

    /// It was never finished: stages have said no last words, and chunks are missing.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self.index, Index::Chunks(_))
    }

    /// No chunk has an index as high as this.
    pub(crate) fn index_end(&self) -> u64 {
        match &self.index {
            Index::Blocks(_) => self.footer.n_chunks,
            Index::Chunks(chunks) => chunks
                .iter()
                .map(|chunk| chunk.index + 1)
                .max()
                .unwrap_or(0),
        }
    }

    pub(crate) fn n_vmas(&self) -> usize {
        self.tables.n_vmas
    }

    /// The last words of each stage but the sink.
    pub(crate) fn trailers(&self) -> &[Vec<u8>] {
        &self.trailers
    }

    /// How long a buffer [`ImageReader::read_chunk`] needs, bytes.
    pub(crate) fn max_chunk_bytes(&self) -> usize {
        self.max_chunk
    }

    /// Reads a whole chunk into the beginning of `buffer` and checks its CRC and head.
    pub(crate) fn read_chunk(&self, entry: &IndexEntry, buffer: &mut [u8]) -> Result<ChunkHead> {
        let bad = |why: String| corrupt("chunk", entry.offset, u64::from(entry.len), why);
        let chunk = buffer
            .get_mut(..entry.len as usize)
            .ok_or_else(|| bad("its length changed".into()))?;
        read_exact(&*self.source, "chunk", entry.offset, chunk)?;
        let Some(head) = chunk.first_chunk::<CHUNK_HEAD_LEN>() else {
            return Err(bad("it is shorter than its head".into()));
        };
        let head = ChunkHead::decode(head).map_err(bad)?;
        let crc = chunk_crc(&self.seed, chunk);
        if crc != head.crc {
            return Err(bad(format!(
                "its CRC is {crc:08x}, its head says {:08x}",
                head.crc
            )));
        }
        let len = head.n_runs as u64 * RUN_LEN as u64
            + CHUNK_HEAD_LEN as u64
            + u64::from(head.stored_len);
        if len != u64::from(entry.len) {
            return Err(bad(format!("head, runs and frame are {len} bytes")));
        }
        Ok(head)
    }
}

/// Hands out the entries of the index in the order of the file.
pub(crate) struct IndexCursor {
    reader: Arc<ImageReader>,
    next_block: usize,
    /// Entries of one block, and how many bytes of them were handed out; of an image that
    /// is there in part, how many entries.
    entries: Vec<u8>,
    used: usize,
}

impl IndexCursor {
    pub(crate) fn new(reader: Arc<ImageReader>) -> Self {
        Self {
            reader,
            next_block: 0,
            entries: Vec::new(),
            used: 0,
        }
    }

    /// The next entry; `None` behind the last.
    pub(crate) fn next(&mut self) -> Result<Option<IndexEntry>> {
        let blocks = match &self.reader.index {
            Index::Blocks(blocks) => blocks,
            Index::Chunks(chunks) => {
                self.used += 1;
                return Ok(chunks.get(self.used - 1).copied());
            }
        };
        if self.used == self.entries.len() {
            let Some(&offset) = blocks.get(self.next_block) else {
                return Ok(None);
            };
            self.entries = read_block(&*self.reader.source, &self.reader.seed, offset)?.1;
            (self.used, self.next_block) = (INDEX_FIXED_LEN, self.next_block + 1);
        }
        let entry = self.entries[self.used..]
            .first_chunk()
            .and_then(IndexEntry::decode);
        self.used += INDEX_ENTRY_LEN;
        // `read_block` checked the length, `open` the fields under the same CRC; only a
        // file that changed in between with a fitting CRC gets here.
        let block = blocks[self.next_block - 1];
        entry
            .map(Some)
            .ok_or_else(|| corrupt("index", block, 0, "it changed while it was read"))
    }
}

/// The id of an image that may not be finished: its header is all that has to be there.
pub(crate) fn read_id(source: &dyn ReadImage) -> Result<[u8; 16]> {
    let len = source.len().map_err(|source| ImageError::Io {
        offset: 0,
        len_bytes: 0,
        source,
    })?;
    Ok(read_header(source, len)?.0.image_id)
}

pub(super) fn read_exact(
    source: &dyn ReadImage,
    what: &'static str,
    offset: u64,
    out: &mut [u8],
) -> Result<()> {
    let len_bytes = out.len() as u64;
    let failed = |source| ImageError::Io {
        offset,
        len_bytes,
        source,
    };
    let mut n = 0;
    while n < out.len() {
        match source
            .read_at(offset + n as u64, &mut out[n..])
            .map_err(failed)?
        {
            0 => return Err(ends_early(source, what, offset, len_bytes, n as u64)),
            more => n += more,
        }
    }
    Ok(())
}

/// No more bytes come after `n`. That they are lost is proved only if the image ends there.
fn ends_early(
    source: &dyn ReadImage,
    what: &'static str,
    offset: u64,
    len_bytes: u64,
    n: u64,
) -> ImageError {
    let failed = |source| ImageError::Io {
        offset,
        len_bytes,
        source,
    };
    match source.len() {
        Ok(len) if offset + n < len => failed(StageError::new(
            code::IO,
            format!(
                "nothing is read at offset {}, although the image has {len} bytes",
                offset + n
            ),
        )),
        Ok(_) => corrupt(
            what,
            offset,
            len_bytes,
            format!("the image ends after {n} bytes of it"),
        ),
        Err(error) => failed(error),
    }
}

/// Reads the header; answers it with its CRC.
fn read_header(source: &dyn ReadImage, len: u64) -> Result<(Header, u32)> {
    if len < HEADER_LEN as u64 {
        return Err(ImageError::NotAnImage(format!(
            "{len} bytes are too few for a header of {HEADER_LEN}"
        )));
    }
    let mut bytes = [0; HEADER_LEN];
    read_exact(source, "header", 0, &mut bytes)?;
    let bad = |why: String| corrupt("header", 0, HEADER_LEN as u64, why);
    if bytes[..8] != MAGIC {
        return Err(ImageError::NotAnImage(format!(
            "it begins with `{}`",
            bytes[..8].escape_ascii()
        )));
    }
    let (header, crc) = Header::decode(&bytes).map_err(|_| bad("it is too short".into()))?;
    let computed = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
    if computed != crc {
        return Err(bad(format!("its CRC is {computed:08x}, it says {crc:08x}")));
    }
    if header.version.0 != VERSION.0 {
        let (major, minor) = header.version;
        return Err(ImageError::Unsupported(format!(
            "its format is {major}.{minor}, this memcr reads {}.x",
            VERSION.0
        )));
    }
    let unknown = header.incompatible & !KNOWN_INCOMPATIBLE;
    if unknown != 0 {
        return Err(ImageError::Unsupported(format!(
            "it needs features {unknown:#x}, which this memcr does not know"
        )));
    }
    header.check().map_err(bad)?;
    Ok((header, crc))
}

fn read_footer(source: &dyn ReadImage, seed: &Seed, len: u64) -> Result<Footer> {
    let smallest = (HEADER_LEN + FOOTER_LEN) as u64;
    let offset = len.saturating_sub(FOOTER_LEN as u64);
    let bad = |why: &str| corrupt("footer", offset, len - offset, why);
    if len < smallest {
        return Err(bad("the image ends before it"));
    }
    let mut bytes = [0; FOOTER_LEN];
    read_exact(source, "footer", offset, &mut bytes)?;
    let footer = Footer::decode(&bytes, seed)
        .ok_or_else(|| bad("there is no valid end mark: the image is cut, was never finished, or its end was changed"))?;
    if footer.image_len != len {
        return Err(bad(&format!(
            "it says {} bytes, the image has {len}",
            footer.image_len
        )));
    }
    if footer.trailers > offset || footer.body > footer.trailers {
        return Err(bad("its offsets lead outside the image"));
    }
    Ok(footer)
}

/// Reads an index block: its CRC, and its payload of a right length.
pub(super) fn read_block(
    source: &dyn ReadImage,
    seed: &Seed,
    offset: u64,
) -> Result<(u32, Vec<u8>)> {
    let longest = INDEX_FIXED_LEN as u64 + u64::from(limit::INDEX_ENTRIES) * INDEX_ENTRY_LEN as u64;
    let (crc, payload) = read_section(source, seed, "index", tag::INDEX, offset, longest)?;
    let n_entries = Fields::new(payload.get(8..).unwrap_or_default())
        .u32()
        .unwrap_or(0) as usize;
    if n_entries == 0 || payload.len() != INDEX_FIXED_LEN + n_entries * INDEX_ENTRY_LEN {
        let why = format!("{n_entries} entries do not fill {} bytes", payload.len());
        return Err(corrupt("index", offset, payload.len() as u64, why));
    }
    Ok((crc, payload))
}

pub(super) fn read_section(
    source: &dyn ReadImage,
    seed: &Seed,
    what: &'static str,
    tag: [u8; 4],
    offset: u64,
    limit: u64,
) -> Result<(u32, Vec<u8>)> {
    let mut head_bytes = [0; SECTION_HEAD_LEN];
    read_exact(source, what, offset, &mut head_bytes)?;
    let bad = |why: String| corrupt(what, offset, SECTION_HEAD_LEN as u64, why);
    let head = SectionHead::decode(&head_bytes).map_err(|_| bad("it is too short".into()))?;
    if head.tag != tag || head_bytes[8..12] != [0; 4] {
        return Err(bad(format!(
            "it begins with `{}`",
            head_bytes[..12].escape_ascii()
        )));
    }
    if u64::from(head.len) > limit {
        return Err(bad(format!(
            "a length of {} bytes is over the limit of {limit}",
            head.len
        )));
    }
    let mut payload = vec![0; head.len as usize];
    read_exact(source, what, offset + SECTION_HEAD_LEN as u64, &mut payload)?;
    let crc = seed.crc(&[&head_bytes[..SECTION_HEAD_LEN - 4], &payload]);
    if crc != head.crc {
        return Err(bad(format!(
            "its CRC is {crc:08x}, it says {:08x}",
            head.crc
        )));
    }
    Ok((crc, payload))
}
