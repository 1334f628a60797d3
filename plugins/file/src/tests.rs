//! What the parameters do; the file itself is tested in `memcr-filestore`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use memcr_filestore::testing::TestTmpfs;

use super::*;

fn sink(params: &[(&str, &str)]) -> FileSink {
    FileSink::create(&Params::new(params.iter().copied()), Host::default()).unwrap()
}

fn image(expected_len: u64, compressed: bool) -> NewImage {
    NewImage {
        id: [5; 16],
        pid: 42,
        expected_len,
        compressed,
        keep: false,
    }
}

#[test]
fn an_image_from_start_to_end() {
    for extra in [
        &[][..],
        &[("sync", "true")],
        &[("cache", "keep")],
        &[("sync", "true"), ("cache", "keep")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut params = vec![("dir", dir.path().to_str().unwrap())];
        params.extend_from_slice(extra);
        let mut writer = sink(&params);
        writer.open_new(&image(3, false)).unwrap();
        writer.write_at(0, b"abc").unwrap();
        writer.commit(3, 3).unwrap();
        let locator = writer.locator().unwrap();
        assert!(locator.ends_with("/pages-42.img"), "{locator}");
        // Restoring finds it by its locator alone, whatever `dir` is then.
        let mut reader = sink(&[]);
        reader.open_existing(&locator).unwrap();
        let mut out = [0; 8];
        assert_eq!(reader.read_at(0, &mut out).unwrap(), 3);
        assert_eq!(reader.len().unwrap(), 3);
        reader.remove().unwrap();
        reader.remove().unwrap();
        writer.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn space_is_checked_before_anything_is_written() {
    let Some(mount) = TestTmpfs::mount("size=1m") else {
        return;
    };
    let open = |expected_len, compressed| {
        sink(&[("dir", mount.path().to_str().unwrap())]).open_new(&image(expected_len, compressed))
    };
    open(1 << 20, false).unwrap();
    let error = open((1 << 20) + 1, false).unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(error.message.contains("1024 KiB free"), "{}", error.message);
    open(100 << 20, true).unwrap();
    assert_eq!(open(1 << 30, true).unwrap_err().code, code::NO_SPACE);
    open(0, false).unwrap();
}

#[test]
fn ram_is_checked_where_the_image_takes_some() {
    let Some(unlimited) = TestTmpfs::mount("size=0") else {
        return;
    };
    let dir = ("dir", unlimited.path().to_str().unwrap());
    let error = sink(&[dir]).open_new(&image(1 << 50, false)).unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(error.message.contains("the RAM has"), "{}", error.message);
    let mut sink = sink(&[dir]);
    sink.open_new(&image(1, false)).unwrap();
    sink.reserve = Some(Reserve::of(u64::MAX)); // More than any machine has left.
    let error = sink.write_at(0, b"x").unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(
        error.message.contains("must stay free"),
        "{}",
        error.message
    );
}

#[test]
fn a_missing_directory_is_named() {
    let error = sink(&[("dir", "/nowhere/at/all")])
        .open_new(&image(0, false))
        .unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
    assert!(
        error.message.contains("/nowhere/at/all"),
        "{}",
        error.message
    );
    let error = sink(&[("dir", "/proc/version")])
        .open_new(&image(0, false))
        .unwrap_err();
    assert_eq!(error.code, code::IO);
    let error = sink(&[("dir", "/proc")])
        .open_new(&image(0, false))
        .unwrap_err();
    assert!(
        error.message.contains("make an image in /proc"),
        "{}",
        error.message
    );
    assert_eq!(error.hint, "set `dir` to a directory that takes files");
}

#[test]
fn nothing_works_before_it_is_open() {
    let mut closed = sink(&[]);
    assert_eq!(closed.write_at(0, b"x").unwrap_err().code, code::INTERNAL);
    assert_eq!(closed.commit(0, 0).unwrap_err().code, code::INTERNAL);
    assert_eq!(closed.locator().unwrap_err().code, code::INTERNAL);
    closed.remove().unwrap();
}
