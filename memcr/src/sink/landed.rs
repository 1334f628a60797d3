//! How far an image that several workers write at once is surely written.
//!
//! ```text
//!   body   │ 0 │ 2 │ 1 │▒3▒│ 5 │▒4▒│          numbers: chunks, by index; ▒ under way
//!                      └─ mark: chunks below 3 are in these bytes, which have no gap
//! ```
//!
//! Memory that is given back while the rest is stored is in chunks below the mark: whoever
//! finds the image with no more than that, because its writer has died, finds all of it.

use std::collections::BTreeMap;

/// Up to where an image is written without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// All chunks of a lower index are written.
    pub n_chunks: u64,
    /// In this many bytes, which end with a chunk, or with the tables.
    pub len_bytes: u64,
}

/// Chunks that have their places, and those that lie there.
#[derive(Debug, Default)]
pub(super) struct Landed {
    /// Offsets of chunks that are being written.
    under_way: Vec<u64>,
    /// Written, while one of a lower index is not: index and end.
    ahead: BTreeMap<u64, u64>,
    /// All chunks of a lower index are written, and end before `reach`.
    next_index: u64,
    reach: u64,
    mark: Mark,
}

impl Landed {
    /// The tables are written, and end at `body`.
    pub(super) fn begin(&mut self, body: u64) {
        self.reach = body;
        self.mark.len_bytes = body;
    }

    /// A chunk is going to be written at `offset`.
    pub(super) fn placed(&mut self, offset: u64) {
        self.under_way.push(offset);
    }

    /// It is written, and ends at `end`.
    pub(super) fn written(&mut self, index: u64, offset: u64, end: u64) {
        self.under_way.retain(|&other| other != offset);
        self.ahead.insert(index, end);
        while let Some(end) = self.ahead.remove(&self.next_index) {
            self.reach = self.reach.max(end);
            self.next_index += 1;
        }
        let is_under_way = |&offset: &u64| offset < self.reach;
        if !self.under_way.iter().any(is_under_way) {
            self.mark = Mark {
                n_chunks: self.next_index,
                len_bytes: self.reach,
            };
        }
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_has_no_gap_before_it() {
        let mut landed = Landed::default();
        landed.begin(100);
        let mark = |n_chunks, len_bytes| Mark {
            n_chunks,
            len_bytes,
        };
        assert_eq!(landed.mark(), mark(0, 100));
        // Places are asked for in the order 0, 2, 1, 3.
        for offset in [100, 110, 120, 130] {
            landed.placed(offset);
        }
        landed.written(2, 110, 120);
        assert_eq!(landed.mark(), mark(0, 100));
        landed.written(0, 100, 110);
        assert_eq!(landed.mark(), mark(1, 110));
        landed.written(3, 130, 140);
        assert_eq!(landed.mark(), mark(1, 110), "1 is yet to come");
        landed.written(1, 120, 130);
        assert_eq!(landed.mark(), mark(4, 140));
    }

    #[test]
    fn a_chunk_of_a_higher_index_that_lies_before_is_waited_for() {
        let mut landed = Landed::default();
        landed.begin(0);
        landed.placed(0);
        landed.placed(10);
        landed.written(0, 10, 20);
        assert_eq!(landed.mark(), Mark::default(), "chunk 1 lies at 0");
        landed.written(1, 0, 10);
        assert_eq!(
            landed.mark(),
            Mark {
                n_chunks: 2,
                len_bytes: 20
            }
        );
    }
}
