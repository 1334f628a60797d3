//! What can be wrong with an image.

use memcr_plugin_api::stage::StageError;

/// Why an image cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The file is something else.
    #[error("not a memcr image: {0}")]
    NotAnImage(String),
    /// Bytes are not those that were written.
    #[error("the image is corrupt: {what} at offset {offset} ({len_bytes} bytes): {why}")]
    Corrupt {
        /// What the range holds.
        what: &'static str,
        /// Its first byte.
        offset: u64,
        /// Its length, bytes.
        len_bytes: u64,
        /// What does not fit.
        why: String,
    },
    /// A whole image, but not the one that was written. That one may be found again.
    #[error("the image {found} lies where {wanted} was written")]
    Another {
        /// Its id.
        found: String,
        /// The id of the one that was written.
        wanted: String,
    },
    /// Made by a memcr that this one does not understand.
    #[error("cannot read this image: {0}")]
    Unsupported(String),
    /// The file cannot be opened, for this reason.
    #[error(transparent)]
    Open(StageError),
    /// The bytes cannot be had.
    #[error("cannot read {len_bytes} bytes at offset {offset} of the image")]
    Io {
        /// First byte.
        offset: u64,
        /// Length, bytes.
        len_bytes: u64,
        /// Why.
        source: StageError,
    },
}

/// Result of reading an image.
pub(crate) type Result<T> = std::result::Result<T, ImageError>;

/// Shorthand for [`ImageError::Corrupt`].
pub(super) fn corrupt(
    what: &'static str,
    offset: u64,
    len_bytes: u64,
    why: impl Into<String>,
) -> ImageError {
    ImageError::Corrupt {
        what,
        offset,
        len_bytes,
        why: why.into(),
    }
}
