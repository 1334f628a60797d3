//! An ephemeral key outlives its process, and goes with its image.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use linux_keyutils::{KeyRing, KeyRingIdentifier};
use memcr::pipeline::{Cancel, OpenImage, Pipeline, PipelineError};
use memcr::sys::keyring;

use crate::support::{
    Memory, PLAIN, checkpoint, content, feed, plans, restore, setup, skip, spec, stages,
};

/// Where the other process is to put its image.
const PATH: &str = "MEMCR_TEST_IMAGE";

fn pipeline(path: &Path) -> memcr::pipeline::PipelineSpec {
    spec(&format!("lz4,encrypt,disk:path={}", path.display()), 2)
}

fn memory() -> Memory {
    let memory = Memory::default();
    memory.put(0x10_0000, &content("text", 20));
    memory
}

/// Whether the key of the image is in the user keyring.
fn has_key(image_id: &str) -> bool {
    KeyRing::from_special_id(KeyRingIdentifier::User, false)
        .and_then(|ring| ring.search(&format!("memcr:{image_id}:encrypt")))
        .is_ok()
}

fn hex(id: [u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Not a test: what the other process does. It ends as if it were killed.
#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn other_process() {
    let path = PathBuf::from(std::env::var_os(PATH).expect("run by another test"));
    let memory = Arc::new(memory());
    let plans = plans(PLAIN, 0x10_0000, 20 * 4096, 4);
    let _image = checkpoint(&pipeline(&path), &memory, &plans).unwrap();
    std::process::abort();
}

/// Runs the function above and waits for its end.
fn run_other_process(path: &Path) {
    let me = std::env::current_exe().unwrap();
    // Whoever is first builds the stages.
    let _ = stages();
    let status = Command::new(me)
        .args(["--exact", "keys::other_process", "--ignored"])
        .env(PATH, path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(6), "{status}");
}

fn open(path: &Path) -> Result<OpenImage, PipelineError> {
    Pipeline::load(&pipeline(path), stages())?.open_image(path.to_str().unwrap())
}

/// Says that a test cannot run here.
fn has_keyring() -> bool {
    keyring::probe()
        .inspect_err(|error| skip("keyring", error))
        .is_ok()
}

#[test]
fn an_image_of_a_process_that_was_killed_can_be_restored() {
    if !has_keyring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    run_other_process(&path);
    let image = open(&path).unwrap();
    let id = image.facts().image_id.clone();
    assert!(has_key(&id));
    image.verify(Cancel::new(), Arc::default()).unwrap();
    let back = Arc::new(Memory::default());
    restore(&image, &back).unwrap();
    assert!(back.pages() == memory().pages());
    image.remove().unwrap();
    assert!(!has_key(&id));
    assert!(!path.exists());
}

/// Whoever knows nothing but the file has the key all the same: the image says whose.
#[test]
fn so_can_it_be_read_as_a_file_until_its_key_is_gone() {
    if !has_keyring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    run_other_process(&path);
    let verify = || {
        let image = Pipeline::open_file(&path, stages(), &[])?;
        image.verify(Cancel::new(), Arc::default()).map(|_| image)
    };
    let image = verify().unwrap();
    let id = u128::from_str_radix(&image.facts().image_id, 16).unwrap();
    keyring::forget(&id.to_be_bytes()).unwrap();
    let error = verify().err().unwrap();
    assert!(!error.is_corrupt(), "{error}");
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        text,
        "the key of this image is gone: it was ephemeral, and the keyring does not have it"
    );
    image.remove().unwrap();
}

#[test]
fn a_checkpoint_that_comes_to_nothing_leaves_no_key() {
    if !has_keyring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let memory = Arc::new(memory());
    let start = || {
        Pipeline::load(&pipeline(&path), stages())
            .unwrap()
            .prepare_encode(setup(&memory))
            .unwrap()
    };
    let encoder = start();
    let id = hex(encoder.image_id());
    assert!(has_key(&id));
    drop(encoder);
    assert!(!has_key(&id));
    let encoder = start();
    let id = hex(encoder.image_id());
    encoder.abort().unwrap();
    assert!(!has_key(&id));
    for fault in ["fail_step=commit", "fail_write=9"] {
        let spec = spec(&format!("encrypt,disk:path={}:{fault}", path.display()), 1);
        let plans = plans(PLAIN, 0x10_0000, 20 * 4096, 4);
        let encoder = Pipeline::load(&spec, stages())
            .unwrap()
            .prepare_encode(setup(&memory))
            .unwrap();
        let id = hex(encoder.image_id());
        assert!(has_key(&id));
        assert!(feed(encoder, &plans).is_err());
        assert!(!has_key(&id), "{fault}");
    }
}
