//! What is left to another memcr: pipelines that load elsewhere, images to be removed.

use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use memcr::pipeline::{Cancel, Encoder, OpenImage, Pipeline, PipelineSpec};

use crate::faults::told;
use crate::support::{Memory, PLAIN, checkpoint, content, plans, setup, spec, stages};

fn stored(spec: &PipelineSpec) -> OpenImage {
    let memory = Memory::default();
    memory.put(0x10_0000, &content("text", 4));
    let plans = plans(PLAIN, 0x10_0000, 4 * 4096, 4);
    checkpoint(spec, &Arc::new(memory), &plans).unwrap()
}

#[test]
fn an_image_is_removed_by_its_sink_alone_and_only_if_it_is_the_one() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(&format!("lz4,file:dir={}", dir.path().display()), 1);
    let image = stored(&spec);
    let (locator, id) = (image.locator().unwrap(), image.facts().image_id.clone());
    drop(image);
    let mut without_plugins = spec.clone();
    without_plugins.stages[0].plugin = "no-such-plugin".into();
    let discard = |id: &str| Pipeline::discard(&without_plugins, stages(), &locator, id).unwrap();
    assert!(!discard("00112233445566778899aabbccddeeff"));
    assert!(Path::new(&locator).exists());
    assert!(discard(&id));
    assert!(!Path::new(&locator).exists());
    assert!(!discard(&id), "there is none any more");
}

#[test]
fn what_is_no_image_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(&format!("file:dir={}", dir.path().display()), 1);
    let path = dir.path().join("image");
    std::fs::write(&path, "something dear").unwrap();
    let locator = path.to_str().unwrap();
    assert!(Pipeline::discard(&spec, stages(), locator, "00").is_err());
    assert!(path.exists());
}

#[test]
fn another_process_gets_paths_that_mean_the_same_and_no_descriptors() {
    let mut key = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut key, &[7; 32]).unwrap();
    std::io::Seek::rewind(&mut key).unwrap();
    let given = spec(
        &format!(
            "lz4:acceleration=2,encrypt:key_fd={}:cipher=aes-128-cbc,file:dir=here",
            key.as_raw_fd()
        ),
        1,
    );
    let pipeline = Pipeline::load(&given, stages()).unwrap();
    let here = std::env::current_dir().unwrap().join("here");
    let left = format!(
        "lz4:acceleration=2,encrypt:cipher=aes-128-cbc,file:dir={}",
        here.display()
    );
    assert_eq!(*pipeline.portable_spec(), spec(&left, 1));
}

fn encoder(stages_text: &str) -> Encoder {
    let memory = Arc::new(Memory::default());
    let pipeline = Pipeline::load(&spec(stages_text, 1), stages()).unwrap();
    pipeline.prepare_encode(setup(&memory)).unwrap()
}

/// A stage has the secret of its image in the one handle that encodes it.
#[test]
fn what_only_this_process_can_read_is_known_before_anything_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let disk = format!("disk:path={}", dir.path().join("image").display());
    let hoarded = format!("lz4,keeps_to_itself,{disk}");
    let encoder = encoder(&hoarded);
    let reason = told(encoder.only_here().unwrap());
    let wanted = "stage `keeps_to_itself`: cannot begin to decode: my secret is not here";
    assert_eq!(reason, wanted);
    let refused = encoder.expect_elsewhere().err().unwrap();
    assert_eq!(told(&refused), wanted);
    assert!(dir.path().read_dir().unwrap().next().is_none());
    let image = stored(&spec(&hoarded, 1));
    assert!(image.is_only_here());
    image.verify(Cancel::new(), Arc::default()).unwrap();
    image.remove().unwrap();
}

#[test]
fn what_others_can_read_is_known_too() {
    let dir = tempfile::tempdir().unwrap();
    let disk = format!("disk:path={}", dir.path().join("image").display());
    let key = dir.path().join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let key_file = format!("encrypt:key_file={}", key.display());
    let descriptor = std::fs::File::open(&key).unwrap();
    // Whoever restores it gives the key again.
    let key_fd = format!("encrypt:key_fd={}", descriptor.as_raw_fd());
    for stage in ["lz4,md5", "ordered", "xor:with=7", &key_file, &key_fd] {
        let image = stored(&spec(&format!("{stage},{disk}"), 1));
        assert!(!image.is_only_here(), "{stage}");
        image.remove().unwrap();
    }
}
