//! The pipeline: chunks of pages through stage plugins into a sink, and back.

mod bench;
mod chain;
mod crew;
mod decode;
mod describe;
mod encode;
mod error;
mod foreman;
mod links;
mod load;
mod order;
mod params;
mod queue;
mod search;
mod trust;
mod watch;
mod zero;

pub use chain::{DEFAULT_CHUNK_LEN, Pipeline, PipelineSpec, StageSpec};
pub use decode::{DecodeSetup, DecodeStats, Decoder, OpenImage};
pub use describe::{
    Door, LinkDescription, ParamDescription, ParamType, StageDescription, StageKind, ThreadModel,
};
pub use encode::{EncodeSetup, Encoder};
pub use error::{LoadError, PipelineError, Place, Result};
pub use load::Plugin;
pub use params::parse_size;
pub use search::{FoundStage, SearchPath, find_all};
pub use watch::{Cancel, CancelReason, Progress};
