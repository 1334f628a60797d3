//! The progress line, on a terminal.
//!
//! How much there will be is not known before the target is frozen and scanned, and
//! then it is a matter of a second or two; so the line counts up rather than to a
//! hundred.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::pipeline::Progress;
use memcr_text::units;

/// Time between two looks: often enough to seem alive, too rare to cost anything.
const LOOK: Duration = Duration::from_millis(100);

/// A line that shows how far the work is, until it is dropped.
pub(super) struct Line {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// Starts the line if anybody is there to see it. Without it the work goes on all
    /// the same, so a thread that cannot be had is no failure.
    pub(super) fn start(what: &'static str, progress: &Arc<Progress>, wanted: bool) -> Self {
        let mut line = Self {
            end: None,
            thread: None,
        };
        if wanted && std::io::stderr().is_terminal() {
            let (end, ended) = mpsc::channel();
            let progress = Arc::clone(progress);
            let thread = std::thread::Builder::new().name("progress".into());
            line.thread = thread.spawn(move || show(what, &progress, &ended)).ok();
            line.end = Some(end);
        }
        line
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // The closed channel wakes the thread, which clears the line before others write.
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(what: &'static str, progress: &Progress, ended: &mpsc::Receiver<()>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
        bar.set_style(style);
    }
    // Nothing is drawn before the first look: short work leaves no trace, and there is
    // never a line without its figures.
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
        let raw = progress.raw_bytes.load(Relaxed);
        let stored = progress.stored_bytes.load(Relaxed);
        bar.set_message(format!(
            "{what} {}, image {}",
            units::bytes(raw),
            units::bytes(stored)
        ));
        bar.tick();
    }
    bar.finish_and_clear();
}
