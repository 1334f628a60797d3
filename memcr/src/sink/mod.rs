//! The sink side: the format of an image, reading it back.

mod error;
mod inspect;
mod meta;

pub use error::ImageError;
pub use inspect::{ImageFacts, ImageSummary, StageSummary, inspect};
pub use meta::{ImageMeta, Protection, TargetIdentity, VmaRecord, VmaTable};
