//! Fault points: named places at which a test kills, fails, delays or stops memcr.
//!
//! ```text
//!   fault::point("sink.write")?;            in the code, where something may go wrong
//!
//!   MEMCR_FAULT=sink.write@3=kill           SIGKILL when it is passed for the third time
//!   MEMCR_FAULT=sink.write@3+=fail:ENOSPC   the third time and ever after: a disk is full
//!   MEMCR_FAULT='sink.read=delay:50;sink.commit=stop'
//!   MEMCR_FAULT=count                       on stderr, at the end: NAME COUNT, one a line
//!   MEMCR_FAULT=list                        on stdout: NAME WHAT, one a line, and no more
//! ```
//!
//! | action       | what happens                                                          |
//! |--------------|-----------------------------------------------------------------------|
//! | `kill`       | SIGKILL to memcr                                                      |
//! | `abort`      | SIGABRT, as a crashing plugin would                                   |
//! | `fail:ERRNO` | the point answers that error (`ENOSPC`, `EIO`, …)                     |
//! | `delay:MS`   | so many milliseconds pass                                             |
//! | `stop`       | SIGSTOP to memcr; SIGCONT lets it go on from there                    |
//!
//! Counts are per process: a child begins with those of its parent. A mistake in the
//! variable ends memcr before it has done anything: a test whose fault does not strike
//! would prove nothing.
//!
//! To add a point: a row in [`POINTS`], and one `point(NAME)?` in the code. A name says
//! room and moment. Put it *between* two steps that change the world; a point behind
//! which nothing has changed since the last one tells nothing new. The answer has to be
//! treated as that of the step it stands for; a function of the module that makes an error
//! of its own from it is called `pass`, so that the test of the table finds its names.
//!
//! All this exists with the cargo feature `fault-points` only. Without it `point` is
//! nothing at all, and no variable is looked at: nobody's environment may make memcr fail.

/// Every point there is: its name, and what is about to happen there.
pub const POINTS: &[(&str, &str)] = &[
    (
        "checkpoint.frozen",
        "the target stands still; its mappings are about to be read",
    ),
    (
        "checkpoint.stored",
        "all chunks are handed out; the image is about to be committed",
    ),
    (
        "checkpoint.committed",
        "the image is complete; the guard is about to be made",
    ),
    (
        "inject.infected",
        "the parasite is in place, the first thread at its entry; it is about to run",
    ),
    (
        "inject.outlives",
        "the first thread would not die with memcr any more; it is about to run, or is given back",
    ),
    (
        "checkpoint.guard_made",
        "the guard is made; the journal is about to be told",
    ),
    (
        "checkpoint.journaled",
        "the journal knows of the guard; the target is about to be armed",
    ),
    (
        "checkpoint.armed",
        "the target is armed; its mappings are about to be guarded",
    ),
    (
        "checkpoint.registered",
        "the guard stands; pages are about to be dropped",
    ),
    (
        "checkpoint.part",
        "the journal tells up to where the image is written; that much is about to be dropped",
    ),
    ("checkpoint.drop", "a batch of runs is about to be dropped"),
    (
        "checkpoint.dropped",
        "all is dropped; the first thread is about to be armed",
    ),
    (
        "checkpoint.held",
        "the journal says that the target is held",
    ),
    (
        "restore.populated",
        "all pages are back; the guard is about to be ended",
    ),
    ("restore.disarmed", "the target would run if it were let go"),
    (
        "restore.unguarded",
        "the guard is gone; the parasite is about to go",
    ),
    (
        "restore.released",
        "the target runs; image and journal are about to be removed",
    ),
    ("journal.write", "a record is about to be written"),
    (
        "journal.append",
        "how far an image is written is about to be told",
    ),
    (
        "journal.replace",
        "a written record is about to take the place of the old one",
    ),
    ("journal.remove", "the journal is about to be removed"),
    (
        "sink.open",
        "a new image, or an existing one, is about to be opened",
    ),
    ("sink.write", "bytes are about to be written into the image"),
    ("sink.commit", "the image is about to be made final"),
    ("sink.read", "bytes are about to be read from the image"),
    ("sink.remove", "the image is about to be removed"),
    ("pages.fetch", "a chunk is about to be read from the target"),
    (
        "pages.populate",
        "a chunk is about to be written into the target",
    ),
    (
        "pages.event",
        "a thread of the target waits until its change of the layout is read",
    ),
];

/// Whether there are any: what is asked for their sake alone is asked only then.
pub const HAS_POINTS: bool = cfg!(feature = "fault-points");

#[cfg(feature = "fault-points")]
mod armed;
#[cfg(feature = "fault-points")]
mod orders;

#[cfg(feature = "fault-points")]
pub use armed::{Watch, point};

/// A place where a test may strike; see the head of the module.
///
/// # Errors
/// Never without the feature `fault-points`.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Reads the orders at the start of the program and prints the counts at its end. Without
/// the feature `fault-points` it does nothing.
#[cfg(not(feature = "fault-points"))]
#[derive(Debug)]
pub struct Watch(());

#[cfg(not(feature = "fault-points"))]
impl Watch {
    /// Nothing is read.
    #[must_use]
    pub fn begin() -> Self {
        Self(())
    }
}

#[cfg(test)]
mod tests;
