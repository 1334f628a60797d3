//! Back into order: for a digest over the whole image whose chunks end in any order.
//!
//! ```text
//!   workers:   chunk 2   chunk 0   chunk 1   chunk 3
//!   put:       waits     folded    folded    folded      next = 4
//!                                  then 2
//! ```

use std::collections::BTreeMap;

use crate::stage::{Result, StageError};

/// Takes one value per chunk in any order, hands them on in the order of the chunks.
///
/// An encoder has some tens of chunks in flight. A reader may take the chunks of an image in
/// any order (huge pages first, lazy restore), so that in the worst case all wait for chunk 0.
/// They are as many as the image has chunks: 10 MiB with values of 16 bytes for each 64 GiB in
/// chunks of 256 KiB. With a limit there would be images that can be written and not be read.
#[derive(Debug)]
pub struct InOrder<V> {
    next: u64,
    waiting: BTreeMap<u64, V>,
}

impl<V> Default for InOrder<V> {
    fn default() -> Self {
        Self {
            next: 0,
            waiting: BTreeMap::new(),
        }
    }
}

impl<V> InOrder<V> {
    /// Takes the value of chunk `index`; calls `fold` with every value whose turn it is.
    ///
    /// A chunk that came before is passed over: a reader may read it twice.
    ///
    /// # Errors
    /// What `fold` answers.
    pub fn put(
        &mut self,
        index: u64,
        value: V,
        mut fold: impl FnMut(V) -> Result<()>,
    ) -> Result<()> {
        if index > self.next {
            self.waiting.insert(index, value);
            return Ok(());
        }
        if index < self.next {
            return Ok(());
        }
        self.next += 1;
        fold(value)?;
        while let Some(value) = self.waiting.remove(&self.next) {
            self.next += 1;
            fold(value)?;
        }
        Ok(())
    }

    /// Checks that exactly the chunks `0..n_chunks` came.
    ///
    /// # Errors
    /// With `code`, saying which is missing or that there are too many: after encoding
    /// that is a defect ([`crate::abi::code::INTERNAL`]), after decoding the image is not whole
    /// ([`crate::abi::code::CORRUPT`]).
    pub fn check_complete(&self, n_chunks: u64, code: i32) -> Result<()> {
        let next = self.next;
        if next == n_chunks && self.waiting.is_empty() {
            return Ok(());
        }
        let message = if next < n_chunks {
            format!("the image has {n_chunks} chunks, but chunk {next} never came")
        } else {
            format!("the image has {n_chunks} chunks, but more came")
        };
        Err(StageError::new(code, message))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::abi::code;

    fn folded(order: &[u64]) -> (InOrder<u64>, Vec<u64>) {
        let (mut in_order, mut seen) = (InOrder::default(), Vec::new());
        for &index in order {
            in_order
                .put(index, index * 10, |value| {
                    seen.push(value);
                    Ok(())
                })
                .unwrap();
        }
        (in_order, seen)
    }

    #[test]
    fn any_order_ends_in_the_order_of_the_chunks() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let (in_order, seen) = folded(&order);
            assert_eq!(seen, [0, 10, 20, 30]);
            in_order.check_complete(4, code::CORRUPT).unwrap();
        }
    }

    #[test]
    fn a_chunk_that_comes_twice_counts_once() {
        let (in_order, seen) = folded(&[1, 1, 0, 0, 1]);
        assert_eq!(seen, [0, 10]);
        in_order.check_complete(2, code::CORRUPT).unwrap();
    }

    #[test]
    fn a_missing_chunk_and_one_too_many_are_named() {
        let (in_order, _) = folded(&[0, 2]);
        let message = |n| {
            in_order
                .check_complete(n, code::CORRUPT)
                .unwrap_err()
                .message
        };
        assert_eq!(message(3), "the image has 3 chunks, but chunk 1 never came");
        assert_eq!(message(1), "the image has 1 chunks, but more came");
    }

    #[test]
    fn all_may_wait_for_the_first() {
        // As many as 256 GiB have in chunks of 256 KiB.
        const LAST: u64 = 1 << 20;
        let mut in_order = InOrder::default();
        for index in (1..=LAST).rev() {
            in_order.put(index, (), |()| Ok(())).unwrap();
        }
        in_order.put(0, (), |()| Ok(())).unwrap();
        in_order.check_complete(LAST + 1, code::CORRUPT).unwrap();
    }
}
