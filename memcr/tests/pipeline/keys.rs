//! An ephemeral key outlives its process, and goes with its image.

use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use linux_keyutils::{KeyRing, KeyRingIdentifier};
use memcr::pipeline::{Cancel, OpenImage, Pipeline, PipelineError, StageSpec};
use memcr::sys::keyring;

use crate::faults::told;
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

/// Who reads the image has the key in another place, and need not know the cipher.
#[test]
fn a_key_may_be_given_in_another_way_than_when_the_image_was_made() {
    if !has_keyring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("image"), dir.path().join("key"));
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let ring = KeyRing::from_special_id(KeyRingIdentifier::User, false).unwrap();
    let name = format!("memcr-test-{}", std::process::id());
    let in_ring = ring.add_key(&name, &[7; 32]).unwrap();
    let descriptor = std::fs::File::open(&key).unwrap();
    let by_fd = format!(
        "encrypt:cipher=aes-128-cbc:key_fd={}",
        descriptor.as_raw_fd()
    );
    let by_file = format!("encrypt:key_file={}", key.display());
    let read_with = |params: &[(&str, &str)]| {
        let params = params
            .iter()
            .map(|&(key, value)| (key.into(), value.into()));
        let given = StageSpec {
            alias: "encrypt".into(),
            params: params.collect(),
            ..StageSpec::default()
        };
        let image = Pipeline::open_file(&path, stages(), &[given])?;
        image.verify(Cancel::new(), Arc::default())
    };
    let plans = plans(PLAIN, 0x10_0000, 20 * 4096, 4);
    let key_file = ("key_file", key.to_str().unwrap());
    for (made, reads) in [
        (by_fd, [&[("keyring", name.as_str())][..], &[key_file]]),
        (by_file, [&[("cipher", "aes-192-cbc")][..], &[]]),
    ] {
        let spec = spec(&format!("lz4,{made},disk:path={}", path.display()), 2);
        let image = checkpoint(&spec, &Arc::new(memory()), &plans).unwrap();
        for params in reads {
            let read = read_with(params).map_err(|error| told(&error));
            read.unwrap_or_else(|error| panic!("{made}, {params:?}: {error}"));
        }
        image.remove().unwrap();
    }
    ring.unlink_key(in_ring).unwrap();
}

/// What decides how bytes are encoded must be as it was.
#[test]
fn what_says_how_is_still_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let spec = spec(&format!("xor:with=7,disk:path={}", path.display()), 1);
    let plans = plans(PLAIN, 0x10_0000, 20 * 4096, 4);
    let image = checkpoint(&spec, &Arc::new(memory()), &plans).unwrap();
    let other = StageSpec {
        alias: "xor".into(),
        params: vec![("with".into(), "8".into())],
        ..StageSpec::default()
    };
    let error = Pipeline::open_file(&path, stages(), &[other])
        .err()
        .unwrap();
    let text = told(&error);
    assert!(text.starts_with("the image was encoded by [xor"), "{text}");
    image.remove().unwrap();
}

/// When a key of the user keyring ends by itself (proc_keys(5), fourth field); `None`: never.
fn ends(image_id: &str) -> Option<String> {
    let keys = std::fs::read_to_string("/proc/keys").unwrap();
    let key = keys.lines().find(|line| line.contains(image_id)).unwrap();
    let ends = key.split_whitespace().nth(3).unwrap().to_owned();
    (ends != "perm").then_some(ends)
}

/// Until then it ends by itself, should nobody be left to take it away.
#[test]
fn a_key_lasts_from_the_commit_on() {
    if !has_keyring() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = pipeline(&dir.path().join("image"));
    let memory = Arc::new(memory());
    let pipeline = Pipeline::load(&spec, stages()).unwrap();
    let encoder = pipeline.prepare_encode(setup(&memory)).unwrap();
    let id = hex(encoder.image_id());
    assert!(ends(&id).is_some());
    let image = feed(encoder, &plans(PLAIN, 0x10_0000, 20 * 4096, 4)).unwrap();
    assert_eq!(ends(&id), None);
    image.remove().unwrap();
}
