//! Ephemeral keys in the kernel keyring: found by another handle, the host's to take away.

use linux_keyutils::{Key, KeyError, KeyRing, KeyRingIdentifier};
use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Image, Transform};

use super::keys::encode;
use super::{chunk, open, stage, text, try_stage};

/// An image that no other test has, nor a run of this one at the same time.
fn new_image() -> Image {
    let mut id = [0; 16];
    openssl::rand::rand_bytes(&mut id).unwrap();
    Image {
        id,
        ..super::image(0)
    }
}

/// The user keyring, or why there is none (said).
fn user_keyring() -> Option<KeyRing> {
    // Of this test alone: a key of the same name would be the same key.
    let name = name(&new_image());
    let ring = KeyRing::from_special_id(KeyRingIdentifier::User, true)
        .and_then(|ring| ring.add_key(&name, "x").map(|key| (ring, key)));
    match ring {
        Ok((ring, key)) => {
            ring.unlink_key(key).unwrap();
            Some(ring)
        }
        Err(error) => {
            assert!(
                std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
                "required: keyring: {error}"
            );
            eprintln!("skipped: no keyring: {error}");
            None
        }
    }
}

fn name(image: &Image) -> String {
    let id: String = image.id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("memcr:{id}:encrypt")
}

fn find(image: &Image) -> Result<Key, KeyError> {
    KeyRing::from_special_id(KeyRingIdentifier::User, false)?.search(&name(image))
}

/// What the host does when the image goes.
pub(super) fn forget(image: &Image) {
    if let Ok(key) = find(image) {
        key.invalidate().unwrap();
    }
}

#[test]
fn another_handle_finds_the_key_of_a_finished_image() {
    if user_keyring().is_none() {
        return;
    }
    let image = new_image();
    let first = stage(&[]);
    let (state, frame) = encode(&first, &image);
    let trailer = first.finish_encode(1).unwrap();
    drop(first);
    let second = stage(&[]);
    second.begin_decode(&image, &state).unwrap();
    assert_eq!(open(&second, &chunk(0), &frame, 70).unwrap(), text(70));
    second.finish_decode(1, &trailer).unwrap();

    forget(&image);
    let error = stage(&[]).begin_decode(&image, &state).unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
    assert_eq!(
        error.message,
        "the key of this image is gone: it was ephemeral, and the keyring does not have it"
    );
}

/// Whether the kernel will take it away by itself (proc_keys(5), fourth field).
fn expires(image: &Image) -> bool {
    // By its number: one that it has replaced may still be listed under its name.
    let serial = format!("{:08x}", find(image).unwrap().get_id().0);
    let keys = std::fs::read_to_string("/proc/keys").unwrap();
    let line = keys.lines().find(|line| line.starts_with(&serial));
    line.unwrap().split_whitespace().nth(3) != Some("perm")
}

#[test]
fn the_key_of_an_image_that_was_not_committed_is_the_hosts_for_a_day() {
    if user_keyring().is_none() {
        return;
    }
    let (first, second) = (new_image(), new_image());
    let stage = stage(&[]);
    stage.begin_encode(&first).unwrap();
    stage.begin_encode(&second).unwrap();
    encode(&stage, &second);
    stage.finish_encode(1).unwrap();
    drop(stage);
    assert!(expires(&first));
    // Its image is complete, and may still never be seen by anybody.
    assert!(expires(&second));
    forget(&first);
    forget(&second);
}

#[test]
fn only_its_user_may_use_it() {
    if user_keyring().is_none() {
        return;
    }
    let image = new_image();
    let stage = stage(&[]);
    encode(&stage, &image);
    let metadata = find(&image).unwrap().metadata().unwrap();
    // Nothing for who possesses it, its group, others; all but WRITE for its user.
    assert_eq!(metadata.get_perms().bits(), 0x003b_0000);
    assert_eq!(
        metadata.get_uid(),
        rustix::process::geteuid().as_raw(),
        "whose it is"
    );
}

#[test]
fn another_key_in_its_place_is_a_wrong_one() {
    let Some(ring) = user_keyring() else {
        return;
    };
    let image = new_image();
    let first = stage(&[]);
    let (state, _) = encode(&first, &image);
    first.finish_encode(1).unwrap();
    forget(&image);
    for (content, wanted) in [
        (&[9; 32][..], code::WRONG_KEY),
        (&[9; 5][..], code::INVALID_CONFIG),
    ] {
        let key = ring.add_key(&name(&image), content).unwrap();
        let error = stage(&[]).begin_decode(&image, &state).unwrap_err();
        // Where the session does not lead to the user keyring a key as it is put
        // there cannot be read at all.
        assert!(
            [wanted, code::PERMISSION].contains(&error.code),
            "{}",
            error.message
        );
        ring.unlink_key(key).unwrap();
    }
}

#[test]
fn a_key_that_was_given_is_not_put_there() {
    if user_keyring().is_none() {
        return;
    }
    let image = new_image();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, [7; 32]).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let stage = stage(&[("key_file", path.to_str().unwrap())]);
    encode(&stage, &image);
    assert!(find(&image).is_err());
}

#[test]
fn a_key_by_its_description() {
    if user_keyring().is_none() {
        return;
    }
    // In the keyring of this thread's session: any user may read what is there.
    let session = KeyRing::from_special_id(KeyRingIdentifier::Session, true).unwrap();
    let description = format!("memcr-test-{}", std::process::id());
    let hex = "5a".repeat(32);
    let key = session.add_key(&description, &hex).unwrap();
    let image = new_image();
    let by_keyring = stage(&[("keyring", &description)]);
    let (state, frame) = encode(&by_keyring, &image);
    let again = stage(&[("keyring", &description)]);
    again.begin_decode(&image, &state).unwrap();
    assert_eq!(open(&again, &chunk(0), &frame, 70).unwrap(), text(70));
    key.invalidate().unwrap();
    let error = try_stage(&[("keyring", &description)]).unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
    assert!(
        error.message.contains("no key of that name"),
        "{}",
        error.message
    );
}
