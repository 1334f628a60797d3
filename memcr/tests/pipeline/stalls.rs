//! What does not come back is given up after the stall limit, named, and left behind; when
//! it does come back it has no effect any more, and another try may begin.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memcr::pages::{ChunkClass, PageRun, PopulatePages};
use memcr::pipeline::{
    Cancel, CancelReason, DecodeSetup, EncodeSetup, OpenImage, Pipeline, PipelineError,
    PipelineSpec, Priority,
};

use crate::faults::told;
use crate::support::{
    Memory, PLAIN, checkpoint, content, feed, plans, restore, setup, spec, stages,
};

const LIMIT: Duration = Duration::from_millis(300);
/// Limit, grace, and a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(20);

/// A directory for one image, with the FIFO that a hanging sink waits at.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        rustix::fs::mknodat(
            rustix::fs::CWD,
            place.fifo(),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn fifo(&self) -> PathBuf {
        self.0.path().join("image.fifo")
    }

    /// `stages` and the sink, which hangs at `step`.
    fn spec(&self, stages: &str, step: &str) -> PipelineSpec {
        let image = self.image();
        PipelineSpec {
            stall_limit: Some(LIMIT),
            ..spec(
                &format!("{stages}disk:hang={step}:path={}", image.display()),
                1,
            )
        }
    }

    /// Whoever hangs comes back.
    fn release(&self) {
        let flags = rustix::fs::OFlags::WRONLY;
        drop(rustix::fs::open(self.fifo(), flags, rustix::fs::Mode::empty()).unwrap());
    }
}

fn memory() -> Arc<Memory> {
    let memory = Memory::default();
    memory.put(0x10_0000, &content("noise", 24));
    Arc::new(memory)
}

fn store(spec: &PipelineSpec) -> Result<OpenImage, PipelineError> {
    checkpoint(spec, &memory(), &plans(PLAIN, 0x10_0000, 24 * 4096, 4))
}

/// Waits for something that another thread is about to do.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn must_be_stalled<T>(begin: Instant, result: Result<T, PipelineError>, wanted: &str) {
    let Err(error) = result else {
        panic!("no failure: {wanted}");
    };
    assert!(matches!(error, PipelineError::Stalled { .. }), "{error}");
    let text = told(&error);
    assert!(
        text.starts_with(&format!("{wanted} has not come back for ")),
        "{text}"
    );
    assert!(!error.is_corrupt() && error.hint().is_some());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn a_stage_that_hangs_while_it_encodes() {
    let place = Place::new();
    let begin = Instant::now();
    let spec = place.spec("lz4,faulty:fault=encode_hang:at=3,", "none");
    must_be_stalled(begin, store(&spec), "stage `faulty`: encode of chunk 3");
    assert!(!place.image().exists());
}

#[test]
fn a_stage_that_hangs_while_it_decodes() {
    let place = Place::new();
    let image = store(&place.spec("faulty:fault=decode_hang:at=2,lz4,", "none")).unwrap();
    let begin = Instant::now();
    let into = Arc::new(Memory::default());
    let wanted = "stage `faulty`: decode of chunk 2";
    must_be_stalled(begin, restore(&image, &into), wanted);
    // It never comes back, so no other try can be made with these handles, and none waits.
    let begin = Instant::now();
    let verified = image.verify(Cancel::new(), Arc::default());
    must_be_stalled(begin, verified, wanted);
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    // The sink does not hang: whoever gives the target up can take the image away.
    image.remove().unwrap();
    assert!(!place.image().exists());
}

#[test]
fn a_sink_that_hangs_while_an_image_is_written() {
    for (step, wanted) in [
        ("open", "sink `disk`: sink_open"),
        ("write", "sink `disk`: sink_write_at"),
        ("commit", "sink `disk`: sink_commit"),
        // On a worker, the others on the foreman.
        ("chunk", "sink `disk`: sink_write_at"),
    ] {
        let place = Place::new();
        let begin = Instant::now();
        must_be_stalled(begin, store(&place.spec("crc32,", step)), wanted);
        // A commit that succeeds after all is of no use to anybody.
        place.release();
        until("the image to go", || !place.image().exists());
    }
}

#[test]
fn a_sink_that_hangs_while_an_image_is_read() {
    for (step, wanted) in [
        ("len", "sink `disk`: sink_len"),
        ("read", "sink `disk`: sink_read_at"),
        ("remove", "sink `disk`: sink_remove"),
    ] {
        let place = Place::new();
        let image = store(&place.spec("lz4,", step)).unwrap();
        let begin = Instant::now();
        if step == "remove" {
            must_be_stalled(begin, image.remove(), wanted);
            place.release();
            until("the image to go", || !place.image().exists());
            continue;
        }
        let into = Arc::new(Memory::default());
        must_be_stalled(begin, restore(&image, &into), wanted);
        // Until the server answers again every try fails at once …
        let begin = Instant::now();
        must_be_stalled(begin, restore(&image, &into), wanted);
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        assert!(into.pages().is_empty());
        // … and then the next one succeeds.
        place.release();
        until("the call to come back", || restore(&image, &into).is_ok());
        assert!(into.pages() == memory().pages());
        image.remove().unwrap();
    }
}

/// A write into the target that does not come back: its memory may be on a server too.
#[test]
fn nobody_tries_again_while_a_write_is_under_way() {
    let place = Place::new();
    let image = store(&place.spec("lz4,", "none")).unwrap();
    let (into, gate) = Gate::new();
    let begin = Instant::now();
    let mut decoder = image.prepare_decode(into_setup(&into)).unwrap();
    let wanted = "the target: populate of chunk 0";
    must_be_stalled(begin, decoder.pass(|_| true), wanted);
    drop(decoder);
    let again = image.prepare_decode(into_setup(&into));
    must_be_stalled(Instant::now(), again, wanted);
    drop(gate);
    until("the late worker to end", || Arc::strong_count(&into) == 1);
    assert_eq!(
        into.n_writes(),
        1,
        "the one that was under way, and none after it"
    );
    image.prepare_decode(into_setup(&into)).unwrap();
    image.remove().unwrap();
}

/// Meanwhile somebody else may have brought the pages back, and the target runs.
#[test]
fn a_chunk_that_comes_too_late_does_not_reach_the_target() {
    let place = Place::new();
    let image = store(&place.spec("crc32,", "none")).unwrap();
    let locator = image.locator().unwrap();
    drop(image);
    let image = Pipeline::load(&place.spec("crc32,", "chunk"), stages())
        .unwrap()
        .open_image(&locator)
        .unwrap();
    let into = Arc::new(Memory::default());
    let begin = Instant::now();
    let mut decoder = image.prepare_decode(into_setup(&into)).unwrap();
    must_be_stalled(begin, decoder.pass(|_| true), "sink `disk`: sink_read_at");
    drop(decoder);
    place.release();
    until("the late worker to end", || Arc::strong_count(&into) == 1);
    assert!(into.pages().is_empty());
    restore(&image, &into).unwrap();
    assert!(into.pages() == memory().pages());
}

fn into_setup(into: &Arc<impl PopulatePages + Send + 'static>) -> DecodeSetup {
    DecodeSetup {
        populate: into.clone(),
        workers: None,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::default(),
    }
}

/// A destination that lets nothing through until it is opened.
struct Gate {
    open: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    n_writes: std::sync::atomic::AtomicUsize,
}

impl Gate {
    fn new() -> (Arc<Self>, std::sync::mpsc::Sender<()>) {
        let (open, closed) = std::sync::mpsc::channel();
        let gate = Self {
            open: std::sync::Mutex::new(closed),
            n_writes: 0.into(),
        };
        (Arc::new(gate), open)
    }

    fn n_writes(&self) -> usize {
        self.n_writes.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl PopulatePages for Gate {
    fn populate(&self, _: ChunkClass, _: &[PageRun], _: &[u8]) -> std::io::Result<()> {
        let _ = self.open.lock().unwrap().recv();
        self.n_writes
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

/// One call over all handles: so another pipeline cannot use the plugin either, and says so.
#[test]
fn a_plugin_that_hangs_in_another_pipeline() {
    let (place, other) = (Place::new(), Place::new());
    let stage = "stage `hangs_in_plugin`";
    let begin = Instant::now();
    let stored = store(&place.spec("hangs_in_plugin,", "none"));
    must_be_stalled(begin, stored, &format!("{stage}: encode of chunk 0"));
    assert!(!place.image().exists());
    let begin = Instant::now();
    let stored = store(&other.spec("hangs_in_plugin,", "none"));
    let wanted = format!("{stage}: waiting for another call into it");
    must_be_stalled(begin, stored, &wanted);
}

/// Before the target is touched too: the server of the image may be the one that hangs.
#[test]
fn the_user_ends_what_hangs_as_the_image_is_opened() {
    let place = Place::new();
    let spec = PipelineSpec {
        stall_limit: None,
        ..place.spec("crc32,", "open")
    };
    let cancel = Cancel::new();
    cancel.cancel(CancelReason::TimedOut);
    let setup = EncodeSetup {
        cancel,
        ..setup(&memory())
    };
    let pipeline = Pipeline::load(&spec, stages()).unwrap();
    let error = pipeline.prepare_encode(setup).err().unwrap();
    assert!(
        matches!(error, PipelineError::Cancelled(CancelReason::TimedOut)),
        "{error}"
    );
    place.release();
    until("the image to go", || !place.image().exists());
}

#[test]
fn without_a_limit_only_the_user_ends_it() {
    let place = Place::new();
    let spec = PipelineSpec {
        stall_limit: None,
        ..place.spec("faulty:fault=encode_hang:at=1,", "none")
    };
    let cancel = Cancel::new();
    let setup = EncodeSetup {
        cancel: cancel.clone(),
        ..setup(&memory())
    };
    let encoder = Pipeline::load(&spec, stages())
        .unwrap()
        .prepare_encode(setup)
        .unwrap();
    let plans = plans(PLAIN, 0x10_0000, 24 * 4096, 4);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| feed(encoder, &plans).err().unwrap());
        std::thread::sleep(2 * LIMIT);
        assert!(!caller.is_finished());
        cancel.cancel(CancelReason::Interrupted);
        let error = caller.join().unwrap();
        assert!(matches!(error, PipelineError::Cancelled(_)), "{error}");
    });
    assert!(!place.image().exists());
}
