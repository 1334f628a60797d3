//! One image as one file in one directory: what the sinks `file` and `tmpfs` share.
//!
//! ```text
//!            Directory::open      the place; free space, replaceable name
//!                   │
//!   room::check ────┤             refuses what cannot fit, while the target runs
//!   Reserve ────────┤             the same for RAM, here and at every write, if it takes some
//!                   ▼
//!        ImageFile::create        O_TMPFILE: no name, so nobody finds it and a crash
//!                   │             leaves nothing (elsewhere a hidden temporary name)
//!   write_at, any order, any thread ──▶ Ahead: blocks for it
//!                   │               ──▶ WriteOut: to the disk and out of the page cache
//!                   │
//!                commit           exact length, then pages-PID.img, in one step
//!                   │
//!   ImageFile::open ┴─▶ read_at ──▶ remove    unlinks the name only if it still is ours
//! ```
//!
//! The descriptor stays open from `create` to `remove`: whatever happens to the name
//! meanwhile, the bytes of a held target can be read back.

mod ahead;
mod directory;
mod existing;
mod image_file;
mod make;
mod reserve;
pub mod room;
mod sweep;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod write_out;

pub use directory::{Directory, Medium};
pub use image_file::ImageFile;
pub use reserve::Reserve;
pub use write_out::{Cache, wait_for_disk};
