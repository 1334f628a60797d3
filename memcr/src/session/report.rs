//! What a checkpoint did, in numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Phase;
use crate::maps::policy::LeftBecause;

/// What a checkpoint did. All lengths in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct CheckpointReport {
    /// The target.
    pub pid: i32,
    /// Where the image is.
    pub image: String,
    /// Number of threads.
    pub n_threads: usize,
    /// Number of mappings.
    pub n_vmas: usize,
    /// Pages that were stored.
    pub raw_bytes: u64,
    /// Pages of zeros that were dropped without being stored.
    pub zero_bytes: u64,
    /// Length of the image.
    pub image_bytes: u64,
    /// Stored pages over the image; 0 when nothing was stored.
    pub ratio: f64,
    /// Given back to the kernel, absent pages in between included.
    pub given_back_bytes: u64,
    /// Clean file pages that were dropped and not stored (`-f`).
    pub dropped_file_bytes: u64,
    /// What stayed in RAM, by reason.
    pub left_bytes: BTreeMap<LeftBecause, u64>,
    /// A guard stands over what was dropped: it survives the death of memcr.
    pub guarded: bool,
    /// Resident memory before the freeze.
    pub rss_before_bytes: u64,
    /// Resident memory while held.
    pub rss_held_bytes: u64,
    /// How long the target stood still until it was held, milliseconds.
    pub frozen_millis: f64,
    /// How long each phase took.
    pub phases: Vec<Phase>,
}
