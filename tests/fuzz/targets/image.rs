//! An image that may be anything: opening, inspecting and verifying it, and opening what is
//! there of it, ends, without a panic and within bounded memory.
//!
//! Seven of eight mutations make the CRCs right again, so that the checks behind them,
//! and the decoders of the stages, see the damage.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use memcr::pipeline::{Cancel, Pipeline, SearchPath};
use memcr::sink::{ImageReader, Mark, inspect_source};
use memcr_fuzz::{reseal, stages};

static STAGES: LazyLock<SearchPath> = LazyLock::new(stages);

fuzz_target!(|bytes: &[u8]| {
    let bytes = Arc::new(bytes.to_vec());
    let opened = ImageReader::open(bytes.clone()).is_ok();
    assert_eq!(
        opened,
        inspect_source(bytes.clone()).is_ok(),
        "inspect and open disagree"
    );
    // Of an image that was never finished the last index was not written.
    let end = bytes.windows(4).rposition(|tag| tag == b"INDX");
    let mark = Mark {
        n_chunks: u64::from(bytes.first().copied().unwrap_or(0) % 2),
        len_bytes: end.unwrap_or(bytes.len()) as u64,
    };
    let _ = ImageReader::open_part(bytes.clone(), mark);
    if let Ok(image) = Pipeline::open_source(bytes, &STAGES, &[]) {
        let _ = image.verify(Cancel::new(), Arc::default());
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if seed % 8 != 0 {
        reseal(&mut data[..size]);
    }
    size
});
