//! Where keys come from, which are refused, and that they stay secret.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use memcr_plugin_api::abi::code;
use memcr_plugin_api::stage::{Image, Transform};

use super::{chunk, image, keyring::forget, open, seal, stage, text, try_stage};
use crate::Encrypt;
use crate::master::MasterKey;

const RAW: &[u8; 32] = b"0123456789abcdef0123456789abcdeX";

fn key_file(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn with_file(path: &Path) -> Result<Encrypt, memcr_plugin_api::stage::StageError> {
    try_stage(&[("key_file", path.to_str().unwrap())])
}

/// One image of one chunk: state and frame.
pub(super) fn encode(stage: &Encrypt, image: &Image) -> (Vec<u8>, Vec<u8>) {
    let state = stage.begin_encode(image).unwrap();
    let frame = seal(stage, &mut stage.worker().unwrap(), &chunk(0), &text(70));
    (state, frame)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn one_key_in_every_form_opens_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        key_file(dir.path(), "raw", RAW, 0o600),
        key_file(dir.path(), "hex", hex(RAW).as_bytes(), 0o400),
        key_file(
            dir.path(),
            "line",
            format!("{}\n", hex(RAW).to_uppercase()).as_bytes(),
            0o600,
        ),
    ];
    let (state, frame) = encode(&with_file(&files[0]).unwrap(), &image(1));
    for file in &files {
        let stage = with_file(file).unwrap();
        stage.begin_decode(&image(1), &state).unwrap();
        assert_eq!(
            open(&stage, &chunk(0), &frame, 70).unwrap(),
            text(70),
            "{file:?}"
        );
    }
}

#[test]
fn a_descriptor_is_read_to_its_end_once() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // In two pieces, so that one read does not get all of it.
    let feeder = std::thread::spawn(move || {
        writer.write_all(&RAW[..5]).unwrap();
        writer.write_all(&RAW[5..]).unwrap();
    });
    let number = reader.as_raw_fd().to_string();
    let by_fd = stage(&[("key_fd", &number)]);
    feeder.join().unwrap();
    let (state, frame) = encode(&by_fd, &image(1));

    let dir = tempfile::tempdir().unwrap();
    let by_file = with_file(&key_file(dir.path(), "raw", RAW, 0o600)).unwrap();
    by_file.begin_decode(&image(1), &state).unwrap();
    assert_eq!(open(&by_file, &chunk(0), &frame, 70).unwrap(), text(70));

    let again = try_stage(&[("key_fd", &number)]).unwrap_err();
    assert_eq!(again.code, code::INVALID_CONFIG);
    assert!(again.hint.contains("once"), "{}", again.hint);
}

#[test]
fn a_descriptor_wins_over_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = key_file(dir.path(), "raw", RAW, 0o600);
    let (state, _) = encode(&with_file(&file).unwrap(), &image(1));
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[7; 32]).unwrap();
    drop(writer);
    let number = reader.as_raw_fd().to_string();
    let stage = stage(&[("key_file", file.to_str().unwrap()), ("key_fd", &number)]);
    assert_eq!(
        stage.begin_decode(&image(1), &state).unwrap_err().code,
        code::WRONG_KEY
    );
}

#[test]
fn a_missing_or_endless_descriptor_is_refused() {
    let closed = try_stage(&[("key_fd", "987654")]).unwrap_err();
    assert!(
        closed.message.contains("key_fd 987654"),
        "{}",
        closed.message
    );
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let endless = try_stage(&[("key_fd", &zero.as_raw_fd().to_string())]).unwrap_err();
    assert_eq!(endless.code, code::INVALID_CONFIG);
    assert!(
        endless.message.contains("128 bytes or more"),
        "{}",
        endless.message
    );
}

#[test]
fn wrong_key_missing_key_and_damage_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let right = with_file(&key_file(dir.path(), "right", RAW, 0o600)).unwrap();
    let wrong = with_file(&key_file(dir.path(), "wrong", &[1; 32], 0o600)).unwrap();
    let (state, _) = encode(&right, &image(1));

    let error = wrong.begin_decode(&image(1), &state).unwrap_err();
    assert_eq!(error.code, code::WRONG_KEY);
    assert!(error.message.starts_with("wrong key"), "{}", error.message);

    let error = stage(&[]).begin_decode(&image(1), &state).unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
    assert!(error.hint.contains("key_file"), "{}", error.hint);

    let mut damaged = state.clone();
    damaged[45] ^= 1;
    assert_eq!(
        right.begin_decode(&image(1), &damaged).unwrap_err().code,
        code::CORRUPT
    );
    right.begin_decode(&image(1), &state).unwrap();
}

#[test]
fn an_ephemeral_key_opens_the_images_of_its_handle() {
    let first = stage(&[]);
    let (state, frame) = encode(&first, &image(1));
    first.finish_encode(1).unwrap();
    first.begin_decode(&image(1), &state).unwrap();
    assert_eq!(open(&first, &chunk(0), &frame, 70).unwrap(), text(70));
    forget(&image(1));
}

#[test]
fn the_image_knows_its_cipher() {
    let dir = tempfile::tempdir().unwrap();
    let file = key_file(dir.path(), "raw", RAW, 0o600);
    let path = file.to_str().unwrap();
    let (state, frame) = encode(
        &stage(&[("key_file", path), ("cipher", "aes-192-cbc")]),
        &image(1),
    );
    let reader = stage(&[("key_file", path), ("cipher", "chacha20-poly1305")]);
    reader.begin_decode(&image(1), &state).unwrap();
    assert_eq!(open(&reader, &chunk(0), &frame, 70).unwrap(), text(70));
}

#[test]
fn credentials() {
    let dir = tempfile::tempdir().unwrap();
    // As the service manager leaves it: the mask of an access control list.
    key_file(dir.path(), "image-key", RAW, 0o440);
    key_file(dir.path(), "open", RAW, 0o444);
    let from = |dir: Option<&str>, name| MasterKey::from_credentials(dir, name);
    let here = dir.path().to_str();
    assert_eq!(from(here, "image-key").unwrap().bytes(), RAW);
    let code_of = |dir, name| from(dir, name).unwrap_err().code;
    assert_eq!(code_of(here, "open"), code::PERMISSION);
    assert_eq!(code_of(here, "absent"), code::NOT_FOUND);
    assert_eq!(code_of(None, "image-key"), code::NOT_FOUND);
    for name in ["", "..", "a/b", "/etc/passwd"] {
        assert_eq!(code_of(here, name), code::INVALID_CONFIG, "{name}");
    }
    // Of the parameters a file comes first.
    let file = key_file(dir.path(), "file", RAW, 0o600);
    stage(&[
        ("key_file", file.to_str().unwrap()),
        ("credential", "absent"),
    ]);
}

#[test]
fn unusable_contents() {
    let dir = tempfile::tempdir().unwrap();
    let not_hex = format!("{}zz", &hex(RAW)[..62]);
    let cases: [&[u8]; 7] = [
        b"",
        &RAW[..31],
        b"0123456789abcdef0123456789abcdeX\n",
        not_hex.as_bytes(),
        &[b'0'; 63],
        &[b'0'; 66],
        &[0; 4096],
    ];
    for content in cases {
        let error = with_file(&key_file(dir.path(), "key", content, 0o600)).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{} bytes", content.len());
        assert!(
            error.message.contains("64 hexadecimal digits"),
            "{}",
            error.message
        );
    }
}

#[test]
fn files_that_others_may_know() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o640, 0o604, 0o620, 0o601, 0o666] {
        let error = with_file(&key_file(dir.path(), "key", RAW, mode)).unwrap_err();
        assert_eq!(error.code, code::PERMISSION);
        assert!(
            error.message.contains(&format!("{mode:04o}")),
            "{}",
            error.message
        );
    }
}

#[test]
fn a_file_of_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = key_file(dir.path(), "key", RAW, 0o600);
    let stat = |file: &Path| rustix::fs::stat(file).unwrap();
    let euid = rustix::process::geteuid().as_raw();
    if euid == 0 {
        chown(&file, Some(12_345), None).unwrap();
        let error = with_file(&file).unwrap_err();
        assert_eq!(error.code, code::PERMISSION);
        assert!(error.message.contains("uid 12345"), "{}", error.message);
    }
    let error = crate::master::check_file("it", &stat(&file), stat(&file).st_uid + 1).unwrap_err();
    assert_eq!(error.code, code::PERMISSION);
}

#[test]
fn no_regular_file() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for path in [dir.path(), &fifo, Path::new("/dev/zero")] {
        let error = with_file(path).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{path:?}");
        assert!(
            error.message.contains("not a regular file"),
            "{}",
            error.message
        );
    }
    assert_eq!(
        with_file(&dir.path().join("absent")).unwrap_err().code,
        code::NOT_FOUND
    );
}

#[test]
fn no_message_or_debug_output_shows_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let stage = with_file(&key_file(dir.path(), "key", RAW, 0o600)).unwrap();
    let state = stage.begin_encode(&image(1)).unwrap();
    let shown = format!("{stage:?} {:?}", stage.begin_decode(&image(2), &state));
    let listed = format!("{RAW:?}");
    for secret in [
        "0123456789abcdef",
        &hex(RAW),
        listed.trim_matches(['[', ']']),
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("hidden"), "{shown}");
    let almost = format!("{}q", &hex(RAW)[..63]);
    let error = with_file(&key_file(dir.path(), "almost", almost.as_bytes(), 0o600)).unwrap_err();
    assert!(!format!("{error:?}").contains(&almost[..8]), "{error:?}");
}

#[test]
fn a_key_is_locked_and_kept_out_of_dumps() {
    let stage = stage(&[]);
    let at = stage.master.bytes().as_ptr() as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut within = false;
    let mut flags = None;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        if let Some((Ok(start), Ok(end))) =
            range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
        {
            within = (start..end).contains(&at);
        }
        if let (true, Some(words)) = (within, line.strip_prefix("VmFlags:")) {
            flags = Some(words.to_owned());
        }
    }
    let flags = flags.expect("the key's mapping is listed");
    assert!(flags.contains(" dd"), "not kept out of core dumps: {flags}");
    assert_eq!(flags.contains(" lo"), stage.master.is_locked(), "{flags}");
}
