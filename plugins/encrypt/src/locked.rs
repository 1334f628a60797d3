//! Key bytes on a page of their own: not swapped out, not in a core dump, wiped at the end.
//!
//! The page comes from an anonymous mapping and not from the heap, because memory is
//! locked by the page: unlocking a key on the heap would unlock whatever lies beside it.
//! `memmap2` offers map, lock and advise as safe calls, so that this plugin has no
//! unsafe code of its own.
//!
//! Not covered: the key schedules that OpenSSL keeps inside its contexts. They live on
//! its heap, are overwritten when a context is freed, but can be swapped out.

use std::fmt;

use memcr_plugin_api::stage::{Result, StageError};
use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

/// A secret of fixed length.
pub(crate) struct LockedKey {
    page: MmapMut,
    len_bytes: usize,
    locked: bool,
}

impl LockedKey {
    /// A secret of `len_bytes`, written by `fill`; wiped at once when `fill` fails.
    pub(crate) fn new(
        len_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let page =
            MmapMut::map_anon(len_bytes).map_err(|e| StageError::io("get a page for a key", &e))?;
        // Locked before the secret is written, so that it never is on an unlocked page.
        // A refusal (RLIMIT_MEMLOCK 0) is the owner's to report: see `is_locked`.
        let locked = page.lock().is_ok();
        // Without this a crash of memcr would write the key to disk. Kernels that do not
        // know the advice also have no way to do better.
        let _ = page.advise(Advice::DontDump);
        let mut key = Self {
            page,
            len_bytes,
            locked,
        };
        fill(key.bytes_mut())?;
        Ok(key)
    }

    /// The secret.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.page[..self.len_bytes]
    }

    /// Whether the kernel agreed never to swap the page out.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.page[..self.len_bytes]
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
    }
}

impl fmt::Debug for LockedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockedKey({} bytes, hidden)", self.len_bytes)
    }
}
