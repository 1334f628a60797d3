//! Whether what is to come back finds room: the OOM killer would make it otherwise, and may
//! take the target for it.

use memcr_plugin_api::ram;

use crate::pipeline::OpenImage;
use crate::session::journal::{Record, State};
use crate::sys::procfs;

/// RAM is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} MiB of its memory are missing, and no more than {} MiB can be had for it",
    .needed_bytes.div_ceil(1 << 20),
    .room_bytes >> 20
)]
pub struct NoRoom {
    /// What is to come back, bytes.
    pub needed_bytes: u64,
    /// What the machine and the cgroups of the target have for it, bytes.
    pub room_bytes: u64,
}

/// Looks whether what `image` holds of the target of `record`, and it has not yet, finds room.
///
/// # Errors
/// When it does not.
pub(crate) fn expect_room(record: &Record, image: &OpenImage) -> Result<(), NoRoom> {
    let rss_bytes = procfs::rss_bytes(record.pid);
    let needed_bytes = needed_bytes(record, image.facts().raw_bytes, rss_bytes);
    let room_bytes = ram::obtainable_by(record.pid.cast_unsigned());
    match needed_bytes <= room_bytes {
        true => Ok(()),
        false => Err(NoRoom {
            needed_bytes,
            room_bytes,
        }),
    }
}

/// How much is still to come back, of an image of `raw_bytes` (zeros take no room, and are not
/// among them), when `rss_bytes` are resident.
///
/// Most of what is resident never left: shared memory, pages of files, what is locked. So only
/// what came on top since it was held is back already. Of a drop that nobody has finished,
/// what it left is not known: what is missing then is what was resident before.
fn needed_bytes(record: &Record, raw_bytes: u64, rss_bytes: u64) -> u64 {
    let is_known = record.state != State::Dropping && record.rss_held_bytes > 0;
    if is_known {
        raw_bytes.saturating_sub(rss_bytes.saturating_sub(record.rss_held_bytes))
    } else {
        raw_bytes.min(record.rss_before_bytes.saturating_sub(rss_bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pipeline::PipelineSpec;

    const MIB: u64 = 1 << 20;

    fn needed(state: State, before: u64, held: u64, raw: u64, now: u64) -> u64 {
        let spec = PipelineSpec::default();
        let mut record = Record::begin(std::process::id().cast_signed(), &spec).unwrap();
        record.state = state;
        record.rss_before_bytes = before * MIB;
        record.rss_held_bytes = held * MIB;
        needed_bytes(&record, raw * MIB, now * MIB) / MIB
    }

    #[test]
    fn what_never_left_is_not_back() {
        assert_eq!(needed(State::Held, 600, 300, 300, 300), 300);
        assert_eq!(needed(State::Held, 600, 300, 300, 280), 300, "files left");
        assert_eq!(needed(State::Restoring, 600, 300, 300, 500), 100);
        assert_eq!(needed(State::Restoring, 600, 300, 300, 700), 0);
        assert_eq!(needed(State::Held, 400, 300, 300, 300), 300, "from swap");
    }

    #[test]
    fn what_a_drop_has_left_is_not_missing() {
        assert_eq!(needed(State::Dropping, 600, 0, 300, 500), 100);
        assert_eq!(needed(State::Dropping, 600, 500, 300, 550), 50, "parked");
        assert_eq!(needed(State::Dropping, 600, 0, 300, 250), 300);
        assert_eq!(needed(State::Restoring, 600, 0, 300, 550), 50);
    }
}
