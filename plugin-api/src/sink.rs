//! The safe trait of sinks: where an image is kept.

use crate::stage::{Params, Result, StageInfo};

/// A new image that a sink is asked to keep; see [`crate::abi::SinkOpen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewImage {
    /// Random, unique per image.
    pub id: [u8; 16],
    /// Pid of the target, for the name of the image.
    pub pid: u64,
    /// Bytes the host expects to store, at most; 0 unknown.
    pub expected_len: u64,
    /// A stage before the sink compresses.
    pub compressed: bool,
    /// Memory is given back while it is stored: it is committed twice, first with what was
    /// written so far, and written on in between ([`crate::abi::SINK_KEEP`]).
    pub keep: bool,
}

impl NewImage {
    /// As a host asks for it: [`crate::abi::SinkOpen::flags`].
    #[must_use]
    pub fn flags(&self) -> u32 {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        flag(self.compressed, crate::abi::SINK_COMPRESSED) | flag(self.keep, crate::abi::SINK_KEEP)
    }
}

/// A place where one image is kept. One value, one image.
///
/// The host opens it once (`open_new` or `open_existing`), and after `commit` may read
/// it back through the same value. Dropping a value whose image was not committed
/// removes the image; dropping a committed one leaves it.
#[expect(
    clippy::len_without_is_empty,
    reason = "nobody asks whether an image is empty"
)]
pub trait Sink: Sized + Send + Sync + 'static {
    /// What the sink says of itself.
    const INFO: StageInfo;

    /// Makes a sink from checked parameters; touches nothing outside yet.
    ///
    /// # Errors
    /// When the sink would be unusable later.
    fn create(params: &Params, host: crate::Host) -> Result<Self>;
    /// Opens a new image and makes sure there is room for it. Called while the target
    /// still runs.
    ///
    /// # Errors
    /// [`crate::abi::code::NO_SPACE`] when `expected_len` cannot fit, and others.
    fn open_new(&mut self, image: &NewImage) -> Result<()>;
    /// Opens a committed image by its locator.
    ///
    /// # Errors
    /// [`crate::abi::code::NOT_FOUND`] when there is none, and others.
    fn open_existing(&mut self, locator: &str) -> Result<()>;
    /// Stores all of `data` at `offset`, or fails.
    ///
    /// # Errors
    /// [`crate::abi::code::NO_SPACE`], [`crate::abi::code::IO`] and others.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Reads into `out` from `offset`; less than `out.len()` only at the end.
    ///
    /// # Errors
    /// When the bytes cannot be had.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize>;
    /// Length of the image, bytes.
    ///
    /// # Errors
    /// When it cannot be told.
    fn len(&self) -> Result<u64>;
    /// The image is complete: `len` bytes, of which `raw_len` were chunks before the
    /// first stage. Makes it last and visible. For an image to keep there is one before it
    /// is complete, which makes what is there visible, and one when it is.
    ///
    /// # Errors
    /// When the image cannot be kept; the host then removes it.
    fn commit(&mut self, len: u64, raw_len: u64) -> Result<()>;
    /// A text that `open_existing` finds the committed image by.
    ///
    /// # Errors
    /// When nothing is open.
    fn locator(&self) -> Result<String>;
    /// Removes the image, committed or not.
    ///
    /// # Errors
    /// When something stays behind; says what.
    fn remove(&mut self) -> Result<()>;
}
