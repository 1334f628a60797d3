//! Sick transforms: one stage that xors, with one fault at a time.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::super::{Conformance, Loaded};
use super::{finds, quietly};
use crate::Host;
use crate::abi::{capability, code};
use crate::stage::{
    Chunk, Encoded, Image, Params, Result, StageError, StageInfo, Threads, Transform,
};

/// Nothing is wrong with these two: the suite must find nothing.
const HEALTHY: u32 = 0;
const HEALTHY_WITH_TAG: u32 = 1;
/// Faults in what comes out.
const WRONG_BYTE: u32 = 2;
const SHORT_OUTPUT: u32 = 3;
const LYING_LENGTH: u32 = 4;
const BOUND_TOO_SMALL: u32 = 5;
const PASSES: u32 = 6;
/// Faults in what is kept between calls.
const KEY_ONLY_IN_HANDLE: u32 = 7;
const FIRST_IMAGE_ONLY: u32 = 8;
const NEEDS_ORDER: u32 = 9;
const ONE_SCRATCH_FOR_ALL: u32 = 10;
const SPOILT_BY_DAMAGE: u32 = 11;
const LONG_STATE: u32 = 12;
/// Promises that are not kept.
const CLAIMS_COMPRESSION: u32 = 13;
const CLAIMS_ENCRYPTION: u32 = 14;
const CLAIMS_AUTHENTICATION: u32 = 15;
const TAKES_ANY_AAD: u32 = 16;
const IGNORES_TRAILER: u32 = 17;
/// Faults in how it fails.
const PANICS_WHEN_EMPTY: u32 = 18;
const WRONG_CODE: u32 = 19;
const GREEDY_BOUND: u32 = 20;

/// Xors with a key that it puts into the state; its trailer is the number of chunks.
#[derive(Default)]
struct Sick<const FAULT: u32> {
    key: AtomicU64,
    images: AtomicU64,
    decoded: AtomicU64,
    spoilt: AtomicU64,
    scratch: Mutex<Vec<u8>>,
}

impl<const FAULT: u32> Sick<FAULT> {
    const HAS_TAG: bool = matches!(FAULT, HEALTHY_WITH_TAG | TAKES_ANY_AAD | WRONG_CODE);

    fn loaded() -> Loaded {
        Loaded::of(|cell| cell.transform::<Self>())
    }
}

impl<const FAULT: u32> Transform for Sick<FAULT> {
    type Worker = ();
    const INFO: StageInfo = StageInfo {
        name: "sick",
        version: "1",
        summary: "has one fault",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS
            | match FAULT {
                CLAIMS_COMPRESSION => capability::COMPRESSES,
                CLAIMS_ENCRYPTION => capability::ENCRYPTS,
                CLAIMS_AUTHENTICATION => capability::AUTHENTICATES,
                _ if Self::HAS_TAG => capability::AUTHENTICATES,
                _ => 0,
            },
        params: &[],
    };

    fn create(_: &Params, _: Host) -> Result<Self> {
        Ok(Self::default())
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn begin_encode(&self, image: &Image) -> Result<Vec<u8>> {
        let key = image.id[0];
        if self.images.fetch_add(1, Relaxed) == 0 || FAULT != FIRST_IMAGE_ONLY {
            self.key.store(key.into(), Relaxed);
        }
        Ok(match FAULT {
            KEY_ONLY_IN_HANDLE => Vec::new(),
            LONG_STATE => vec![key; 5000],
            _ => vec![key],
        })
    }

    fn begin_decode(&self, _: &Image, state: &[u8]) -> Result<()> {
        if let (Some(&key), true) = (state.first(), FAULT != FIRST_IMAGE_ONLY) {
            self.key.store(key.into(), Relaxed);
        }
        self.decoded.store(0, Relaxed);
        Ok(())
    }

    fn bound(&self, in_len: usize) -> usize {
        match FAULT {
            BOUND_TOO_SMALL => in_len / 2,
            GREEDY_BOUND => 4 * in_len,
            _ if Self::HAS_TAG => in_len + size_of::<u64>(),
            _ => in_len,
        }
    }

    fn encode(
        &self,
        _: &mut (),
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        match FAULT {
            PANICS_WHEN_EMPTY if input.is_empty() => panic!("on purpose: nothing to encode"),
            LYING_LENGTH => return Ok(Encoded::Len(out.len() + 1)),
            PASSES => return Ok(Encoded::Pass),
            _ => {}
        }
        let mut frame = self.mixed(input);
        if Self::HAS_TAG {
            let tag = self.tag(chunk, &frame);
            frame.extend(tag);
        }
        put(&frame, out).map(Encoded::Len)
    }

    fn decode(&self, _: &mut (), chunk: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        if FAULT == NEEDS_ORDER && chunk.index != self.decoded.fetch_add(1, Relaxed) {
            return Err(StageError::new(code::INTERNAL, "chunks out of order"));
        }
        self.spoilt
            .fetch_or((input.len() > out.len()).into(), Relaxed);
        if FAULT == SPOILT_BY_DAMAGE && self.spoilt.load(Relaxed) != 0 {
            return Err(StageError::new(code::CORRUPT, "spoilt"));
        }
        let mut bytes = self.mixed(self.opened(chunk, input)?);
        if FAULT == WRONG_BYTE && bytes.len() == 12_345 {
            bytes[7] ^= 1;
        }
        let short = usize::from(FAULT == SHORT_OUTPUT && bytes.len() == 4096);
        put(&bytes[short..], out)
    }

    fn finish_encode(&self, n_chunks: u64) -> Result<Vec<u8>> {
        Ok(n_chunks.to_le_bytes().to_vec())
    }

    fn finish_decode(&self, n_chunks: u64, trailer: &[u8]) -> Result<()> {
        if trailer == n_chunks.to_le_bytes() || FAULT == IGNORES_TRAILER {
            return Ok(());
        }
        Err(StageError::new(code::CORRUPT, "the trailer does not fit"))
    }
}

impl<const FAULT: u32> Sick<FAULT> {
    fn mixed(&self, input: &[u8]) -> Vec<u8> {
        let key = self.key.load(Relaxed) as u8;
        let mut bytes: Vec<u8> = input.iter().map(|byte| byte ^ key).collect();
        if FAULT == ONE_SCRATCH_FOR_ALL {
            self.scratch.lock().unwrap().clone_from(&bytes);
            // The others' turn: several chunks are on their way, or the suite is wrong.
            for _ in 0..200 {
                std::thread::yield_now();
            }
            bytes.clone_from(&self.scratch.lock().unwrap());
        }
        bytes
    }

    /// Not one that keeps anybody out, but it differs when anything does.
    fn tag(&self, chunk: &Chunk<'_>, frame: &[u8]) -> [u8; 8] {
        let mut hasher = DefaultHasher::new();
        (self.key.load(Relaxed), frame).hash(&mut hasher);
        if FAULT != TAKES_ANY_AAD {
            chunk.aad.hash(&mut hasher);
        }
        hasher.finish().to_le_bytes()
    }

    /// The frame without its tag, if that fits.
    fn opened<'a>(&self, chunk: &Chunk<'_>, input: &'a [u8]) -> Result<&'a [u8]> {
        if !Self::HAS_TAG {
            return Ok(input);
        }
        match input.split_last_chunk() {
            Some((frame, tag)) if *tag == self.tag(chunk, frame) => Ok(frame),
            _ => {
                let code = if FAULT == WRONG_CODE {
                    code::IO
                } else {
                    code::CORRUPT
                };
                Err(StageError::new(code, "the tag does not fit"))
            }
        }
    }
}

fn put(bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let (len, cap) = (bytes.len(), out.len());
    out.get_mut(..len)
        .ok_or_else(|| StageError::new(code::BUFFER_TOO_SMALL, format!("{len} into {cap} bytes")))?
        .copy_from_slice(bytes);
    Ok(len)
}

/// Fails with a message of the kind that the interface does not want.
struct Wordy;

impl Transform for Wordy {
    type Worker = ();
    const INFO: StageInfo = StageInfo {
        name: "wordy",
        ..Sick::<HEALTHY>::INFO
    };
    fn create(_: &Params, _: Host) -> Result<Self> {
        Ok(Self)
    }
    fn worker(&self) -> Result<()> {
        Err(StageError::new(code::INTERNAL, "Sorry, this did not work."))
    }
    fn bound(&self, in_len: usize) -> usize {
        in_len
    }
    fn encode(&self, _: &mut (), _: &Chunk<'_>, _: &[u8], _: &mut [u8]) -> Result<Encoded> {
        Ok(Encoded::Len(0))
    }
    fn decode(&self, _: &mut (), _: &Chunk<'_>, _: &[u8], _: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
}

#[test]
fn nothing_is_wrong_with_a_healthy_stage() {
    Conformance::new(Sick::<HEALTHY>::loaded()).run();
    Conformance::new(Sick::<HEALTHY_WITH_TAG>::loaded()).run();
}

/// One test per fault, so that each has a name.
macro_rules! finds {
    ($($name:ident: $fault:ident, $words:literal;)*) => {$(
        #[test]
        fn $name() {
            let plugin = Sick::<$fault>::loaded();
            quietly(|| finds(stringify!($fault), plugin, $words));
        }
    )*};
}

finds! {
    a_wrong_byte: WRONG_BYTE, "other bytes come out than went in";
    a_missing_byte: SHORT_OUTPUT, "4096 zeros: other bytes come out";
    a_lying_length: LYING_LENGTH, "says it wrote 1 bytes to a buffer of 0";
    a_bound_that_is_too_small: BOUND_TOO_SMALL, "encode of 1 zeros failed with code -7";
    a_bound_that_no_buffer_is_made_for: GREEDY_BOUND, "bound of 1048576 bytes is 4194304";
    a_pass_without_compression: PASSES, "does not compress";
    a_key_that_only_the_handle_knows: KEY_ONLY_IN_HANDLE, "decode on a fresh handle: 1 zeros: other bytes";
    a_second_image_under_the_first_key: FIRST_IMAGE_ONLY, "decode of a second image: 1 zeros: other bytes";
    chunks_that_need_their_order: NEEDS_ORDER, "decode from the last chunk";
    workers_that_share_scratch_memory: ONE_SCRATCH_FOR_ALL, "several workers";
    a_stage_that_damage_spoils: SPOILT_BY_DAMAGE, "decode of good frames after damaged ones";
    a_state_that_is_too_long: LONG_STATE, "the state has 5000 bytes, the host takes 4096";
    compression_that_is_none: CLAIMS_COMPRESSION, "says it compresses, but not 4096 zeros";
    encryption_that_is_none: CLAIMS_ENCRYPTION, "says it encrypts, but shows";
    authentication_that_is_none: CLAIMS_AUTHENTICATION, "decode did not notice";
    a_tag_that_leaves_out_associated_data: TAKES_ANY_AAD, "its associated data with";
    a_trailer_that_nobody_checks: IGNORES_TRAILER, "did not notice a trailer";
    a_panic: PANICS_WHEN_EMPTY, "encode panicked: the plugin panicked: on purpose";
    damage_that_is_called_something_else: WRONG_CODE, "answered -3, not CORRUPT";
}

#[test]
fn a_message_with_a_full_stop() {
    let plugin = Loaded::of(|cell| cell.transform::<Wordy>());
    finds("Wordy", plugin, "is not one line without a full stop");
}
