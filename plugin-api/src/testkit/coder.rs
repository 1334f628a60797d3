//! Checks of transforms and checksums: what goes in comes out.

use std::collections::HashSet;
use std::sync::Mutex;

use super::Subject;
use super::content::{self, Piece};
use crate::abi::{MAX_GROWTH, MAX_TAG_LEN, capability, kind, threads};
use crate::export::{Answer, Handle, Worker};
use crate::stage::Image;

pub(super) fn check(subject: &Subject) {
    let pieces = content::all();
    check_bound(subject, &pieces);
    check_round_trips(subject, &pieces);
    check_claims(subject, &pieces);
    let threads = subject.loaded.table().threads;
    if threads == threads::PARALLEL && subject.has(capability::INDEPENDENT_CHUNKS) {
        check_workers(subject, &pieces);
    }
    if threads != threads::SERIAL {
        check_handles(subject);
    }
}

/// An image as a stage has encoded it.
pub(super) struct Stored {
    pub(super) image: Image,
    pub(super) state: Vec<u8>,
    /// By chunk: the frame of a transform, the tag of a checksum; `None` when passed over.
    pub(super) frames: Vec<Option<Vec<u8>>>,
    pub(super) trailer: Vec<u8>,
}

/// Encodes `pieces` as one image, one after the other.
pub(super) fn encode_all(
    subject: &Subject,
    handle: &Handle<'_>,
    pieces: &[Piece],
    n: u8,
) -> Option<Stored> {
    let image = content::image(pieces, n);
    let state = subject.expect("begin_encode", handle.begin_encode(&image))?;
    let mut worker = subject.expect("worker_create", handle.worker())?;
    let mut frames = Vec::new();
    for piece in pieces {
        frames.push(encode(subject, handle, &mut worker, piece)?);
    }
    let trailer = subject.expect("finish_encode", handle.finish_encode(pieces.len() as u64))?;
    Some(Stored {
        image,
        state,
        frames,
        trailer,
    })
}

/// Decodes chunk `i`; for a checksum, checks it and answers the bytes themselves.
pub(super) fn decode(
    subject: &Subject,
    handle: &Handle<'_>,
    worker: &mut Worker<'_>,
    piece: &Piece,
    frame: &[u8],
) -> Answer<Vec<u8>> {
    if subject.loaded.table().kind == kind::CHECKSUM {
        return handle
            .check(worker, &piece.chunk, &piece.bytes, frame)
            .map(|()| piece.bytes.clone());
    }
    handle.decode(worker, &piece.chunk, frame, piece.bytes.len())
}

/// Decodes all chunks in `order` and compares them with what they were made from.
pub(super) fn decode_all(
    subject: &Subject,
    handle: &Handle<'_>,
    pieces: &[Piece],
    stored: &Stored,
    order: impl Iterator<Item = usize>,
    doing: &str,
) -> Option<()> {
    subject.expect(doing, handle.begin_decode(&stored.image, &stored.state))?;
    let mut worker = subject.expect("worker_create", handle.worker())?;
    for i in order {
        let Some(frame) = &stored.frames[i] else {
            continue;
        };
        let doing = format!("{doing}: {}", pieces[i].name);
        let bytes = subject.expect(
            &doing,
            decode(subject, handle, &mut worker, &pieces[i], frame),
        )?;
        if bytes != pieces[i].bytes {
            subject.notice(format!("{doing}: other bytes come out than went in"));
        }
    }
    let finished = handle.finish_decode(pieces.len() as u64, &stored.trailer);
    subject.expect(&format!("{doing}: finish_decode"), finished)
}

fn encode(
    subject: &Subject,
    handle: &Handle<'_>,
    worker: &mut Worker<'_>,
    piece: &Piece,
) -> Option<Option<Vec<u8>>> {
    let cap = handle.bound(piece.bytes.len());
    let answer = handle.encode(worker, &piece.chunk, &piece.bytes, cap);
    let frame = subject.expect(&format!("encode of {}", piece.name), answer)?;
    let is_tag = subject.loaded.table().kind == kind::CHECKSUM;
    if is_tag && frame.as_ref().is_some_and(|tag| tag.len() != cap) {
        subject.notice(format!(
            "the tag of {} is shorter than bound says",
            piece.name
        ));
    }
    Some(frame)
}

fn check_bound(subject: &Subject, pieces: &[Piece]) -> Option<()> {
    let handle = subject.create()?;
    let lengths = pieces.iter().map(|piece| piece.bytes.len());
    let bounds: Vec<_> = lengths.map(|len| (len, handle.bound(len))).collect();
    if subject.loaded.table().kind == kind::CHECKSUM {
        let tag_len = handle.bound(0);
        if bounds.iter().any(|&(_, bound)| bound != tag_len)
            || !(1..=MAX_TAG_LEN).contains(&tag_len)
        {
            subject.notice(format!(
                "bound of a checksum must be one length in 1..={MAX_TAG_LEN}"
            ));
        }
        return Some(());
    }
    for (len, bound) in bounds {
        if bound > 2 * len + MAX_GROWTH {
            subject.notice(format!(
                "bound of {len} bytes is {bound}, more than twice that and {MAX_GROWTH}"
            ));
        }
    }
    Some(())
}

fn check_round_trips(subject: &Subject, pieces: &[Piece]) -> Option<()> {
    let handle = subject.create()?;
    let stored = encode_all(subject, &handle, pieces, 1)?;
    let forward = || 0..pieces.len();
    decode_all(
        subject,
        &handle,
        pieces,
        &stored,
        forward(),
        "decode on the same handle",
    )?;
    if subject.has(capability::INDEPENDENT_CHUNKS) {
        let backward = forward().rev();
        decode_all(
            subject,
            &handle,
            pieces,
            &stored,
            backward,
            "decode from the last chunk",
        )?;
    }
    let fresh = subject.create()?;
    decode_all(
        subject,
        &fresh,
        pieces,
        &stored,
        forward(),
        "decode on a fresh handle",
    )?;
    // A handle is used for more than one image: state of the first must not show.
    let second = encode_all(subject, &handle, pieces, 2)?;
    drop(handle);
    decode_all(
        subject,
        &fresh,
        pieces,
        &second,
        forward(),
        "decode of a second image",
    )
}

/// What a capability promises must be seen in what comes out.
fn check_claims(subject: &Subject, pieces: &[Piece]) -> Option<()> {
    let handle = subject.create()?;
    let one = encode_all(subject, &handle, pieces, 3)?;
    let other = encode_all(subject, &handle, pieces, 4)?;
    for (i, piece) in pieces
        .iter()
        .enumerate()
        .filter(|(_, piece)| piece.bytes.len() >= 4096)
    {
        let frame = one.frames[i].as_deref();
        if subject.has(capability::COMPRESSES)
            && piece.bytes.iter().all(|&byte| byte == 0)
            && frame.is_none_or(|frame| frame.len() >= piece.bytes.len())
        {
            subject.notice(format!(
                "the stage says it compresses, but not {}",
                piece.name
            ));
        }
        if subject.has(capability::ENCRYPTS) {
            if frame.is_some_and(|frame| shows(frame, &piece.bytes)) {
                subject.notice(format!(
                    "the stage says it encrypts, but shows {}",
                    piece.name
                ));
            }
            if one.frames[i] == other.frames[i] {
                subject.notice(format!("two images hold the same frame of {}", piece.name));
            }
        }
    }
    Some(())
}

/// Whether `bytes` can be seen in `frame`: a stretch of them as it is, or the sameness of
/// zeros in blocks that are the same.
fn shows(frame: &[u8], bytes: &[u8]) -> bool {
    if bytes.iter().all(|&byte| byte == 0) {
        let mut blocks = HashSet::new();
        return !frame.chunks_exact(16).all(|block| blocks.insert(block));
    }
    let middle = bytes.len() / 2;
    let stretch = &bytes[middle..middle + 32];
    frame.windows(stretch.len()).any(|window| window == stretch)
}

/// Several workers on one handle, each with every fourth chunk.
fn check_workers(subject: &Subject, pieces: &[Piece]) -> Option<()> {
    let handle = subject.create()?;
    let image = content::image(pieces, 5);
    let state = subject.expect("begin_encode", handle.begin_encode(&image))?;
    let frames = Mutex::new(vec![None; pieces.len()]);
    let workers = share(subject, &handle, pieces, |worker, i| {
        if let Some(frame) = encode(subject, &handle, worker, &pieces[i]) {
            // Nobody panics while holding the lock.
            frames.lock().map(|mut frames| frames[i] = frame).ok();
        }
    });
    workers?;
    let trailer = subject.expect("finish_encode", handle.finish_encode(pieces.len() as u64))?;
    let frames = frames.into_inner().ok()?;
    let stored = Stored {
        image,
        state,
        frames,
        trailer,
    };
    decode_all(
        subject,
        &handle,
        pieces,
        &stored,
        0..pieces.len(),
        "decode of what several workers encoded",
    )?;

    subject.expect(
        "begin_decode",
        handle.begin_decode(&stored.image, &stored.state),
    )?;
    share(subject, &handle, pieces, |worker, i| {
        let Some(frame) = &stored.frames[i] else {
            return;
        };
        let doing = format!("decode by several workers: {}", pieces[i].name);
        let bytes = subject.expect(&doing, decode(subject, &handle, worker, &pieces[i], frame));
        if bytes.is_some_and(|bytes| bytes != pieces[i].bytes) {
            subject.notice(format!("{doing}: other bytes come out than went in"));
        }
    })?;
    let finished = handle.finish_decode(pieces.len() as u64, &stored.trailer);
    subject.expect("finish_decode after several workers", finished)
}

fn share(
    subject: &Subject,
    handle: &Handle<'_>,
    pieces: &[Piece],
    work: impl Fn(&mut Worker<'_>, usize) + Sync,
) -> Option<()> {
    const N_WORKERS: usize = 4;
    let mut workers = Vec::new();
    for _ in 0..N_WORKERS {
        workers.push(subject.expect("worker_create", handle.worker())?);
    }
    std::thread::scope(|scope| {
        for (first, mut worker) in workers.into_iter().enumerate() {
            let work = &work;
            scope.spawn(move || {
                // From the back, so that no order of the chunks comes about by chance.
                for i in (first..pieces.len()).step_by(N_WORKERS).rev() {
                    work(&mut worker, i);
                }
            });
        }
    });
    Some(())
}

/// Several handles at once, each with an image of its own.
fn check_handles(subject: &Subject) {
    let pieces = &content::short();
    std::thread::scope(|scope| {
        for n in 0..3 {
            scope.spawn(move || {
                let handle = subject.create()?;
                let stored = encode_all(subject, &handle, pieces, 6 + n)?;
                let doing = "decode beside other handles";
                decode_all(subject, &handle, pieces, &stored, 0..pieces.len(), doing)
            });
        }
    });
}
