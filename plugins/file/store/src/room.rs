//! Whether an image will fit, asked while the target still runs.
//!
//! Space is checked, not preallocated but for a little (`ahead`). What is expected is an upper bound (pages of
//! zeros and compression come off it), so a preallocated image would mostly be given
//! back, after the disk had allocated it; on tmpfs it would take RAM at the very moment
//! when RAM is short. A disk that fills up after the check fails the checkpoint, which
//! is undone and costs the target nothing.

use memcr_plugin_api::Host;
use memcr_plugin_api::abi::code;
use memcr_plugin_api::sink::NewImage;
use memcr_plugin_api::stage::{Result, StageError};

/// No compression in use makes memory smaller than this many times: the LZ4 format
/// ends at 255, and chunks of zeros, where others go further, are not stored at all.
const BEST_RATIO: u64 = 256;
/// What compressed memory shrinks to at least, as a rule; more than that is worth a warning.
const USUAL_RATIO: u64 = 2;

/// The least that the image will take, bytes: below it, it certainly cannot fit.
#[must_use]
pub fn least_len(image: &NewImage) -> u64 {
    if image.compressed {
        image.expected_len / BEST_RATIO
    } else {
        image.expected_len
    }
}

/// Refuses an image that cannot fit into `free_len` bytes of `place`, and warns of one
/// that may not.
///
/// # Errors
/// `NO_SPACE`.
pub fn check(place: &str, free_len: u64, image: &NewImage, host: Host) -> Result<()> {
    let (least, free) = (least_len(image), mib(free_len));
    if least > free_len {
        let needed = if image.compressed { "at best" } else { "up to" };
        let message = format!(
            "{place} has {free} free, the image needs {needed} {}",
            mib(least)
        );
        return Err(StageError::new(code::NO_SPACE, message)
            .hint("make room, set another `dir`, or put a compressing stage before the sink"));
    }
    if usual_len(image) > free_len {
        host.warn(format_args!(
            "{place} has {free} free for {} before compression: if they do not fit, the checkpoint is undone",
            mib(image.expected_len)
        ));
    }
    Ok(())
}

/// How much an image takes as a rule, bytes: what takes more is worth a warning where there is
/// no more.
#[must_use]
pub fn usual_len(image: &NewImage) -> u64 {
    match image.compressed {
        true => image.expected_len / USUAL_RATIO,
        false => image.expected_len,
    }
}

/// A length for people.
#[must_use]
pub fn mib(len_bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if len_bytes < 10 * MIB {
        format!("{} KiB", len_bytes.div_ceil(1024))
    } else {
        format!("{} MiB", len_bytes / MIB)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn image(expected_len: u64, compressed: bool) -> NewImage {
        NewImage {
            id: [1; 16],
            pid: 1,
            expected_len,
            compressed,
            keep: false,
        }
    }

    #[test]
    fn refuses_what_cannot_fit_and_no_more() {
        let fits = |free, expected, compressed| {
            check("there", free, &image(expected, compressed), Host::none()).is_ok()
        };
        assert!(fits(1000, 1000, false));
        assert!(!fits(999, 1000, false));
        assert!(fits(1000, 256_000, true));
        assert!(!fits(999, 256_000, true));
        assert!(fits(0, 0, false), "unknown lengths are not refused");
    }

    #[test]
    fn the_refusal_has_both_numbers() {
        let error = check("/here", 20 << 20, &image(100 << 20, false), Host::none()).unwrap_err();
        assert_eq!(error.code, code::NO_SPACE);
        assert_eq!(
            error.message,
            "/here has 20 MiB free, the image needs up to 100 MiB"
        );
    }
}
