//! memcr stays small, whatever the size of the target: the pipeline alone in a process.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::num::NonZeroUsize;
use std::sync::Arc;

use memcr::pages::{ChunkClass, ChunkPlan, FetchPages, PageRun, PopulatePages, RemoteAddr};
use memcr::pipeline::{Cancel, DecodeSetup, EncodeSetup, Pipeline, Priority};
use memcr::sink::ImageMeta;

use crate::support::{scratch, spec, stages};

#[path = "pipeline/support.rs"]
#[allow(dead_code)]
mod support;

const CHUNK: u64 = 64 << 10;

/// Pages without a memory behind them: cheap to make, and they compress.
struct Made;

impl FetchPages for Made {
    fn fetch(&self, plan: &ChunkPlan, out: &mut [u8]) -> std::io::Result<()> {
        let seed = plan.runs[0].addr.0.to_le_bytes();
        out.chunks_exact_mut(64)
            .for_each(|words| words[..8].copy_from_slice(&seed));
        Ok(())
    }
}

impl PopulatePages for Made {
    fn populate(&self, _: ChunkClass, _: &[PageRun], _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// Peak of the resident set since the last call, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    // 5: resets the peak (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Moves `n_chunks` there and back, and answers the peak in KiB.
fn round(stages_text: &str, n_chunks: u64) -> u64 {
    let path = scratch().join("memory.img");
    let mut spec = spec(&format!("{stages_text}disk:path={}", path.display()), 4);
    spec.chunk_len_bytes = CHUNK;
    let pipeline = Pipeline::load(&spec, stages()).unwrap();
    peak();
    let setup = EncodeSetup {
        pid: 1,
        page_size: 4096,
        expected_len_bytes: n_chunks * CHUNK,
        fetch: Arc::new(Made),
        keep: false,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::default(),
    };
    let mut encoder = pipeline.prepare_encode(setup).unwrap();
    encoder.begin(ImageMeta::default()).unwrap();
    let class = ChunkClass {
        through_proc_mem: false,
        elide_zero: true,
        huge: false,
    };
    for i in 1..=n_chunks {
        let mut runs = encoder.spare_runs();
        runs.push(PageRun {
            addr: RemoteAddr(i * CHUNK),
            len_bytes: CHUNK,
        });
        encoder.push(ChunkPlan { class, runs }).unwrap();
    }
    let image = encoder.finish().unwrap();
    let setup = DecodeSetup {
        populate: Arc::new(Made),
        workers: NonZeroUsize::new(4),
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::default(),
    };
    let mut decoder = image.prepare_decode(setup).unwrap();
    decoder.pass(|_| true).unwrap();
    assert_eq!(decoder.finish().unwrap().n_chunks, n_chunks);
    image.remove().unwrap();
    peak()
}

/// One test, so that nothing else in the process takes memory.
#[test]
fn the_peak_is_bounded_and_does_not_grow_with_the_target() {
    memcr::sys::heap::keep_small();
    for stages in ["", "lz4,", "zstd,crc32,", "lz4,encrypt,"] {
        let small = round(stages, 200);
        let large = round(stages, 6000);
        assert!(large < 16 << 10, "`{stages}`: {large} KiB");
        assert!(
            large < small + 1024,
            "`{stages}`: {small} KiB for 200 chunks, {large} for 6000"
        );
    }
}
