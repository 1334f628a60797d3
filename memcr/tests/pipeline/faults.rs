//! Whatever fails, the error names it and nothing of the image stays behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memcr::pages::{ChunkPlan, FetchPages};
use memcr::pipeline::{Cancel, CancelReason, EncodeSetup, Pipeline, PipelineError, Priority};

use crate::support::{
    HUGE, Memory, PAGE, PLAIN, checkpoint, content, feed, meta, plans, restore, setup, spec, stages,
};

/// Twelve chunks of four pages in two classes.
fn memory() -> (Memory, Vec<ChunkPlan>) {
    let memory = Memory::default();
    let bytes = content("noise", 24);
    memory.put(0x10_0000, &bytes);
    memory.put(0x80_0000, &bytes);
    let mut all = plans(PLAIN, 0x10_0000, bytes.len(), 4);
    all.extend(plans(HUGE, 0x80_0000, bytes.len(), 4));
    (memory, all)
}

/// A directory that must be empty at the end.
struct Empty(tempfile::TempDir);

impl Empty {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn check(&self) {
        assert_eq!(
            std::fs::read_dir(self.0.path()).unwrap().count(),
            0,
            "something stayed behind"
        );
    }
}

/// Error and causes on one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    error.source().map_or(error.to_string(), |cause| {
        format!("{error}: {}", told(cause))
    })
}

fn fails(pipeline: &str) -> PipelineError {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let spec = spec(&format!("{pipeline}:path={}", dir.path().display()), 3);
    let error = checkpoint(&spec, &Arc::new(memory), &plans).err().unwrap();
    dir.check();
    error
}

#[test]
fn a_sink_that_fails_at_any_write() {
    // Header, pipeline, target, two for the VMAs, twelve chunks, index, trailers, footer.
    for sink in ["disk", "tape"] {
        for n in 1..=20 {
            let error = fails(&format!("{sink}:fail_write={n}"));
            assert!(matches!(error, PipelineError::Sink { .. }), "{n}: {error}");
            let text = told(&error);
            assert!(
                text.starts_with(&format!("sink `{sink}`: cannot write ")),
                "{text}"
            );
            assert!(text.ends_with("no space left on the test device"), "{text}");
        }
        let dir = Empty::new();
        let (memory, plans) = memory();
        let enough = spec(
            &format!("{sink}:fail_write=21:path={}", dir.path().display()),
            3,
        );
        checkpoint(&enough, &Arc::new(memory), &plans)
            .unwrap()
            .remove()
            .unwrap();
        dir.check();
    }
}

#[test]
fn a_sink_that_fails_at_its_steps() {
    let error = fails("lz4,disk:fail_step=open");
    assert_eq!(
        told(&error),
        "sink `disk`: cannot open a new image: the disk is full"
    );
    let error = fails("lz4,disk:fail_step=commit");
    assert_eq!(
        told(&error),
        "sink `disk`: cannot commit the image: the image cannot be made to last"
    );
    let error = fails("disk:fail_write=9:fail_step=remove");
    assert_eq!(
        told(&error),
        "sink `disk`: cannot write a chunk: no space left on the test device; moreover, \
         sink `disk`: cannot remove the image: the image does not go away"
    );
}

#[test]
fn a_sink_that_does_not_read_proves_nothing_about_the_bytes() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let spec = spec(
        &format!("disk:fail_step=read:path={}", dir.path().display()),
        1,
    );
    let image = checkpoint(&spec, &Arc::new(memory), &plans).unwrap();
    let error = restore(&image, &Arc::new(Memory::default())).unwrap_err();
    assert!(
        matches!(error, PipelineError::Sink { .. }) && !error.is_corrupt(),
        "{error}"
    );
    image.remove().unwrap();
    dir.check();
}

/// Whichever read fails: nothing is lost, and the next try succeeds.
#[test]
fn a_sink_that_fails_at_any_read() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let path = dir.path();
    for stages in ["", "ordered,"] {
        let mut n = 0;
        let n_reads = loop {
            n += 1;
            let spec = spec(
                &format!("{stages}disk:fail_read={n}:path={}", path.display()),
                2,
            );
            let image = checkpoint(&spec, &memory, &plans).unwrap();
            let into = Arc::new(Memory::default());
            let first = restore(&image, &into);
            if let Err(error) = &first {
                assert!(matches!(error, PipelineError::Sink { .. }), "{n}: {error}");
                assert!(!error.is_corrupt());
                restore(&image, &into).unwrap();
            }
            assert!(into.pages() == memory.pages(), "{n}");
            image.remove().unwrap();
            if first.is_ok() {
                break n - 1;
            }
        };
        // Header, footer, sections and blocks with a head each, twelve chunks.
        assert!(n_reads > 20, "{n_reads}");
    }
    dir.check();
}

/// A pipe or a network gives what it has; only at the end of the image is there no more.
#[test]
fn a_sink_that_reads_in_small_pieces() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let path = dir.path();
    let spec = spec(
        &format!("lz4,disk:max_read=1000:path={}", path.display()),
        2,
    );
    let image = checkpoint(&spec, &memory, &plans).unwrap();
    let into = Arc::new(Memory::default());
    restore(&image, &into).unwrap();
    assert!(into.pages() == memory.pages());
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    assert!(restore(&image, &into).unwrap_err().is_corrupt());
    image.remove().unwrap();
    dir.check();
}

#[test]
fn stages_that_break_the_rules() {
    let cases = [
        (
            "says_too_much",
            "encode says it wrote 16389 bytes into a buffer of 16388",
        ),
        (
            "huge_bound",
            "cannot tell a bound: it asks for 1703976 bytes for a frame of 65540, allowed are 196616",
        ),
        (
            "passes",
            "encode answers PASS, which only a stage that compresses may do",
        ),
        ("unknown_answer", "encode failed with code 7 and no message"),
        (
            "fails_late",
            "encoding chunk 2 (address 0x108000): the third chunk is too much",
        ),
    ];
    for (stage, text) in cases {
        let error = fails(&format!("{stage},disk"));
        assert!(matches!(error, PipelineError::Plugin { .. }), "{error}");
        assert!(told(&error).contains(text), "{}", told(&error));
    }
}

/// No reader takes a frame of more than 64 MiB, so none is written.
#[test]
fn stages_that_grow_beyond_a_frame_together() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let mut spec = spec(
        &format!(
            "double_bound,double_bound,disk:path={}",
            dir.path().display()
        ),
        1,
    );
    spec.stages[1].alias = "again".into();
    spec.chunk_len_bytes = 16 << 20;
    let error = checkpoint(&spec, &memory, &plans).err().unwrap();
    assert!(matches!(error, PipelineError::Config { .. }), "{error}");
    let text = told(&error);
    assert!(text.contains("67108880 bytes"), "{text}");
    dir.check();
    spec.chunk_len_bytes = 8 << 20;
    checkpoint(&spec, &memory, &plans)
        .unwrap()
        .remove()
        .unwrap();
    dir.check();
}

#[test]
fn stages_that_decode_to_something_else() {
    let cases = [
        (
            "decodes_short",
            "its frame decodes to 16387 bytes, its head asks for 16388",
            false,
        ),
        (
            "decodes_too_much",
            "decode says it wrote 16389 bytes into a buffer of 16388",
            false,
        ),
        (
            "crc32,decodes_wrong",
            "one of the stages `crc32`, `decodes_wrong`",
            false,
        ),
        ("decodes_wrong", "stage `decodes_wrong` got it wrong", false),
    ];
    for (stages, text, corrupt) in cases {
        let dir = Empty::new();
        let (memory, plans) = memory();
        let spec = spec(&format!("{stages},disk:path={}", dir.path().display()), 2);
        let image = checkpoint(&spec, &Arc::new(memory), &plans).unwrap();
        let error = restore(&image, &Arc::new(Memory::default())).unwrap_err();
        assert!(told(&error).contains(text), "{}", told(&error));
        assert_eq!(error.is_corrupt(), corrupt, "{error}");
        image.remove().unwrap();
        dir.check();
    }
}

#[test]
fn pages_that_cannot_be_read_or_written() {
    let dir = Empty::new();
    let (mut broken, plans) = memory();
    broken.broken = Some(0x10_5000);
    let spec = spec(&format!("lz4,disk:path={}", dir.path().display()), 2);
    let error = checkpoint(&spec, &Arc::new(broken), &plans).err().unwrap();
    assert_eq!(
        told(&error),
        "cannot read 0x104000+0x4000 of the target: the page is broken"
    );
    dir.check();

    let (memory, plans) = self::memory();
    let memory = Arc::new(memory);
    let image = checkpoint(&spec, &memory, &plans).unwrap();
    let mut into = Memory::default();
    into.broken = Some(0x80_0000);
    let error = restore(&image, &Arc::new(into)).unwrap_err();
    assert_eq!(
        told(&error),
        "cannot populate 0x800000+0x4000 of the target: the page is broken"
    );
    // The bytes are still there for another try.
    let back = Arc::new(Memory::default());
    restore(&image, &back).unwrap();
    assert!(back.pages() == memory.pages());
    image.remove().unwrap();
}

#[test]
fn a_cancelled_checkpoint_leaves_nothing() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let spec = spec(&format!("lz4,tape:path={}", dir.path().display()), 2);
    for n_before in [0, 1, 5, 12] {
        let cancel = Cancel::new();
        let setup = EncodeSetup {
            cancel: cancel.clone(),
            ..setup(&memory)
        };
        let mut encoder = Pipeline::load(&spec, stages())
            .unwrap()
            .prepare_encode(setup)
            .unwrap();
        encoder.begin(meta()).unwrap();
        plans[..n_before]
            .iter()
            .for_each(|plan| encoder.push(plan.clone()).unwrap());
        cancel.cancel(CancelReason::Interrupted);
        let error = encoder.finish().err().unwrap();
        assert!(
            matches!(error, PipelineError::Cancelled(CancelReason::Interrupted)),
            "{error}"
        );
        dir.check();
    }
}

/// A source that waits until it is cancelled: the caller hangs in a full queue.
struct Stuck(Cancel);

impl FetchPages for Stuck {
    fn fetch(&self, plan: &ChunkPlan, _: &mut [u8]) -> std::io::Result<()> {
        if plan.runs[0].addr.0 >= 0x80_0000 {
            self.0.cancel(CancelReason::TimedOut);
        }
        while self.0.reason().is_none() {
            std::thread::yield_now();
        }
        Ok(())
    }
}

#[test]
fn a_caller_that_waits_in_a_full_queue_is_told() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let cancel = Cancel::new();
    let fetch = Arc::new(Stuck(cancel.clone()));
    let setup = EncodeSetup {
        cancel: cancel.clone(),
        fetch,
        priority: Priority::Normal,
        ..setup(&Arc::new(memory))
    };
    let spec = spec(&format!("disk:path={}", dir.path().display()), 1);
    let encoder = Pipeline::load(&spec, stages())
        .unwrap()
        .prepare_encode(setup)
        .unwrap();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| feed(encoder, &plans).err().unwrap());
        // The caller cannot end: its one worker waits for this.
        cancel.cancel(CancelReason::TimedOut);
        assert!(matches!(
            caller.join().unwrap(),
            PipelineError::Cancelled(CancelReason::TimedOut)
        ));
    });
    dir.check();
}

#[test]
fn an_encoder_that_is_dropped_or_aborted_leaves_nothing() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let spec = spec(&format!("lz4,disk:path={}", dir.path().display()), 2);
    let start = || {
        let mut encoder = Pipeline::load(&spec, stages())
            .unwrap()
            .prepare_encode(setup(&memory))
            .unwrap();
        assert!(dir.path().exists());
        encoder.begin(meta()).unwrap();
        encoder.push(plans[0].clone()).unwrap();
        encoder.push(plans[1].clone()).unwrap();
        encoder
    };
    drop(start());
    dir.check();
    start().abort().unwrap();
    dir.check();
    drop(Pipeline::load(&spec, stages()).unwrap());
    dir.check();
}

#[test]
fn calls_in_a_wrong_order_are_errors() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let spec = spec(&format!("disk:path={}", dir.path().display()), 1);
    let start = || {
        Pipeline::load(&spec, stages())
            .unwrap()
            .prepare_encode(setup(&memory))
            .unwrap()
    };
    assert!(start().push(plans[0].clone()).is_err());
    assert!(start().finish().is_err());
    let mut twice = start();
    twice.begin(meta()).unwrap();
    assert!(twice.begin(meta()).is_err());
    drop(twice);
    dir.check();
    let odd = EncodeSetup {
        page_size: 3000,
        ..setup(&memory)
    };
    let error = Pipeline::load(&spec, stages())
        .unwrap()
        .prepare_encode(odd)
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "page size 3000 is none");
    dir.check();
}

/// The caller is the tracer of a frozen target: the stages abort the process when any
/// function of theirs, `destroy` too, is called on its thread.
#[test]
fn no_plugin_runs_on_the_calling_thread() {
    let dir = Empty::new();
    let (memory, plans) = memory();
    let memory = Arc::new(memory);
    let caller = rustix::thread::gettid().as_raw_nonzero();
    let path = dir.path();
    let pipeline = format!(
        "ordered:caller={caller},disk:caller={caller}:path={}",
        path.display()
    );
    let locator = {
        let image = checkpoint(&spec(&pipeline, 2), &memory, &plans).unwrap();
        restore(&image, &Arc::new(Memory::default())).unwrap();
        image.locator().unwrap()
    };
    let image = Pipeline::load(&spec(&pipeline, 2), stages())
        .unwrap()
        .open_image(&locator)
        .unwrap();
    image.verify(Cancel::new(), Arc::default()).unwrap();
    image.remove().unwrap();
    drop(
        Pipeline::load(&spec(&pipeline, 2), stages())
            .unwrap()
            .prepare_encode(setup(&memory))
            .unwrap(),
    );
    for faulty in [
        "fail_write=1",
        "fail_write=9",
        "fail_step=open",
        "fail_step=commit",
    ] {
        let spec = spec(&pipeline.replace("disk:", &format!("disk:{faulty}:")), 2);
        assert!(checkpoint(&spec, &memory, &plans).is_err());
    }
    assert!(Path::new(&path).parent().is_some() && plans[0].len_bytes() == 4 * PAGE as u64);
    dir.check();
}
