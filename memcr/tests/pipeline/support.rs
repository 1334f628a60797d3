//! A memory of vectors, the stages of the tests, and a whole checkpoint in one call.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use memcr::pages::{ChunkClass, ChunkPlan, FetchPages, PageRun, PopulatePages, RemoteAddr};
use memcr::pipeline::{
    Cancel, DecodeSetup, DecodeStats, EncodeSetup, Encoder, OpenImage, Pipeline, PipelineError,
    PipelineSpec, Priority, Progress, SearchPath, StageSpec,
};
use memcr::sink::{ImageMeta, Protection, TargetIdentity, VmaRecord, VmaTable};

pub(crate) const PAGE: usize = 4096;

pub(crate) const PLAIN: ChunkClass = ChunkClass {
    through_proc_mem: false,
    elide_zero: true,
    huge: false,
};
pub(crate) const HUGE: ChunkClass = ChunkClass {
    huge: true,
    ..PLAIN
};
pub(crate) const FILE: ChunkClass = ChunkClass {
    elide_zero: false,
    ..PLAIN
};

/// Pages by address: source and destination.
#[derive(Default)]
pub(crate) struct Memory {
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Address whose page can be neither read nor written.
    pub(crate) broken: Option<u64>,
}

impl Memory {
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        let mut pages = self.pages.lock().unwrap();
        for (i, page) in bytes.chunks_exact(PAGE).enumerate() {
            pages.insert(address + (i * PAGE) as u64, page.to_vec());
        }
    }

    pub(crate) fn pages(&self) -> BTreeMap<u64, Vec<u8>> {
        self.pages.lock().unwrap().clone()
    }

    /// All pages but those of zeros.
    pub(crate) fn nonzero(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut pages = self.pages();
        pages.retain(|_, page| page.iter().any(|&byte| byte != 0));
        pages
    }

    fn check(&self, runs: &[PageRun]) -> io::Result<()> {
        let hit = |run: &PageRun| {
            self.broken
                .is_some_and(|at| run.addr.0 <= at && at < run.end().0)
        };
        if runs.iter().any(hit) {
            Err(io::Error::other("the page is broken"))
        } else {
            Ok(())
        }
    }
}

impl FetchPages for Memory {
    fn fetch(&self, plan: &ChunkPlan, out: &mut [u8]) -> io::Result<()> {
        self.check(&plan.runs)?;
        let pages = self.pages.lock().unwrap();
        let addresses = plan
            .runs
            .iter()
            .flat_map(|run| (run.addr.0..run.end().0).step_by(PAGE));
        for (address, out) in addresses.zip(out.chunks_exact_mut(PAGE)) {
            out.copy_from_slice(&pages[&address]);
        }
        Ok(())
    }
}

impl PopulatePages for Memory {
    fn populate(&self, _: ChunkClass, runs: &[PageRun], bytes: &[u8]) -> io::Result<()> {
        self.check(runs)?;
        assert_eq!(
            runs.iter().map(|run| run.len_bytes as usize).sum::<usize>(),
            bytes.len()
        );
        let mut rest = bytes;
        for run in runs {
            let (bytes, behind) = rest.split_at(run.len_bytes as usize);
            self.put(run.addr.0, bytes);
            rest = behind;
        }
        Ok(())
    }
}

/// Bytes by a rule, so that every page differs: text that compresses, noise that does
/// not, or pages of zeros between pages of text.
pub(crate) fn content(kind: &str, n_pages: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(n_pages * PAGE);
    for page in 0..n_pages {
        match kind {
            "zero" => bytes.extend([0; PAGE]),
            "striped" if page % 2 == 0 => bytes.extend([0; PAGE]),
            "noise" => bytes.extend((0..PAGE).map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })),
            _ => bytes.extend(
                format!("page {page} of some text; ")
                    .bytes()
                    .cycle()
                    .take(PAGE),
            ),
        }
    }
    bytes
}

/// Chunks of one class over `bytes` at `address`, `per_chunk` pages each.
pub(crate) fn plans(
    class: ChunkClass,
    address: u64,
    len: usize,
    per_chunk: usize,
) -> Vec<ChunkPlan> {
    let starts = (0..len).step_by(per_chunk * PAGE);
    let run = |at: usize| PageRun {
        addr: RemoteAddr(address + at as u64),
        len_bytes: (len - at).min(per_chunk * PAGE) as u64,
    };
    starts
        .map(|at| ChunkPlan {
            class,
            runs: vec![run(at)],
        })
        .collect()
}

/// A pipeline from `lz4,disk:path=/x:fail_write=3`.
pub(crate) fn spec(text: &str, workers: usize) -> PipelineSpec {
    let stage = |word: &str| {
        let mut parts = word.split(':');
        let plugin = parts.next().unwrap().to_owned();
        let pair = |part: &str| {
            part.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .unwrap()
        };
        StageSpec {
            alias: plugin.clone(),
            plugin,
            params: parts.map(pair).collect(),
        }
    };
    PipelineSpec {
        stages: text.split(',').map(stage).collect(),
        workers: NonZeroUsize::new(workers),
        chunk_len_bytes: 64 << 10,
        ..PipelineSpec::default()
    }
}

pub(crate) fn setup(memory: &Arc<Memory>) -> EncodeSetup {
    EncodeSetup {
        pid: 4711,
        page_size: PAGE as u32,
        expected_len_bytes: 1 << 20,
        fetch: memory.clone(),
        keep: false,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::new(Progress::default()),
    }
}

pub(crate) fn meta() -> ImageMeta {
    let mut vmas = VmaTable::new();
    for i in 0..3 {
        vmas.push(&VmaRecord {
            start: 0x1000 * i,
            end: 0x1000 * (i + 1),
            protection: Protection {
                read: true,
                ..Protection::default()
            },
            offset: 0,
            dev_major: 8,
            dev_minor: 1,
            inode: i,
            name: b"/lib/some thing\n",
        });
    }
    let target = TargetIdentity {
        pid: 4711,
        start_time: 99,
        boot_id: [5; 16],
        comm: b"victim".to_vec(),
        exe: b"/bin/v".to_vec(),
    };
    ImageMeta { target, vmas }
}

/// A whole checkpoint.
pub(crate) fn checkpoint(
    spec: &PipelineSpec,
    memory: &Arc<Memory>,
    plans: &[ChunkPlan],
) -> Result<OpenImage, PipelineError> {
    let encoder = Pipeline::load(spec, stages())?.prepare_encode(setup(memory))?;
    feed(encoder, plans)
}

pub(crate) fn feed(mut encoder: Encoder, plans: &[ChunkPlan]) -> Result<OpenImage, PipelineError> {
    encoder.begin(meta())?;
    for plan in plans {
        let mut runs = encoder.spare_runs();
        assert!(runs.is_empty());
        runs.extend_from_slice(&plan.runs);
        encoder.push(ChunkPlan {
            class: plan.class,
            runs,
        })?;
    }
    encoder.finish()
}

/// A whole restore in two passes, huge pages first.
pub(crate) fn restore(image: &OpenImage, into: &Arc<Memory>) -> Result<DecodeStats, PipelineError> {
    let setup = DecodeSetup {
        populate: into.clone(),
        workers: None,
        priority: Priority::Normal,
        cancel: Cancel::new(),
        progress: Arc::new(Progress::default()),
    };
    let mut decoder = image.prepare_decode(setup)?;
    decoder.pass(|class| class.huge)?;
    decoder.pass(|class| !class.huge)?;
    decoder.finish()
}

/// Takes away what stages keep for an image that a test does not remove.
pub(crate) fn forget_keys(image: &OpenImage) {
    let id = u128::from_str_radix(&image.facts().image_id, 16).unwrap();
    memcr::sys::keyring::forget(&id.to_be_bytes()).unwrap();
}

/// Says that a test cannot run here for want of a kernel feature. The built-in harness
/// counts it as passed; with `MEMCR_TEST_REQUIRE=all` it fails.
pub(crate) fn skip(feature: &str, reason: &dyn std::fmt::Display) {
    assert!(
        std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
        "required: {feature}: {reason}"
    );
    eprintln!("skipped: {feature}: {reason}");
}

/// A directory of this process, on the disk where the build is. The next run sweeps it.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let all = target_dir().join("test-stages");
        sweep(&all);
        let dir = all.join(std::process::id().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir
    })
}

/// The directories with all stages of the tests, built once.
pub(crate) fn stages() -> &'static SearchPath {
    static STAGES: OnceLock<SearchPath> = OnceLock::new();
    STAGES.get_or_init(|| {
        let dir = scratch();
        build_c_stages(dir);
        // Theirs first: nothing of ours has one of their names.
        SearchPath::new(vec![build_plugins(), dir.into()])
    })
}

/// Removes what earlier runs left, whose processes are gone.
fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !Path::new("/proc").join(&name).exists()
            && name
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok())
        {
            // Another test may sweep at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Where this profile's files are: this program lies in its `deps`.
pub(crate) fn target_dir() -> PathBuf {
    std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(2)
        .unwrap()
        .to_path_buf()
}

/// Builds the plugins of the workspace: a test of this package does not pull them in.
fn build_plugins() -> PathBuf {
    let dir = target_dir();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // The directory has the name of the profile, but for one.
    let profile = dir.file_name().filter(|&name| name != "debug");
    cargo
        .arg("--profile")
        .arg(profile.unwrap_or("dev".as_ref()));
    cargo.arg("--target-dir").arg(dir.parent().unwrap());
    for name in [
        "lz4",
        "zstd",
        "md5",
        "crc32",
        "encrypt",
        "passthrough",
        "file",
        "tmpfs",
    ] {
        cargo.arg("-p").arg(format!("memcr-stage-{name}"));
    }
    // The stage that fails on demand lives with the campaign.
    cargo.args(["-p", "memcr-faults"]);
    assert!(cargo.status().unwrap().success(), "{cargo:?}");
    dir
}

fn build_c_stages(dir: &Path) {
    let anywhere = "MEMCR_CAPABILITY_WRITE_ANYWHERE|MEMCR_CAPABILITY_READ_BEFORE_COMMIT";
    compile(
        dir,
        "memcr/tests/stages/disk.c",
        "disk",
        &[
            ("CAPABILITIES", anywhere),
            ("THREADS", "MEMCR_THREADS_PARALLEL"),
        ],
    );
    compile(
        dir,
        "memcr/tests/stages/disk.c",
        "tape",
        &[
            ("CAPABILITIES", "0"),
            ("THREADS", "MEMCR_THREADS_PER_HANDLE"),
        ],
    );
    let odd = [
        "ORDERED",
        "SAYS_TOO_MUCH",
        "HUGE_BOUND",
        "DOUBLE_BOUND",
        "GROWING_BOUND",
        "PASSES",
        "UNKNOWN_ANSWER",
        "FAILS_LATE",
        "DECODES_WRONG",
        "DECODES_SHORT",
        "DECODES_TOO_MUCH",
        "KEEPS_TO_ITSELF",
    ];
    for name in odd {
        compile(
            dir,
            "memcr/tests/stages/odd.c",
            &name.to_lowercase(),
            &[("ODD", name), ("THREADS", "MEMCR_THREADS_PARALLEL")],
        );
    }
    for (name, threads) in [
        ("SOLO_IN_PLUGIN", "MEMCR_THREADS_SERIAL"),
        ("SOLO_IN_HANDLE", "MEMCR_THREADS_PER_HANDLE"),
        ("HANGS_IN_PLUGIN", "MEMCR_THREADS_SERIAL"),
    ] {
        let defines = [("ODD", name), ("THREADS", threads)];
        compile(
            dir,
            "memcr/tests/stages/odd.c",
            &name.to_lowercase(),
            &defines,
        );
    }
    for name in ["TAGS_AND_CHANGES", "CHECKS_AND_CHANGES", "MADE_OF_NOTHING"] {
        let source = "memcr/tests/stages/tag.c";
        compile(dir, source, &name.to_lowercase(), &[("ODD", name)]);
    }
    compile(dir, "plugin-api/examples/xor.c", "xor", &[]);
}

/// Compiles a C stage into `libmemcr_stage_NAME.so`.
pub(crate) fn compile(dir: &Path, source: &str, name: &str, defines: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut cc = Command::new("gcc");
    cc.current_dir(root).args([
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-Iplugin-api/include",
    ]);
    cc.arg(format!("-DNAME=\"{name}\""));
    defines.iter().for_each(|(key, value)| {
        cc.arg(format!("-D{key}={value}"));
    });
    cc.arg(source)
        .arg("-o")
        .arg(dir.join(format!("libmemcr_stage_{name}.so")));
    assert!(cc.status().unwrap().success(), "{cc:?}");
}
