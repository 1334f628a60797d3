//! How much memory the machine has left, and the least of it meanwhile.
//!
//! ```text
//!   MemAvailable  +  pages kept at hand for each CPU  =  available
//!   /proc/meminfo    /proc/zoneinfo
//! ```
//!
//! The pages at hand are free, but in neither number of meminfo. After a process has freed
//! much they may be hundreds of MiB, and the next one takes its memory from there: without
//! them a rise would look smaller than it is, and what is won too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use memcr_harness::{Context, Result, proc};

/// Time between two looks. One takes some 12 µs, so the watcher takes less than a
/// hundredth of one CPU from what it watches.
const PACE: Duration = Duration::from_millis(2);

const MEMINFO: &str = "/proc/meminfo";
const ZONEINFO: &str = "/proc/zoneinfo";

/// What the machine has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ram {
    /// What could be had without swapping, KiB.
    pub(crate) available_kib: i64,
    /// Of that: what is free, and no page cache, KiB.
    pub(crate) free_kib: i64,
}

impl Ram {
    /// Now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn now() -> Result<Self> {
        Gauge::open()?.read()
    }
}

/// The two files, open.
struct Gauge {
    meminfo: File,
    /// Where it cannot be read, what is won looks smaller than it is.
    zoneinfo: Option<File>,
    buffer: Vec<u8>,
}

impl Gauge {
    fn open() -> Result<Self> {
        Ok(Self {
            meminfo: File::open(MEMINFO).context(MEMINFO)?,
            zoneinfo: File::open(ZONEINFO).ok(),
            buffer: vec![0; 64 << 10],
        })
    }

    fn read(&mut self) -> Result<Ram> {
        let kept = self.zoneinfo.as_ref();
        let kept = kept.map(|file| text(file, &mut self.buffer).map(kept_kib));
        let kept_kib = kept.transpose().context(ZONEINFO)?.unwrap_or(0);
        let text = text(&self.meminfo, &mut self.buffer).context(MEMINFO)?;
        let kib = |key| proc::kib(text, key).map(u64::cast_signed);
        Ok(Ram {
            available_kib: kib("MemAvailable")? + kept_kib,
            free_kib: kib("MemFree")? + kept_kib,
        })
    }
}

/// A file of `/proc` from its beginning; what is not text is no number either.
fn text<'a>(file: &File, buffer: &'a mut [u8]) -> std::io::Result<&'a str> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(std::str::from_utf8(&buffer[..len]).unwrap_or_default())
}

/// Free pages that the kernel keeps at hand for each CPU, KiB.
fn kept_kib(zoneinfo: &str) -> i64 {
    let counts = zoneinfo
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"));
    let n_pages: i64 = counts.filter_map(|n| n.trim().parse::<i64>().ok()).sum();
    n_pages * (rustix::param::page_size() / 1024) as i64
}

/// Looks again and again, on a thread of its own, until it is asked.
pub(super) struct Watch {
    /// What was left when it began.
    pub(super) begin: Ram,
    // Dropped, it ends the thread.
    end: Sender<()>,
    thread: JoinHandle<Result<i64>>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// When the kernel does not tell how much is left.
    pub(super) fn start() -> Result<Self> {
        let mut gauge = Gauge::open()?;
        let begin = gauge.read()?;
        let (end, is_over) = channel();
        let thread = std::thread::spawn(move || {
            let mut least_kib = begin.available_kib;
            while is_over.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                least_kib = least_kib.min(gauge.read()?.available_kib);
            }
            Ok(least_kib)
        });
        Ok(Self { begin, end, thread })
    }

    /// Ends; answers the least that was available, KiB.
    ///
    /// # Errors
    /// When a look failed.
    pub(super) fn least_kib(self) -> Result<i64> {
        drop(self.end);
        let joined = self.thread.join();
        joined.unwrap_or_else(|_| Err("the watcher of the memory has panicked".into()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Ram, Watch, kept_kib};

    #[test]
    fn pages_at_hand_are_summed() {
        let text = "Node 0, zone DMA\n  cpu: 0\n    count:    3\n    high:  9\n    count: 5\n";
        let page_kib = (rustix::param::page_size() / 1024) as i64;
        assert_eq!(kept_kib(text), 8 * page_kib);
    }

    #[test]
    fn the_least_is_no_more_than_at_the_beginning() {
        let watch = Watch::start().unwrap();
        let begin = watch.begin;
        assert!(watch.least_kib().unwrap() <= begin.available_kib);
        assert!(Ram::now().unwrap().free_kib > 0);
    }
}
