//! Writes the first images of the corpus: `seeds DIR`. One per stage and class of chunk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memcr::pages::{ChunkClass, ChunkPlan, FetchPages, PageRun, RemoteAddr};
use memcr::pipeline::{Cancel, EncodeSetup, Pipeline, PipelineSpec, Priority, StageSpec};
use memcr::sink::{ImageMeta, Protection, TargetIdentity, VmaRecord, VmaTable};

const PAGE: u64 = 4096;

/// Pages of text, every third of zeros.
struct Text;

impl FetchPages for Text {
    fn fetch(&self, _: &ChunkPlan, out: &mut [u8]) -> std::io::Result<()> {
        for (i, page) in out.chunks_exact_mut(PAGE as usize).enumerate() {
            page.fill(if i % 3 == 2 { 0 } else { b'a' + i as u8 });
        }
        Ok(())
    }
}

fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("usage: seeds DIR"));
    for stages in [
        "",
        "lz4",
        "zstd",
        "lz4,md5",
        "crc32,zstd,crc32",
        "passthrough,lz4",
    ] {
        for n_chunks in [0, 1, 4] {
            if stages.is_empty() && n_chunks > 1 {
                continue; // its chunks are as long as the pages
            }
            seed(&dir, stages, n_chunks);
        }
    }
}

fn seed(dir: &Path, stages: &str, n_chunks: u64) {
    let stage = |name: &str, params| StageSpec {
        alias: name.into(),
        plugin: name.into(),
        params,
    };
    let mut specs: Vec<_> = stages
        .split_terminator(',')
        .map(|name| stage(name, vec![]))
        .collect();
    let scratch = dir.join("scratch");
    std::fs::create_dir_all(&scratch).expect("a directory for the sink");
    specs.push(stage(
        "file",
        vec![("dir".into(), scratch.display().to_string())],
    ));
    let spec = PipelineSpec {
        stages: specs,
        workers: None,
        chunk_len_bytes: 16 << 10,
        ..PipelineSpec::default()
    };
    let setup = EncodeSetup {
        pid: 1,
        page_size: PAGE as u32,
        expected_len_bytes: 0,
        fetch: Arc::new(Text),
        keep: false,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::default(),
    };
    let pipeline = Pipeline::load(&spec, &memcr_fuzz::stages()).expect("stages are there");
    let mut encoder = pipeline.prepare_encode(setup).expect("the sink opens");
    encoder.begin(meta()).expect("tables are written");
    (0..n_chunks).for_each(|i| encoder.push(plan(i)).expect("a good plan"));
    let image = encoder.finish().expect("an image");
    let name = if stages.is_empty() {
        "plain".into()
    } else {
        stages.replace(',', "-")
    };
    let locator = image.locator().expect("a path");
    std::fs::copy(locator, dir.join(format!("{name}-{n_chunks}"))).expect("a copy");
    image.remove().expect("no image");
    let _ = std::fs::remove_dir(&scratch);
}

fn plan(i: u64) -> ChunkPlan {
    let class = ChunkClass {
        through_proc_mem: i == 1,
        elide_zero: i != 2,
        huge: i == 3,
    };
    let run = |page: u64| PageRun {
        addr: RemoteAddr((i * 64 + page) * PAGE),
        len_bytes: PAGE,
    };
    ChunkPlan {
        class,
        runs: (1..4).map(run).collect(),
    }
}

fn meta() -> ImageMeta {
    let mut vmas = VmaTable::new();
    vmas.push(&VmaRecord {
        start: 0x1000,
        end: 0x9000,
        protection: Protection {
            read: true,
            ..Protection::default()
        },
        offset: 0,
        dev_major: 8,
        dev_minor: 1,
        inode: 7,
        name: b"[heap]",
    });
    let target = TargetIdentity {
        pid: 1,
        start_time: 2,
        boot_id: [3; 16],
        comm: b"c".into(),
        exe: b"/e".into(),
    };
    ImageMeta { target, vmas }
}
