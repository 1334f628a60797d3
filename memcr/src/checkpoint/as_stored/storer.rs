//! Finds pages and hands them to the workers, and what these are done with to the dropper.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;

use crate::maps::plan::{Batch, PlanSummary, Planned};
use crate::pipeline::{Encoder, PipelineError};
use crate::sink::Mark;

use super::super::error::StepError;
use super::super::{Mapped, scan};

/// What who hands out pages hears when nobody takes them any more.
pub(super) const NOT_DROPPED: &str = "nothing is dropped any more";

/// Who hands chunks to the workers, and what these are done with to the dropper.
pub(super) struct Storer<'a> {
    encoder: &'a mut Encoder,
    pushed_bytes: u64,
    waiting: VecDeque<Waiting>,
    stored: SyncSender<StoredBatch>,
    /// Batches that are, or are about to be, handed out and not yet taken.
    n_waiting: &'a AtomicUsize,
}

/// What is to be dropped once the first `n_chunks` chunks are stored, which were handed out by
/// the time that `pushed_bytes` were.
struct Waiting {
    n_chunks: u64,
    pushed_bytes: u64,
    batch: Batch,
}

/// What may be dropped, since the image is written up to `mark`, and so are that many bytes.
pub(super) struct StoredBatch {
    pub(super) mark: Mark,
    pub(super) pushed_bytes: u64,
    pub(super) batch: Batch,
}

impl<'a> Storer<'a> {
    pub(super) fn new(
        encoder: &'a mut Encoder,
        stored: SyncSender<StoredBatch>,
        n_waiting: &'a AtomicUsize,
    ) -> Self {
        Self {
            encoder,
            pushed_bytes: 0,
            waiting: VecDeque::new(),
            stored,
            n_waiting,
        }
    }

    /// Answers what was not handed out as stored.
    pub(super) fn store(mut self, mapped: Mapped, pid: i32) -> Result<PlanSummary, StepError> {
        let mut summary = scan(mapped, pid, |planned| self.take(planned))?;
        // What is stored goes while the last chunks are.
        self.encoder.drain()?;
        self.hand_out()?;
        let mut rest = Batch::default();
        self.waiting.drain(..).for_each(|it| rest.extend(it.batch));
        rest.extend(std::mem::take(&mut summary.rest));
        summary.rest = rest;
        Ok(summary)
    }

    /// Hands a chunk to the workers, or keeps a batch until they are done with its pages.
    fn take(&mut self, planned: Planned) -> Result<(), StepError> {
        match planned {
            Planned::Chunk(chunk) => {
                self.pushed_bytes += chunk.len_bytes();
                self.encoder.push(chunk)?;
            }
            Planned::Batch(batch) => self.waiting.push_back(Waiting {
                n_chunks: self.encoder.n_pushed(),
                pushed_bytes: self.pushed_bytes,
                batch,
            }),
        }
        self.hand_out()
    }

    /// Hands out what is stored by now.
    fn hand_out(&mut self) -> Result<(), StepError> {
        let mark = self.encoder.mark();
        let is_stored = |waiting: &&Waiting| waiting.n_chunks <= mark.n_chunks;
        let n_stored = self.waiting.iter().take_while(is_stored).count();
        // One mark, one batch.
        let stored = self.waiting.drain(..n_stored).reduce(|mut all, next| {
            all.batch.extend(next.batch);
            all.pushed_bytes = next.pushed_bytes;
            all
        });
        let Some(stored) = stored else {
            return Ok(());
        };
        let stored = StoredBatch {
            mark,
            pushed_bytes: stored.pushed_bytes,
            batch: stored.batch,
        };
        self.n_waiting.fetch_add(1, Relaxed);
        let taken = self.stored.send(stored);
        Ok(taken.map_err(|_| PipelineError::Ended(NOT_DROPPED))?)
    }
}
