//! Checks with damaged frames and wrong buffers: a stage that reads an image reads
//! whatever somebody wrote there.

use super::Subject;
use super::coder::{Stored, decode, decode_all, encode_all};
use super::content::{self, Piece};
use crate::abi::{capability, code, kind};
use crate::export::{Answer, Handle, Worker};

/// How many bits of a frame are flipped, one at a time, spread over its length.
const N_FLIPS: usize = 150;

pub(super) fn check(subject: &Subject) {
    let pieces = content::short();
    let Some(handle) = subject.create() else {
        return;
    };
    let Some(stored) = encode_all(subject, &handle, &pieces, 10) else {
        return;
    };
    let hostile = Hostile {
        subject,
        handle: &handle,
        pieces: &pieces,
        stored: &stored,
    };
    hostile.small_output_buffers();
    hostile.damaged_frames();
    hostile.foreign_aad();
    hostile.damaged_trailers();
    hostile.damaged_states();
    let again = "decode of good frames after damaged ones";
    decode_all(subject, &handle, &pieces, &stored, 0..pieces.len(), again);
}

struct Hostile<'a> {
    subject: &'a Subject,
    handle: &'a Handle<'a>,
    pieces: &'a [Piece],
    stored: &'a Stored,
}

impl Hostile<'_> {
    /// The stage has promised to notice every change.
    fn must_notice(&self) -> bool {
        self.subject.loaded.table().kind == kind::CHECKSUM
            || self.subject.has(capability::AUTHENTICATES)
    }

    /// The chunks that can be tried alone: without independence only the first can.
    fn chunks(&self) -> impl Iterator<Item = (&Piece, &Vec<u8>)> {
        let n = if self.subject.has(capability::INDEPENDENT_CHUNKS) {
            self.pieces.len()
        } else {
            1
        };
        let frames = self.pieces.iter().zip(&self.stored.frames).take(n);
        frames.filter_map(|(piece, frame)| Some((piece, frame.as_ref()?)))
    }

    /// Whatever the last attempt did to the handle, it is to decode chunk 0 next.
    fn begin(&self) -> Option<()> {
        let begun = self
            .handle
            .begin_decode(&self.stored.image, &self.stored.state);
        self.subject.expect("begin_decode", begun)
    }

    /// One worker for all attempts: damage must not spoil it either.
    fn worker(&self) -> Option<Worker<'_>> {
        self.subject.expect("worker_create", self.handle.worker())
    }

    /// Encodes to every kind of buffer that is too small; the calls are watched.
    fn small_output_buffers(&self) -> Option<()> {
        for piece in self.pieces {
            let bound = self.handle.bound(piece.bytes.len());
            for cap in [0, 1, bound / 2, bound.saturating_sub(1)] {
                // A handle of its own each time: it is left in the middle of an image.
                let handle = self.subject.create()?;
                let image = content::image(self.pieces, 11);
                self.subject
                    .expect("begin_encode", handle.begin_encode(&image))?;
                let mut worker = self.subject.expect("worker_create", handle.worker())?;
                let _ = handle.encode(&mut worker, &piece.chunk, &piece.bytes, cap.min(bound));
            }
        }
        Some(())
    }

    fn damaged_frames(&self) -> Option<()> {
        let mut worker = self.worker()?;
        for (piece, frame) in self.chunks() {
            for (damage, frame) in damages(frame) {
                self.begin()?;
                let answer = decode(self.subject, self.handle, &mut worker, piece, &frame);
                self.judge(&format!("{} with {damage}", piece.name), piece, answer);
            }
            self.wrong_lengths(&mut worker, piece, frame)?;
        }
        Some(())
    }

    /// Transform: buffers that are too small. Checksum: input that was changed.
    fn wrong_lengths(&self, worker: &mut Worker<'_>, piece: &Piece, frame: &[u8]) -> Option<()> {
        let len = piece.bytes.len();
        if self.subject.loaded.table().kind == kind::CHECKSUM {
            for (damage, bytes) in damages(&piece.bytes) {
                self.begin()?;
                let answer = self
                    .handle
                    .check(worker, &piece.chunk, &bytes, frame)
                    .map(|()| bytes);
                self.judge(
                    &format!("{}, themselves with {damage}", piece.name),
                    piece,
                    answer,
                );
            }
            return Some(());
        }
        for cap in [0, len / 2, len.saturating_sub(1)]
            .into_iter()
            .filter(|&cap| cap < len)
        {
            self.begin()?;
            if self.handle.decode(worker, &piece.chunk, frame, cap).is_ok() {
                let name = &piece.name;
                self.subject.notice(format!(
                    "decode of {name} to a buffer of {cap} bytes did not fail"
                ));
            }
        }
        Some(())
    }

    fn judge(&self, what: &str, piece: &Piece, answer: Answer<Vec<u8>>) {
        match answer {
            Ok(_) if self.must_notice() => {
                self.subject.notice(format!("decode did not notice {what}"));
            }
            Ok(bytes) if bytes.len() > piece.bytes.len() => {
                self.subject.notice(format!(
                    "decode of {what} gave more bytes than can be right"
                ));
            }
            Err(failed)
                if self.must_notice()
                    && !matches!(failed.code, code::CORRUPT | code::WRONG_KEY) =>
            {
                let (code, message) = (failed.code, failed.message);
                self.subject.notice(format!(
                    "decode of {what} answered {code}, not CORRUPT: {message}"
                ));
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Data that is authenticated beside the frame must be the same again.
    fn foreign_aad(&self) -> Option<()> {
        if !self.subject.has(capability::AUTHENTICATES) {
            return Some(());
        }
        let mut worker = self.worker()?;
        for (piece, frame) in self.chunks() {
            for (damage, aad) in damages(&piece.chunk.aad).into_iter().take(20) {
                let mut other = piece.clone();
                other.chunk.aad = aad;
                self.begin()?;
                let answer = decode(self.subject, self.handle, &mut worker, &other, frame);
                self.judge(
                    &format!("{}, its associated data with {damage}", piece.name),
                    piece,
                    answer,
                );
            }
        }
        Some(())
    }

    fn damaged_trailers(&self) -> Option<()> {
        if self.stored.trailer.is_empty() {
            return Some(());
        }
        let mut worker = self.worker()?;
        for (damage, trailer) in damages(&self.stored.trailer) {
            self.begin()?;
            for (piece, frame) in self.pieces.iter().zip(&self.stored.frames) {
                let Some(frame) = frame else { continue };
                decode(self.subject, self.handle, &mut worker, piece, frame).ok()?;
            }
            match self
                .handle
                .finish_decode(self.pieces.len() as u64, &trailer)
            {
                Ok(()) => self.subject.notice(format!(
                    "finish_decode did not notice a trailer with {damage}"
                )),
                Err(failed) if !matches!(failed.code, code::CORRUPT | code::WRONG_KEY) => {
                    let (code, message) = (failed.code, failed.message);
                    self.subject.notice(format!("finish_decode of a trailer with {damage} answered {code}, not CORRUPT: {message}"));
                }
                Err(_) => {}
            }
        }
        Some(())
    }

    /// A damaged state may be refused or survived, but an authenticating stage must not
    /// give out other bytes because of it.
    fn damaged_states(&self) -> Option<()> {
        for (damage, state) in damages(&self.stored.state) {
            // A handle of its own: a state it cannot use may leave it without one.
            let handle = self.subject.create()?;
            if handle.begin_decode(&self.stored.image, &state).is_err() {
                continue;
            }
            let mut worker = self.subject.expect("worker_create", handle.worker())?;
            for (piece, frame) in self.chunks() {
                let answer = decode(self.subject, &handle, &mut worker, piece, frame);
                if self.must_notice() && answer.is_ok_and(|bytes| bytes != piece.bytes) {
                    self.subject.notice(format!(
                        "decode under a state with {damage} gave out other bytes"
                    ));
                }
            }
        }
        Some(())
    }
}

/// `whole` cut, lengthened, with one bit flipped, and something else altogether.
fn damages(whole: &[u8]) -> Vec<(String, Vec<u8>)> {
    let len = whole.len();
    let mut damaged = Vec::new();
    for cut in [
        0,
        1,
        len / 3,
        len / 2,
        len.saturating_sub(2),
        len.saturating_sub(1),
    ] {
        damaged.push((
            format!("only its first {cut} bytes"),
            whole[..cut.min(len)].to_vec(),
        ));
    }
    damaged.push(("a byte more at its end".into(), [whole, &[0]].concat()));
    damaged.push((
        "random bytes instead".into(),
        content::random(len.max(16), 99),
    ));
    damaged.push(("all bits set instead".into(), vec![0xff; len.max(16)]));
    let n_bits = len * 8;
    for bit in (0..n_bits).step_by((n_bits / N_FLIPS).max(1)) {
        let mut flipped = whole.to_vec();
        // Not always the same bit of a byte, where the step is a multiple of eight.
        let bit = (bit + bit / 8 % 8) % n_bits;
        flipped[bit / 8] ^= 1 << (bit % 8);
        damaged.push((format!("bit {bit} flipped"), flipped));
    }
    damaged.retain(|(_, bytes)| bytes != whole);
    damaged
}
