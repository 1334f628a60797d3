//! Maps: what the target has mapped, and which of its pages go.
//!
//! ```text
//! /proc/PID/maps  ─▶ vma::parse ──┐
//! /proc/PID/smaps ─▶ details ─────┼─▶ policy (per VMA) ─▶ plan (per page) ─▶ ChunkPlan …
//! /proc/PID/pagemap (PageTable) ──┘                                       └▶ drop runs, counts
//! ```
//!
//! Everything here is text and numbers: no page contents, no ptrace.

pub mod details;
pub mod page;
pub mod plan;
pub mod policy;
pub mod vma;
mod window;

/// What can go wrong while the target's mappings are read.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// A line of `/proc/PID/maps`, or one by which `smaps` begins a mapping, is not of the form
    /// of proc_pid_maps(5).
    #[error("line {line} of /proc/PID/{file} is not understood: `{text}`")]
    Line {
        /// Of which file.
        file: &'static str,
        /// Its number, from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
}
