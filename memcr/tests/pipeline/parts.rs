//! Images that are kept while they are written: what is below the mark comes back, whoever
//! reads it, and nothing else passes for it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use memcr::pipeline::{Encoder, OpenImage, Pipeline, PipelineError};
use memcr::sink::Mark;

use crate::support::{
    Memory, PAGE, PLAIN, checkpoint, content, forget_keys, meta, plans, restore, setup, spec,
    stages,
};

const AT: u64 = 0x10_0000;
const N_PAGES: usize = 64;
const PER_CHUNK: usize = 4;
/// Its page cannot be read: chunks from this one on fail.
const BROKEN: u64 = AT + (40 * PAGE) as u64;

/// Before the sink: stages with tags, trailers, keys, and an order.
const STAGES: [&str; 5] = [
    "",
    "lz4,",
    "crc32,lz4,",
    "md5,zstd,encrypt,",
    "passthrough,",
];

struct Kept {
    dir: tempfile::TempDir,
    stages: String,
    encoder: Encoder,
    memory: Arc<Memory>,
    error: PipelineError,
}

/// An image whose checkpoint failed in the middle.
fn kept(before_sink: &str, workers: usize) -> Kept {
    // A tmpfs, as the sink wants one.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = dir.path().display();
    let stages_text = format!("{before_sink}tmpfs:allow_plain=true:dir={place}");
    let mut memory = Memory::default();
    memory.broken = Some(BROKEN);
    memory.put(AT, &content("mixed", N_PAGES));
    let memory = Arc::new(memory);
    let setup = memcr::pipeline::EncodeSetup {
        keep: true,
        ..setup(&memory)
    };
    let pipeline = Pipeline::load(&spec(&stages_text, workers), stages()).unwrap();
    assert!(pipeline.keeps_unfinished());
    let mut encoder = pipeline.prepare_encode(setup).unwrap();
    encoder.begin(meta()).unwrap();
    encoder.keep().unwrap();
    assert!(Path::new(encoder.locator().unwrap()).exists());
    let mut chunks = plans(PLAIN, AT, N_PAGES * PAGE, PER_CHUNK).into_iter();
    let error = chunks.find_map(|chunk| encoder.push(chunk).err());
    let error = error.unwrap_or_else(|| encoder.finish().err().unwrap());
    Kept {
        dir,
        stages: stages_text,
        encoder,
        memory,
        error,
    }
}

fn n_files(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

/// Everything below the mark, and no other bytes.
fn expect_part(image: &OpenImage, mark: Mark, source: &Memory) {
    let back = Arc::new(Memory::default());
    restore(image, &back).unwrap();
    let (back, source) = (back.pages(), source.pages());
    for (addr, page) in &back {
        assert_eq!(page, &source[addr], "{addr:#x}");
    }
    let end = AT + mark.n_chunks * (PER_CHUNK * PAGE) as u64;
    let is_stored = |page: &[u8]| page.iter().any(|&byte| byte != 0);
    for (addr, _) in source.range(AT..end).filter(|(_, page)| is_stored(page)) {
        assert!(back.contains_key(addr), "{addr:#x} is not there");
    }
}

#[test]
fn a_failure_leaves_what_is_below_the_mark() {
    for before_sink in STAGES {
        for workers in [1, 3] {
            let all = kept(before_sink, workers);
            assert!(
                matches!(all.error, PipelineError::Fetch { .. }),
                "{}",
                all.error
            );
            let mark = all.encoder.mark();
            assert!(mark.n_chunks <= 10, "{mark:?}: the eleventh cannot be read");
            let image = all.encoder.into_part(mark).unwrap();
            expect_part(&image, mark, &all.memory);
            image.remove().unwrap();
            assert_eq!(n_files(&all.dir), 0, "{before_sink}");
        }
    }
}

#[test]
fn who_comes_later_finds_it() {
    for before_sink in STAGES {
        let Kept {
            dir,
            stages: text,
            encoder,
            memory,
            ..
        } = kept(before_sink, 2);
        let (mark, locator) = (encoder.mark(), encoder.locator().unwrap().to_owned());
        drop(encoder);
        let load = || Pipeline::load(&spec(&text, 2), stages()).unwrap();
        let whole = load().open_image(&locator);
        assert!(
            whole.is_err_and(|error| error.is_corrupt()),
            "it is not complete"
        );
        let image = load().open_part(&locator, mark).unwrap();
        expect_part(&image, mark, &memory);
        forget_keys(&image);
        image.remove().unwrap();
        assert_eq!(n_files(&dir), 0, "{before_sink}");
    }
}

#[test]
fn a_mark_that_is_not_true_is_found_out() {
    let all = kept("lz4,", 1);
    let (mark, locator) = (
        all.encoder.mark(),
        all.encoder.locator().unwrap().to_owned(),
    );
    assert!(mark.n_chunks > 2, "{mark:?}");
    drop(all.encoder);
    let open = |n_chunks, len_bytes| {
        let mark = Mark {
            n_chunks,
            len_bytes,
        };
        let pipeline = Pipeline::load(&spec(&all.stages, 1), stages()).unwrap();
        pipeline.open_part(&locator, mark).map(drop)
    };
    open(mark.n_chunks, mark.len_bytes).unwrap();
    for (n_chunks, len_bytes) in [
        (mark.n_chunks + 1, mark.len_bytes),
        (mark.n_chunks, mark.len_bytes - 1),
        (mark.n_chunks, mark.len_bytes + (64 << 20)),
        (mark.n_chunks, 100),
        (mark.n_chunks, 0),
        (u64::MAX, u64::MAX),
    ] {
        let error = open(n_chunks, len_bytes).unwrap_err();
        assert!(error.is_corrupt(), "{n_chunks}, {len_bytes}: {error}");
    }
}

#[test]
fn no_flipped_bit_of_it_goes_unnoticed() {
    let all = kept("lz4,", 1);
    let (mark, locator) = (
        all.encoder.mark(),
        all.encoder.locator().unwrap().to_owned(),
    );
    drop(all.encoder);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&locator)
        .unwrap();
    for at in (0..mark.len_bytes).step_by(61) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at).unwrap();
        let pipeline = Pipeline::load(&spec(&all.stages, 1), stages()).unwrap();
        let opened = pipeline.open_part(&locator, mark);
        let read = opened.and_then(|image| restore(&image, &Arc::default()));
        let error = read.expect_err("it is not as it was written");
        assert!(error.is_corrupt(), "byte {at}: {error}");
        file.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn an_image_that_was_kept_is_completed_as_any_other() {
    for before_sink in STAGES {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let place = dir.path().display();
        let text = format!("{before_sink}tmpfs:allow_plain=true:dir={place}");
        let memory = Memory::default();
        memory.put(AT, &content("mixed", N_PAGES));
        let memory = Arc::new(memory);
        let chunks = plans(PLAIN, AT, N_PAGES * PAGE, PER_CHUNK);
        let setup = memcr::pipeline::EncodeSetup {
            keep: true,
            ..setup(&memory)
        };
        let pipeline = Pipeline::load(&spec(&text, 2), stages()).unwrap();
        let mut encoder = pipeline.prepare_encode(setup).unwrap();
        encoder.begin(meta()).unwrap();
        encoder.keep().unwrap();
        for chunk in chunks.clone() {
            encoder.push(chunk).unwrap();
        }
        let image = encoder.finish().unwrap();
        drop(encoder);
        let back = Arc::new(Memory::default());
        restore(&image, &back).unwrap();
        assert_eq!(back.nonzero(), memory.nonzero(), "{before_sink}");
        let usual = checkpoint(&spec(&text, 2), &memory, &chunks).unwrap();
        assert_eq!(image.facts().raw_bytes, usual.facts().raw_bytes);
        usual.remove().unwrap();
        image.remove().unwrap();
        assert_eq!(n_files(&dir), 0, "{before_sink}");
    }
}

/// The undo would make handles of its own, and wait for the call that hangs.
#[test]
fn nothing_is_given_back_early_with_a_plugin_of_one_call_at_a_time() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let sink = format!("tmpfs:allow_plain=true:dir={}", dir.path().display());
    let keeps = |before: &str| {
        let pipeline = Pipeline::load(&spec(&format!("{before},{sink}"), 1), stages()).unwrap();
        pipeline.keeps_unfinished()
    };
    assert!(keeps("lz4") && keeps("solo_in_handle"));
    assert!(!keeps("solo_in_plugin"));
}
