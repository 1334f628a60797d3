//! Pages: the words that `maps`, `pages`, `pipeline` and `sink` share.
//!
//! ```text
//! maps ──ChunkPlan⇒ FetchPages ──bytes⇒ pipeline(encode) ──frame⇒ sink
//!                   PopulatePages ⇐bytes── pipeline(decode) ⇐frame── sink
//! ```
//!
//! The traits are the seam: the pipeline moves a vector in a test as it moves a process.

pub mod give_back;
pub mod guarded;
pub mod remote;
pub mod table;
mod truncated;

use std::fmt;

/// An address in the target. Never a pointer of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RemoteAddr(pub u64);

impl RemoteAddr {
    /// The address `len_bytes` further on. Addresses in a target are below 2^63, so
    /// this cannot overflow for lengths that come from its mappings.
    #[must_use]
    pub fn offset(self, len_bytes: u64) -> Self {
        Self(self.0.wrapping_add(len_bytes))
    }
}

impl fmt::Display for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Consecutive pages that are handled alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// First byte; a multiple of the page size.
    pub addr: RemoteAddr,
    /// Length in bytes; a multiple of the page size, not 0.
    pub len_bytes: u64,
}

impl PageRun {
    /// First byte behind the run.
    #[must_use]
    pub fn end(&self) -> RemoteAddr {
        self.addr.offset(self.len_bytes)
    }
}

impl fmt::Display for PageRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.addr.0, self.len_bytes)
    }
}

/// How the pages of a chunk are handled. All pages of a chunk are of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkClass {
    /// The mapping's protection or its kind keeps `process_vm_writev` out, and perhaps
    /// `process_vm_readv`: go through `/proc/PID/mem`.
    pub through_proc_mem: bool,
    /// Pages of zeros need not be stored: a dropped page reads as zeros again. False
    /// for private file mappings, where a dropped page shows the file.
    pub elide_zero: bool,
    /// Backed by transparent huge pages.
    pub huge: bool,
}

/// What goes into one chunk: runs in ascending order, together at most the chunk
/// length. A chunk may span VMAs of one class: thousands of small VMAs then cost one
/// read and one frame per chunk, not per VMA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlan {
    /// How its pages are handled.
    pub class: ChunkClass,
    /// Its pages.
    pub runs: Vec<PageRun>,
}

impl ChunkPlan {
    /// Sum of its runs, bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.len_bytes).sum()
    }
}

/// A source of page contents. Called from several threads at once.
pub trait FetchPages: Sync {
    /// Reads the pages of `plan`, one run behind the other, into `out`, whose length is
    /// that of the plan.
    ///
    /// # Errors
    /// When any byte cannot be read.
    fn fetch(&self, plan: &ChunkPlan, out: &mut [u8]) -> std::io::Result<()>;
}

/// A destination of page contents. Called from several threads at once.
pub trait PopulatePages: Sync {
    /// Writes `bytes` to `runs`, one run behind the other; their lengths are equal.
    ///
    /// # Errors
    /// When any byte cannot be written.
    fn populate(&self, class: ChunkClass, runs: &[PageRun], bytes: &[u8]) -> std::io::Result<()>;
}
