//! Makes every CRC of a damaged image right again, written from `docs/image-format.md`
//! alone: a fuzzer then gets past the CRCs to the checks behind them, and so does a test
//! that plays an adversary.

/// Rewrites all CRCs and the digest, as far as the parts can be found. Never panics.
pub fn reseal(image: &mut [u8]) {
    let _ = try_reseal(image);
}

const HEADER: usize = 96;
const FOOTER: usize = 128;
const CHUNK_HEAD: usize = 48;
const SECTION_HEAD: usize = 16;

/// `None`: some part was not where it should be; those before it are sealed.
fn try_reseal(image: &mut [u8]) -> Option<()> {
    let header = crc32fast::hash(image.get(..HEADER - 4)?);
    put(image, HEADER - 4, header)?;
    let id: [u8; 16] = image.get(32..48)?.try_into().ok()?;
    let end = image.len().checked_sub(FOOTER)?;
    let mut digest = seeded(&id);
    digest.update(&header.to_le_bytes());
    let mut at = HEADER;
    let walked = walk(image, &id, &mut at, end, &mut digest);
    // The footer last, whatever was found before it.
    let footer = image.get_mut(end..)?;
    put(footer, 104, digest.finalize())?;
    let mut crc = seeded(&id);
    crc.update(footer.get(..116)?);
    put(footer, 116, crc.finalize())?;
    walked
}

fn walk(
    image: &mut [u8],
    id: &[u8; 16],
    at: &mut usize,
    end: usize,
    digest: &mut crc32fast::Hasher,
) -> Option<()> {
    while *at < end {
        let tag: [u8; 4] = image.get(*at..*at + 4)?.try_into().ok()?;
        if &tag == b"CHNK" {
            let runs = u32_at(image, *at + 28)?.checked_mul(16)?;
            let len = CHUNK_HEAD
                .checked_add(runs)?
                .checked_add(u32_at(image, *at + 36)?)?;
            seal(image.get_mut(*at..at.checked_add(len)?)?, id, CHUNK_HEAD)?;
            *at += len;
        } else {
            let len = SECTION_HEAD.checked_add(u32_at(image, *at + 4)?)?;
            if &tag == b"INDX" {
                repeat_chunk_crcs(image, *at)?;
            }
            let crc = seal(image.get_mut(*at..at.checked_add(len)?)?, id, SECTION_HEAD)?;
            digest.update(&crc.to_le_bytes());
            *at += len;
        }
    }
    Some(())
}

/// Puts the CRC of each chunk into its entry of the index block at `block`.
fn repeat_chunk_crcs(image: &mut [u8], block: usize) -> Option<()> {
    let n = u32_at(image, block + SECTION_HEAD + 8)?;
    for i in 0..n {
        let entry = block + SECTION_HEAD + 16 + i * 40;
        let chunk: [u8; 8] = image.get(entry..entry + 8)?.try_into().ok()?;
        let chunk = usize::try_from(u64::from_le_bytes(chunk)).ok()?;
        let crc = u32_at(image, chunk.checked_add(44)?)?;
        put(image, entry + 32, crc as u32)?;
    }
    Some(())
}

/// Seals a part whose head is `head` bytes long and ends with the CRC.
fn seal(part: &mut [u8], id: &[u8; 16], head: usize) -> Option<u32> {
    let mut crc = seeded(id);
    crc.update(part.get(..head - 4)?);
    crc.update(part.get(head..)?);
    let crc = crc.finalize();
    put(part, head - 4, crc)?;
    Some(crc)
}

fn seeded(id: &[u8; 16]) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id);
    hasher
}

fn u32_at(image: &[u8], at: usize) -> Option<usize> {
    let bytes = image.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

fn put(image: &mut [u8], at: usize, value: u32) -> Option<()> {
    image
        .get_mut(at..at.checked_add(4)?)?
        .copy_from_slice(&value.to_le_bytes());
    Some(())
}
