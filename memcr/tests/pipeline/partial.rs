//! What is left of an image whose process was killed while it wrote it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use linux_keyutils::{KeyRing, KeyRingIdentifier};
use memcr::pages::{ChunkPlan, FetchPages};
use memcr::pipeline::{EncodeSetup, Pipeline, PipelineSpec, Priority};
use memcr::sys::keyring;

use crate::support::{Memory, PLAIN, content, meta, plans, setup, skip, spec, stages};

/// The pipeline of the other process, and where it says what it does.
const PIPELINE: &str = "MEMCR_TEST_PIPELINE";
const SAYS: &str = "MEMCR_TEST_SAYS";

/// Is killed when the sixth chunk is fetched: others are in the sink by then.
struct Deadly(Arc<Memory>);

impl FetchPages for Deadly {
    fn fetch(&self, plan: &ChunkPlan, out: &mut [u8]) -> std::io::Result<()> {
        if plan.runs[0].addr.0 >= 0x11_4000 {
            std::process::abort();
        }
        self.0.fetch(plan, out)
    }
}

/// Not a test: what the other process does.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn other_process() {
    let pipeline = std::env::var(PIPELINE).expect("run by another test");
    let memory = Memory::default();
    memory.put(0x10_0000, &content("noise", 24));
    let memory = Arc::new(memory);
    let setup = EncodeSetup {
        fetch: Arc::new(Deadly(memory.clone())),
        priority: Priority::Normal,
        ..setup(&memory)
    };
    let mut encoder = Pipeline::load(&spec(&pipeline, 1), stages())
        .unwrap()
        .prepare_encode(setup)
        .unwrap();
    let id: String = encoder
        .image_id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let says = format!("{} {id}", encoder.locator().unwrap());
    std::fs::write(std::env::var_os(SAYS).unwrap(), says).unwrap();
    encoder.begin(meta()).unwrap();
    for plan in plans(PLAIN, 0x10_0000, 24 * 4096, 4) {
        encoder.push(plan).unwrap();
    }
    let _ = encoder.finish();
    unreachable!("it was to be killed");
}

/// Locator and id of an image that was never finished.
fn unfinished(pipeline: &str) -> (String, String) {
    // Whoever is first builds the stages.
    let _ = stages();
    let says = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "partial::other_process", "--ignored"])
        .env(PIPELINE, pipeline)
        .env(SAYS, says.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(6),
        "{status}"
    );
    let said = std::fs::read_to_string(says.path()).unwrap();
    let (locator, id) = said.rsplit_once(' ').unwrap();
    (locator.to_owned(), id.to_owned())
}

fn discard(spec: &PipelineSpec, locator: &str, id: &str) -> bool {
    Pipeline::discard(spec, stages(), locator, id).unwrap()
}

#[test]
fn of_a_file_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = format!("lz4,file:dir={}", dir.path().display());
    let (locator, id) = unfinished(&pipeline);
    let place = dir.path().canonicalize().unwrap();
    assert_eq!(Path::new(&locator).parent().unwrap(), place);
    // Where files always have a name something is left up to here.
    assert!(!discard(&spec(&pipeline, 1), &locator, &id));
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}

/// A sink that has but one name for an image, from its first byte on.
#[test]
fn what_has_its_name_already_is_removed_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("image");
    let pipeline = format!("lz4,disk:path={}", path.display());
    let (locator, id) = unfinished(&pipeline);
    assert_eq!(Path::new(&locator), path);
    assert!(path.metadata().unwrap().len() > 4 * 4 * 4096);
    let spec = spec(&pipeline, 1);
    let opened = Pipeline::load(&spec, stages())
        .unwrap()
        .open_image(&locator);
    assert!(opened.is_err(), "it was not finished");
    assert!(!discard(&spec, &locator, &"0".repeat(32)));
    assert!(path.exists(), "another one");
    assert!(discard(&spec, &locator, &id));
    assert!(!path.exists());
}

#[test]
fn its_key_goes_too() {
    if let Err(error) = keyring::probe() {
        return skip("keyring", &error);
    }
    let dir = tempfile::tempdir().unwrap();
    let pipeline = format!("encrypt,file:dir={}", dir.path().display());
    let (locator, id) = unfinished(&pipeline);
    let has_key = || {
        KeyRing::from_special_id(KeyRingIdentifier::User, false)
            .and_then(|ring| ring.search(&format!("memcr:{id}:encrypt")))
            .is_ok()
    };
    assert!(has_key());
    assert!(!discard(&spec(&pipeline, 1), &locator, &id));
    assert!(!has_key());
}
