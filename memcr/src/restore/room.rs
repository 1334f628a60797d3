//! Whether what is to come back finds room: the OOM killer would make it otherwise, and may
//! take the target for it.

use memcr_plugin_api::ram;

use crate::pipeline::OpenImage;
use crate::sys::procfs;

/// RAM is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "what is missing of its memory are {} MiB, and no more than {} MiB can be had for it",
    .needed_bytes.div_ceil(1 << 20),
    .room_bytes >> 20
)]
pub struct NoRoom {
    /// What is to come back, bytes.
    pub needed_bytes: u64,
    /// What the machine and the cgroups of the target have for it, bytes.
    pub room_bytes: u64,
}

/// Looks whether what `image` holds of process `pid`, and it has not yet, finds room.
///
/// # Errors
/// When it does not.
pub(crate) fn expect_room(pid: i32, image: &OpenImage) -> Result<(), NoRoom> {
    let needed_bytes = image
        .facts()
        .raw_bytes
        .saturating_sub(procfs::rss_bytes(pid));
    let room_bytes = ram::obtainable_by(pid.cast_unsigned());
    match needed_bytes <= room_bytes {
        true => Ok(()),
        false => Err(NoRoom {
            needed_bytes,
            room_bytes,
        }),
    }
}
