//! RAM that stays free while an image is written into it.
//!
//! Pages of a tmpfs are charged to who writes them, and are RAM of the machine. Where that
//! ends, a write does not fail: the OOM killer comes, and may take the target.

use std::sync::atomic::{AtomicU64, Ordering};

use memcr_plugin_api::abi::code;
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Result, StageError};
use memcr_plugin_api::{Host, ram};

use crate::room;

/// Stays free while an image is written, bytes: what memcr itself and the rest of the
/// machine need to go on at all.
const USUAL: u64 = 16 << 20;
/// Bytes between two looks at the memory that is left: some 10 ms of writing, while a
/// look takes a tenth of a millisecond. Less where less is left: see [`next_look`].
const LOOK_EVERY: u64 = 32 << 20;
/// At least that many.
const LOOK_SOON: u64 = 1 << 20;

/// Watches the RAM that one image leaves.
#[derive(Debug)]
pub struct Reserve {
    /// To be left free, bytes.
    len_bytes: u64,
    written: AtomicU64,
    /// When so much is written, the memory that is left is looked at.
    look_at: AtomicU64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self::of(USUAL)
    }
}

impl Reserve {
    /// One of `len_bytes`.
    #[must_use]
    pub fn of(len_bytes: u64) -> Self {
        Self {
            len_bytes,
            written: AtomicU64::new(0),
            look_at: AtomicU64::new(0),
        }
    }

    /// Refuses an image for which there is too little RAM beside it, and warns of one for which
    /// there may be.
    ///
    /// # Errors
    /// `NO_SPACE`.
    pub fn check(&self, image: &NewImage, host: Host) -> Result<()> {
        let free_len = ram::available().saturating_sub(self.len_bytes);
        room::check("the RAM", free_len, image, host)
    }

    /// Fails when nothing but the reserve is left; `len` bytes are about to be written.
    ///
    /// # Errors
    /// `NO_SPACE`.
    pub fn write(&self, len: usize) -> Result<()> {
        let len = len as u64;
        let written = self.written.fetch_add(len, Ordering::Relaxed) + len;
        if written >= self.look_at.load(Ordering::Relaxed) {
            let left = self.look()?;
            self.look_at
                .store(written + next_look(left), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Answers how much is left beside the reserve.
    fn look(&self) -> Result<u64> {
        let available = ram::available();
        if let Some(left) = available.checked_sub(self.len_bytes) {
            return Ok(left);
        }
        let message = format!(
            "only {} of RAM are left, {} must stay free: the image does not fit",
            room::mib(available),
            room::mib(self.len_bytes)
        );
        let error = StageError::new(code::NO_SPACE, message);
        Err(error.hint("keep it on a disk, with the sink file"))
    }
}

/// How many bytes may be written until the memory that is left is looked at again: half of
/// what there is, so that the reserve is not written into unseen.
fn next_look(left: u64) -> u64 {
    (left / 2).clamp(LOOK_SOON, LOOK_EVERY)
}
