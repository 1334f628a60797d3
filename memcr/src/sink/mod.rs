//! The image: its format, writing it, reading it back without trusting it.
//!
//! ```text
//!   pipeline(encode) ──frames⇒ ImageWriter ──bytes⇒ WriteImage (a sink plugin)
//!   pipeline(decode) ⇐frames── ImageReader ⇐bytes── ReadImage  (a sink plugin, a file, a vector)
//! ```
//!
//! | file | what |
//! |---|---|
//! | `layout` | the picture of an image; header, section heads, footer, limits |
//! | `frame` | a chunk's head and runs, an index entry |
//! | `recipe` | the pipeline as an image describes it |
//! | `meta` | the target and its VMA table |
//! | `write`, `read` | both directions |
//! | `landed`, `part` | an image that is being written: up to where it is, and reading that |
//! | `tile` | whether the parts lie one behind the other and add up |
//! | `inspect` | what an image says of itself, for people |
//!
//! The format is documented for users in `docs/image-format.md`, which is normative.

mod bytes;
mod error;
pub(crate) mod frame;
mod inspect;
mod landed;
pub(crate) mod layout;
mod meta;
mod part;
mod read;
pub(crate) mod recipe;
mod store;
mod tile;
mod write;

pub use error::ImageError;
pub use inspect::{ImageFacts, ImageSummary, StageSummary, inspect, inspect_source};
pub(crate) use inspect::{facts, hex};
pub use landed::Mark;
pub use meta::{ImageMeta, Protection, TargetIdentity, VmaRecord, VmaTable};
pub use read::ImageReader;
pub(crate) use read::{IndexCursor, read_id};
pub use store::{FileImage, ReadImage, WriteImage};
pub(crate) use write::ImageWriter;
