//! What goes in comes out, whatever the stages, the content and the number of workers.

use std::sync::Arc;

use memcr::pages::{ChunkPlan, PageRun, RemoteAddr};
use memcr::pipeline::{Cancel, DecodeSetup, Pipeline, Priority, Progress};

use crate::support::{
    FILE, HUGE, Memory, PAGE, PLAIN, checkpoint, content, meta, plans, restore, scratch, setup,
    spec, stages,
};

fn image_path(name: &str) -> String {
    scratch()
        .join(name)
        .with_extension("img")
        .display()
        .to_string()
}

/// Three regions of different classes and their plans, the last chunks short.
fn memory(kind: &str) -> (Arc<Memory>, Vec<ChunkPlan>) {
    let memory = Memory::default();
    let mut all = Vec::new();
    for (class, address, n_pages) in [
        (PLAIN, 0x10_0000, 37),
        (HUGE, 0x7f00_0000_0000, 32),
        (FILE, 0x40_0000, 5),
    ] {
        let bytes = content(kind, n_pages);
        memory.put(address, &bytes);
        all.extend(plans(class, address, bytes.len(), 16));
    }
    (Arc::new(memory), all)
}

fn check(pipeline: &str, kind: &str, workers: usize) {
    let (memory, plans) = memory(kind);
    let image = checkpoint(&spec(pipeline, workers), &memory, &plans).unwrap();
    let back = Arc::new(Memory::default());
    let stats = restore(&image, &back).unwrap();
    let mut wanted = memory.nonzero();
    // Pages of the file class come back even when they are zeros.
    wanted.extend(
        memory
            .pages()
            .range(0x40_0000..0x50_0000)
            .map(|(k, v)| (*k, v.clone())),
    );
    assert!(back.pages() == wanted, "{pipeline} {kind} {workers}");
    let facts = image.facts().clone();
    assert_eq!(facts.n_chunks, plans.len() as u64);
    assert_eq!(
        (stats.n_pages, stats.n_zero_pages),
        (facts.n_pages, facts.n_zero_pages)
    );
    assert_eq!(facts.n_pages + facts.n_zero_pages, 37 + 32 + 5);
    assert_eq!(facts.n_pages, wanted.len() as u64);
    let verified = image
        .verify(Cancel::new(), Arc::new(Progress::default()))
        .unwrap();
    assert_eq!(verified, stats);
    assert_eq!(image.read_meta().unwrap(), meta());
    image.remove().unwrap();
}

#[test]
fn every_stage_and_their_combinations() {
    let chains = [
        "",
        "passthrough,",
        "lz4,",
        "zstd,",
        "md5,",
        "crc32,",
        "xor,",
        "lz4,crc32,",
        "md5,lz4,",
        "encrypt,",
        "lz4,encrypt,",
        "md5,zstd,encrypt,crc32,",
        "ordered,",
        "lz4,ordered,",
        "ordered,xor,ordered,",
    ];
    for (i, chain) in chains.iter().enumerate() {
        for sink in ["disk", "tape"] {
            let path = image_path(&format!("combo{i}{sink}"));
            for kind in ["text", "noise", "zero", "striped"] {
                check(&format!("{chain}{sink}:path={path}"), kind, 3);
            }
            assert!(!std::path::Path::new(&path).exists());
        }
    }
}

#[test]
fn any_number_of_workers() {
    for workers in [1, 2, 7] {
        let path = image_path(&format!("workers{workers}"));
        check(&format!("ordered,lz4,tape:path={path}"), "text", workers);
        check(&format!("lz4,md5,disk:path={path}"), "striped", workers);
    }
}

/// Stages that fail when a call comes while another one is in them.
#[test]
fn the_thread_model_of_a_stage_is_kept() {
    for stage in ["solo_in_plugin", "solo_in_handle"] {
        let path = image_path(stage);
        check(&format!("{stage},{stage},disk:path={path}"), "text", 6);
    }
}

#[test]
fn the_real_file_sink() {
    let dir = scratch().join("file-sink");
    std::fs::create_dir_all(&dir).unwrap();
    check(&format!("lz4,file:dir={}", dir.display()), "text", 2);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn nothing_at_all_is_an_image_too() {
    let path = image_path("empty");
    let memory = Arc::new(Memory::default());
    for chain in ["", "lz4,", "encrypt,", "md5,", "ordered,"] {
        let image =
            checkpoint(&spec(&format!("{chain}disk:path={path}"), 2), &memory, &[]).unwrap();
        assert_eq!((image.facts().n_chunks, image.facts().n_pages), (0, 0));
        restore(&image, &Arc::new(Memory::default())).unwrap();
        image.verify(Cancel::new(), Arc::default()).unwrap();
        image.remove().unwrap();
    }
}

/// More chunks than an index block has entries, in file order and not.
#[test]
fn an_index_of_many_blocks() {
    let path = image_path("blocks");
    let bytes = content("noise", 2500);
    for sink in ["disk", "tape"] {
        let memory = Arc::new(Memory::default());
        memory.put(0x10_0000, &bytes);
        let image = checkpoint(
            &spec(&format!("{sink}:path={path}"), 3),
            &memory,
            &plans(PLAIN, 0x10_0000, bytes.len(), 1),
        )
        .unwrap();
        assert_eq!(image.facts().n_chunks, 2500);
        let back = Arc::new(Memory::default());
        restore(&image, &back).unwrap();
        assert!(back.pages() == memory.pages());
    }
}

/// A chunk of many short runs, with zeros at every edge.
#[test]
fn runs_of_one_page() {
    let path = image_path("runs");
    let memory = Arc::new(Memory::default());
    let bytes = content("striped", 16);
    let run = |i: u64| PageRun {
        addr: RemoteAddr(0x10_0000 + i * 0x3000),
        len_bytes: PAGE as u64,
    };
    let runs: Vec<_> = (0..16).map(run).collect();
    runs.iter()
        .zip(bytes.chunks_exact(PAGE))
        .for_each(|(run, page)| memory.put(run.addr.0, page));
    let plan = ChunkPlan { class: PLAIN, runs };
    let image = checkpoint(&spec(&format!("lz4,disk:path={path}"), 1), &memory, &[plan]).unwrap();
    assert_eq!((image.facts().n_pages, image.facts().n_zero_pages), (8, 8));
    let back = Arc::new(Memory::default());
    restore(&image, &back).unwrap();
    assert!(back.pages() == memory.nonzero());
}

/// Another process: a new pipeline finds the image by its locator, or by its path alone.
#[test]
fn a_committed_image_is_found_again() {
    let path = image_path("again");
    let (memory, plans) = memory("text");
    let pipeline = format!("md5,lz4,xor:with=7,disk:path={path}");
    let locator = checkpoint(&spec(&pipeline, 2), &memory, &plans)
        .unwrap()
        .locator()
        .unwrap();
    let image = Pipeline::load(&spec(&pipeline, 2), stages())
        .unwrap()
        .open_image(&locator)
        .unwrap();
    assert_eq!(image.target(), &meta().target);
    let back = Arc::new(Memory::default());
    restore(&image, &back).unwrap();
    assert_eq!(back.pages().len() as u64, image.facts().n_pages);

    let workers = std::num::NonZeroUsize::new(3);
    let image = Pipeline::open_file(path.as_ref(), stages(), &[])
        .unwrap()
        .with_workers(workers);
    assert_eq!(image.describe().len(), 3);
    let setup = DecodeSetup {
        populate: Arc::new(Memory::default()),
        workers: None,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::default(),
    };
    let decoder = image.prepare_decode(setup).unwrap();
    assert_eq!(decoder.n_workers(), 3);
    drop(decoder);
    image.verify(Cancel::new(), Arc::default()).unwrap();
    let other = spec(&pipeline.replace("with=7", "with=8"), 2);
    let error = Pipeline::load(&other, stages())
        .unwrap()
        .open_image(&locator)
        .err()
        .unwrap();
    assert!(error.to_string().contains("was encoded by"), "{error}");

    let summary = memcr::sink::inspect(path.as_ref()).unwrap();
    assert_eq!(summary.facts, *image.facts());
    assert_eq!(
        summary.pipeline[2].params,
        [("with".to_owned(), "7".to_owned())]
    );
    assert_eq!(
        summary.vmas.iter().nth(1).unwrap().to_string(),
        "1000-2000 r--p 00000000 08:01 1 /lib/some thing\n"
    );
    assert_eq!((summary.pid, summary.comm.as_str()), (4711, "victim"));
    image.remove().unwrap();
    assert!(!std::path::Path::new(&path).exists());
}

/// Images that lie there since they were made: a change that cannot read them any more
/// is a new major version of the format.
#[test]
fn images_of_before_are_still_read() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/image");
    let mut n_images = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let image = Pipeline::open_file(&path, stages(), &[]).unwrap();
        let stats = image.verify(Cancel::new(), Arc::default()).unwrap();
        let n_chunks = path.to_str().unwrap().rsplit('-').next().unwrap();
        assert_eq!(stats.n_chunks.to_string(), n_chunks, "{}", path.display());
        n_images += 1;
    }
    assert!(n_images >= 15, "{n_images}");
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let path = image_path("plans");
    let run = |addr, len_bytes| PageRun {
        addr: RemoteAddr(addr),
        len_bytes,
    };
    let cases = [
        vec![],
        vec![run(0x1000, 0)],
        vec![run(0x1001, 4096)],
        vec![run(0x1000, 100)],
        vec![run(0x2000, 4096), run(0x1000, 4096)],
        vec![run(0x1000, 8192), run(0x2000, 4096)],
        vec![run(0x1000, 17 * 4096)],
        vec![run(u64::MAX - 4095, 8192)],
    ];
    for runs in cases {
        let memory = Arc::new(Memory::default());
        let pipeline = Pipeline::load(&spec(&format!("disk:path={path}"), 1), stages()).unwrap();
        let mut encoder = pipeline.prepare_encode(setup(&memory)).unwrap();
        encoder.begin(meta()).unwrap();
        let plan = ChunkPlan { class: PLAIN, runs };
        assert!(encoder.push(plan.clone()).is_err(), "{plan:?}");
    }
    assert!(!std::path::Path::new(&path).exists());
}
