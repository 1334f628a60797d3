//! The pipeline: chunks of pages through stage plugins into a sink, and back.
//!
//! ```text
//!  PipelineSpec ─load─▶ Pipeline ─prepare_encode─▶ Encoder ─begin, push…, finish─▶ OpenImage
//!  "lz4,encrypt,file"   handles    open sink,         ▲ │                           │    │
//!                       checked    threads, buffers   │ └ abort, drop: image gone    │    └ remove
//!                          │                       frozen                            │
//!                          └─open_image(locator), open_file(path)──────────────────▶─┤
//!                                                                                    │
//!                         totals ◀─finish─ Decoder ◀─pass(class)…─ prepare_decode────┘
//! ```
//!
//! No call into a plugin is waited for without end: when nothing comes back for
//! [`PipelineSpec::stall_limit`] the work fails, and the thread is left behind.
//!
//! A chunk stays on one worker from the fetch to the write, hot in its cache; workers run
//! side by side; a full queue holds the caller back, so memory is bounded by chunks in
//! flight. Three kinds of threads: the caller (the tracer of a frozen target, on which no
//! plugin ever runs), the foreman (makes and ends handles, opens and commits), the
//! workers (encode, decode, write, read).
//!
//! | file | what |
//! |---|---|
//! | `chain` | what the user asked for, and what it became: [`Pipeline`] |
//! | `search`, `trust`, `whole`, `load` | find, check and load plugins; `load` is the only unsafe code |
//! | `describe`, `params`, `order` | what plugins say of themselves, and what is checked by it |
//! | `links` | the stages with their handles |
//! | `foreman`, `crew`, `queue` | threads: who does what, when it ends, who waits |
//! | `priority` | what they let go first |
//! | `calls` | who is waited for, and when not any longer |
//! | `bench`, `zero` | one worker's buffers, and the way of a chunk over them |
//! | `encode`, `shift`, `open`, `decode` | the two directions, and the committed image between them |
//! | `orphan` | what is left to another memcr |
//! | `watch`, `error` | how a caller stops and sees the work; what goes wrong |

mod bench;
mod calls;
mod chain;
mod crew;
mod decode;
mod describe;
mod encode;
mod error;
mod foreman;
mod links;
mod load;
mod open;
mod order;
mod orphan;
mod params;
mod priority;
mod queue;
mod search;
mod shift;
mod trust;
mod watch;
mod whole;
mod zero;

pub use calls::DEFAULT_STALL_LIMIT;
pub use chain::{DEFAULT_CHUNK_LEN, Pipeline, PipelineSpec, StageSpec};
pub(crate) use chain::{chunk_len, is_called, short_name};
pub use decode::{DecodeSetup, DecodeStats, Decoder};
pub use describe::{
    Door, LinkDescription, ParamDescription, ParamType, StageDescription, StageKind, ThreadModel,
};
pub(crate) use encode::Work;
pub use encode::{EncodeSetup, Encoder};
pub(crate) use error::causes;
pub use error::{LoadError, PipelineError, Place, Result};
pub(crate) use foreman::panic_text;
pub use load::Plugin;
pub use open::OpenImage;
pub use params::parse_size;
pub use priority::Priority;
pub use search::{FoundStage, SearchPath, find_all};
pub use watch::{Cancel, CancelReason, Progress};
