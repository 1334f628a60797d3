//! Limits of the process. They are shared by all of its threads, so this is one test in
//! a program of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;

use memcr_filestore::{Cache, Directory, ImageFile};
use memcr_plugin_api::abi::code;
use memcr_plugin_api::sink::NewImage;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

#[test]
fn umask_and_file_size_limit() {
    let temp = tempfile::tempdir().unwrap();
    let create = |expected_len, compressed| {
        let dir = Directory::open(temp.path().to_str().unwrap()).unwrap();
        ImageFile::create(
            dir,
            &NewImage {
                id: [1; 16],
                pid: 7,
                expected_len,
                compressed,
                keep: false,
            },
            Cache::Keep,
        )
    };
    for mask in [0o000, 0o777] {
        let before = umask(Mode::from_raw_mode(mask));
        let made = create(0, false);
        umask(before);
        made.unwrap().commit(0, false).unwrap();
        let mode = std::fs::metadata(temp.path().join("pages-7.img"))
            .unwrap()
            .mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {mask:04o}");
    }

    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: Some(10_000),
            maximum,
        },
    )
    .unwrap();
    assert_eq!(create(10_001, false).unwrap_err().code, code::NO_SPACE);
    let image = create(20_000, true).unwrap();
    image.write_at(9_000, &[1; 1000]).unwrap();
    // Without a check of ours SIGXFSZ would end the test here.
    let error = image.write_at(9_001, &[1; 1000]).unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(error.message.contains("RLIMIT_FSIZE"), "{}", error.message);
    assert_eq!(
        image.write_at(u64::MAX, &[1]).unwrap_err().code,
        code::NO_SPACE
    );
}
