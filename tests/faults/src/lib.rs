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
//! | `finish`        | `finish_encode` fails                                             |
//! | `decode`        | `decode` of chunk `at` fails with an I/O error                    |
//! | `decode_panic`  | it panics                                                         |
//! | `decode_wrong`  | it answers other bytes and says nothing                           |
//! | `decode_short`  | it answers fewer bytes                                            |
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

    fn failure(&self) -> StageError {
        StageError::new(code::IO, format!("fault `{}` was asked for", self.fault))
            .hint("ask for another fault")
    }
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
                recorded: true,
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
                recorded: true,
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
        in_len
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
        while self.strikes("encode_hang", chunk) {
            std::thread::park();
        }
        out[..input.len()].copy_from_slice(input);
        Ok(Encoded::Len(input.len()))
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
        out[..input.len()].copy_from_slice(input);
        if self.strikes("decode_short", chunk) {
            return Ok(input.len().saturating_sub(1));
        }
        if self.strikes("decode_wrong", chunk)
            && let Some(byte) = out[..input.len()].last_mut()
        {
            *byte ^= 1;
        }
        Ok(input.len())
    }

    fn finish_encode(&self, _: u64) -> Result<Vec<u8>> {
        if self.fault == "finish" {
            return Err(self.failure());
        }
        Ok(Vec::new())
    }
}
