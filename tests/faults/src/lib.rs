//! The stage that fails on demand: named faults in every call that memcr makes.
//!
//! | `fault`         | what happens                                                      |
//! |-----------------|-------------------------------------------------------------------|
//! | `none`          | bytes go through unchanged                                        |
//! | `create`        | the stage cannot be made                                          |
//! | `begin`         | `begin_encode` fails                                              |
//! | `encode`        | `encode` of chunk `at` fails                                      |
//! | `encode_panic`  | it panics                                                         |
//! | `encode_abort`  | it takes the process down                                         |
//! | `encode_hang`   | it does not come back                                             |
//! | `encode_wrong`  | it encodes other bytes and says nothing                           |
//! | `encode_short`  | it leaves the last byte out                                       |
//! | `encode_long`   | it adds a byte                                                    |
//! | `finish`        | `finish_encode` fails                                             |
//! | `decode`        | `decode` of chunk `at` fails with an I/O error                    |
//! | `decode_panic`  | it panics                                                         |
//! | `decode_wrong`  | it answers other bytes and says nothing                           |
//! | `decode_short`  | it answers fewer bytes                                            |
//! | `decode_long`   | it says that it wrote more than there is room for                 |
//! | `decode_hang`   | it does not come back                                             |
//! | `decode_abort`  | it takes the process down                                         |

use memcr_plugin_api::abi::{capability, code};
use memcr_plugin_api::stage::{
    Chunk, Encoded, Image, ParamKind, ParamSpec, Params, Result, StageError, StageInfo, Threads,
    Transform,
};
use memcr_plugin_api::{Host, register_stage};

register_stage!(transform: Faulty);

struct Faulty {
    fault: String,
    at: u64,
}

impl Faulty {
    /// Whether `fault` is the one asked for, and its chunk has come.
    fn strikes(&self, fault: &str, chunk: &Chunk<'_>) -> bool {
        self.fault == fault && chunk.index >= self.at
    }

    /// Does not come back.
    fn hang_if(&self, fault: &str, chunk: &Chunk<'_>) {
        while self.strikes(fault, chunk) {
            std::thread::park();
        }
    }

    fn failure(&self) -> StageError {
        StageError::new(code::IO, format!("fault `{}` was asked for", self.fault))
            .hint("ask for another fault")
    }
}

/// All that a healthy stage of this kind does.
fn copy(input: &[u8], out: &mut [u8]) -> Result<usize> {
    let (len, cap) = (input.len(), out.len());
    let Some(out) = out.get_mut(..len) else {
        let message = format!("a frame of {len} bytes decodes to {cap} at the most");
        return Err(StageError::new(code::CORRUPT, message));
    };
    out.copy_from_slice(input);
    Ok(len)
}

impl Transform for Faulty {
    type Worker = ();

    const INFO: StageInfo = StageInfo {
        name: "faulty",
        version: env!("CARGO_PKG_VERSION"),
        summary: "fails on demand, for tests",
        threads: Threads::Parallel,
        capabilities: capability::INDEPENDENT_CHUNKS,
        params: &[
            ParamSpec {
                name: "fault",
                kind: ParamKind::String,
                default: Some("none"),
                required: false,
                // Of this run, not of the image: another memcr may fail in another way.
                recorded: false,
                help: "which fault",
            },
            ParamSpec {
                name: "at",
                kind: ParamKind::Integer {
                    min: 0,
                    max: i64::MAX,
                },
                default: Some("0"),
                required: false,
                recorded: false,
                help: "index of the first chunk it strikes",
            },
        ],
    };

    fn create(params: &Params, _: Host) -> Result<Self> {
        let stage = Self {
            fault: params.get("fault").unwrap_or("none").to_owned(),
            at: params.parse("at")?.unwrap_or(0),
        };
        if stage.fault == "create" {
            return Err(stage.failure());
        }
        Ok(stage)
    }

    fn worker(&self) -> Result<()> {
        Ok(())
    }

    fn begin_encode(&self, _: &Image) -> Result<Vec<u8>> {
        if self.fault == "begin" {
            return Err(self.failure());
        }
        Ok(Vec::new())
    }

    fn bound(&self, in_len: usize) -> usize {
        in_len + usize::from(self.fault == "encode_long")
    }

    fn encode(
        &self,
        _: &mut (),
        chunk: &Chunk<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Encoded> {
        if self.strikes("encode", chunk) {
            return Err(self.failure());
        }
        if self.strikes("encode_panic", chunk) {
            panic!("asked to panic at chunk {}", chunk.index);
        }
        if self.strikes("encode_abort", chunk) {
            std::process::abort();
        }
        self.hang_if("encode_hang", chunk);
        let mut len = copy(input, out)?;
        if self.strikes("encode_wrong", chunk)
            && let Some(byte) = out[..len].first_mut()
        {
            *byte ^= 1;
        }
        if self.strikes("encode_short", chunk) {
            len = len.saturating_sub(1);
        }
        if self.strikes("encode_long", chunk) {
            out[len] = 0x5a;
            len += 1;
        }
        Ok(Encoded::Len(len))
    }

    fn decode(&self, _: &mut (), chunk: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        if self.strikes("decode", chunk) {
            return Err(self.failure());
        }
        if self.strikes("decode_panic", chunk) {
            panic!("asked to panic at chunk {}", chunk.index);
        }
        if self.strikes("decode_abort", chunk) {
            std::process::abort();
        }
        self.hang_if("decode_hang", chunk);
        let len = copy(input, out)?;
        if self.strikes("decode_short", chunk) {
            return Ok(len.saturating_sub(1));
        }
        if self.strikes("decode_long", chunk) {
            return Ok(out.len() + 1);
        }
        if self.strikes("decode_wrong", chunk)
            && let Some(byte) = out[..len].last_mut()
        {
            *byte ^= 1;
        }
        Ok(len)
    }

    fn finish_encode(&self, _: u64) -> Result<Vec<u8>> {
        if self.fault == "finish" {
            return Err(self.failure());
        }
        Ok(Vec::new())
    }
}
