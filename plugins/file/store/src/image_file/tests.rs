#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::*;
use crate::testing::{TestTmpfs, as_nobody, is_root, skip};

fn new_image(pid: u64) -> NewImage {
    NewImage {
        id: [0xab; 16],
        pid,
        expected_len: 1 << 20,
        compressed: false,
        keep: false,
    }
}

fn directory(path: &Path) -> Directory {
    Directory::open(path.to_str().unwrap()).unwrap()
}

fn create(path: &Path) -> ImageFile {
    ImageFile::create(directory(path), &new_image(7), Cache::Drop).unwrap()
}

/// The same where no file can be without a name.
fn create_hidden(path: &Path) -> ImageFile {
    ImageFile::create_from(None, directory(path), &new_image(7), Cache::Drop).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Every way to create, each with a directory of its own.
fn both(mut test: impl FnMut(&Path, ImageFile)) {
    for create in [create, create_hidden] {
        let dir = tempfile::tempdir().unwrap();
        test(dir.path(), create(dir.path()));
    }
}

#[test]
fn an_image_appears_whole_at_its_commit() {
    both(|dir, mut image| {
        image.write_at(3, b"defg").unwrap();
        image.write_at(0, b"abc").unwrap();
        let mut early = [0; 7];
        assert_eq!(
            image.read_at(0, &mut early).unwrap(),
            7,
            "readable before its commit"
        );
        assert!(!names(dir).contains(&"pages-7.img".to_owned()));
        image.commit(7, false).unwrap();
        assert_eq!(names(dir), ["pages-7.img"]);
        let path = dir.canonicalize().unwrap().join("pages-7.img");
        assert_eq!(Path::new(&image.path()), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdefg");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let mut out = [0; 10];
        assert_eq!(image.read_at(4, &mut out).unwrap(), 3);
        assert_eq!(&out[..3], b"efg");
        assert_eq!(image.len_bytes().unwrap(), 7);
    });
}

#[test]
fn blocks_that_were_taken_ahead_are_given_back() {
    const STEP: u64 = 16 << 20;
    both(|dir, mut image| {
        let held = |image: &ImageFile| image.file.metadata().unwrap().blocks() * 512;
        image.write_at(0, b"abcdefg").unwrap();
        let stat = rustix::fs::statfs(dir).unwrap();
        let room = rustix::fs::statvfs(dir).unwrap();
        let is_done = stat.f_type == 0xef53 && room.f_bavail * room.f_frsize > 9 * STEP;
        if is_done {
            assert!(held(&image) >= STEP, "{}", held(&image));
        }
        assert_eq!(image.ahead.is_behind(7), is_done);
        assert_eq!(image.len_bytes().unwrap(), 7);
        image.commit(7, false).unwrap();
        assert!(held(&image) < STEP / 2, "{}", held(&image));
    });
}

#[test]
fn only_the_fallback_has_a_name_before() {
    let dir = tempfile::tempdir().unwrap();
    let unnamed = create(dir.path());
    if unnamed.link == Link::Unnamed {
        assert!(names(dir.path()).is_empty());
    } else {
        skip("no O_TMPFILE in the temporary directory");
    }
    drop(unnamed);
    let _hidden = create_hidden(dir.path());
    assert_eq!(
        names(dir.path()),
        [format!(".pages-7.img.{}", "ab".repeat(16))]
    );
}

#[test]
fn leftovers_of_the_dead_are_swept_and_those_of_the_living_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dead = format!(".pages-3.img.{}", "0".repeat(32));
    std::fs::write(dir.path().join(&dead), b"left by a killed memcr").unwrap();
    std::fs::write(dir.path().join(".pages-3.img.notes"), b"of somebody").unwrap();
    symlink(
        "/etc/passwd",
        dir.path().join(format!(".pages-4.img.{}", "0".repeat(32))),
    )
    .unwrap();
    let mut living = create_hidden(dir.path());
    let living_name = names(dir.path())
        .into_iter()
        .find(|name| name.contains("abab"))
        .unwrap();
    assert!(!names(dir.path()).contains(&dead));
    let other = NewImage {
        id: [0xcd; 16],
        ..new_image(8)
    };
    drop(ImageFile::create_from(None, directory(dir.path()), &other, Cache::Keep).unwrap());
    assert!(names(dir.path()).contains(&living_name), "in use");
    assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
    living.write_at(0, b"abc").unwrap();
    living.commit(3, false).unwrap();
    assert_eq!(
        std::fs::read(dir.path().join("pages-7.img")).unwrap(),
        b"abc"
    );
}

#[test]
fn an_image_not_committed_leaves_nothing() {
    both(|dir, image| {
        image.write_at(0, b"abc").unwrap();
        drop(image);
        assert!(names(dir).is_empty());
    });
    both(|dir, image| {
        image.remove().unwrap();
        assert!(names(dir).is_empty());
    });
}

#[test]
fn a_committed_image_stays_until_it_is_removed() {
    both(|dir, mut image| {
        image.write_at(0, b"abc").unwrap();
        image.commit(3, true).unwrap();
        let path = image.path();
        drop(image);
        assert_eq!(names(dir), ["pages-7.img"]);
        let again = ImageFile::open(&path, Cache::Drop).unwrap();
        let mut out = [0; 3];
        assert_eq!(again.read_at(0, &mut out).unwrap(), 3);
        assert_eq!(&out, b"abc");
        assert_eq!(again.path(), path);
        again.remove().unwrap();
        assert!(names(dir).is_empty());
    });
}

/// `pages-7.img` lies there before the image is made, or comes just before its commit.
fn with_a_taken_name(put: impl Fn(&Path), is_still_there: impl Fn(&Path) -> bool) {
    let other = format!("pages-7-{}.img", "ab".repeat(16));
    for late in [false, true] {
        for create in [create, create_hidden] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("pages-7.img");
            if !late {
                put(&path);
            }
            let mut image = create(dir.path());
            if late {
                put(&path);
            }
            image.write_at(0, b"new").unwrap();
            image.commit(3, false).unwrap();
            assert!(is_still_there(&path));
            assert!(image.path().ends_with(&other), "{}", image.path());
            assert_eq!(std::fs::read(dir.path().join(&other)).unwrap(), b"new");
            assert_eq!(names(dir.path()).len(), 2);
            image.remove().unwrap();
            assert_eq!(names(dir.path()), ["pages-7.img"]);
        }
    }
}

#[test]
fn an_image_of_somebody_else_is_not_replaced() {
    with_a_taken_name(
        |path| std::fs::write(path, b"of one that is held").unwrap(),
        |path| std::fs::read(path).unwrap() == b"of one that is held",
    );
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let precious = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&precious, b"precious").unwrap();
    with_a_taken_name(
        |path| symlink(precious.path(), path).unwrap(),
        |path| path.is_symlink() && std::fs::read(path).unwrap() == b"precious",
    );
}

#[test]
fn a_directory_is_left_alone() {
    with_a_taken_name(|path| std::fs::create_dir(path).unwrap(), Path::is_dir);
}

#[test]
fn both_names_taken_is_an_error() {
    both(|dir, mut image| {
        let other = format!("pages-7-{}.img", "ab".repeat(16));
        std::fs::write(dir.join("pages-7.img"), b"one").unwrap();
        std::fs::write(dir.join(&other), b"two").unwrap();
        assert_eq!(image.commit(0, false).unwrap_err().code, code::IO);
        image.remove().unwrap();
        assert_eq!(std::fs::read(dir.join(&other)).unwrap(), b"two");
        assert_eq!(names(dir).len(), 2, "nothing hidden stays");
    });
}

/// Who looks for an image whose memcr was killed while it wrote it finds nothing, and
/// nothing of it is there afterwards. A living one is not touched.
#[test]
fn what_a_killed_memcr_left_goes_when_it_is_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let living = create_hidden(dir.path());
    let left = dir.path().join(format!(".pages-7.img.{}", "0".repeat(32)));
    std::fs::write(&left, b"left by a killed memcr").unwrap();
    let locator = dir.path().canonicalize().unwrap().join("pages-7.img");
    let error = ImageFile::open(locator.to_str().unwrap(), Cache::Keep).unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
    assert!(!left.exists());
    assert_eq!(names(dir.path()).len(), 1);
    drop(living);
}

#[test]
fn what_is_no_longer_ours_is_left_alone() {
    both(|dir, mut image| {
        image.write_at(0, b"ours").unwrap();
        image.commit(4, false).unwrap();
        let path = dir.join("pages-7.img");
        std::fs::write(dir.join("other"), b"theirs").unwrap();
        std::fs::rename(dir.join("other"), &path).unwrap();
        let mut out = [0; 4];
        image.read_at(0, &mut out).unwrap();
        assert_eq!(&out, b"ours", "the bytes are still ours to read");
        image.remove().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    });
    both(|dir, mut image| {
        image.commit(0, false).unwrap();
        std::fs::remove_file(dir.join("pages-7.img")).unwrap();
        image.remove().unwrap();
    });
}

#[test]
fn lengths_are_checked_at_the_commit() {
    both(|dir, mut image| {
        image.write_at(0, b"abcdef").unwrap();
        let error = image.commit(7, false).unwrap_err();
        assert_eq!(error.code, code::INTERNAL);
        assert!(
            error.message.contains("7 bytes, 6 were written"),
            "{}",
            error.message
        );
        image.commit(4, false).unwrap();
        assert_eq!(std::fs::read(dir.join("pages-7.img")).unwrap(), b"abcd");
        assert_eq!(
            image.commit(4, false).unwrap_err().code,
            code::INTERNAL,
            "twice"
        );
        assert_eq!(
            image.write_at(0, b"x").unwrap_err().code,
            code::INTERNAL,
            "after the commit"
        );
    });
}

#[test]
fn threads_write_in_any_order() {
    const PIECE: usize = 300_000; // crosses windows at odd places
    let dir = tempfile::tempdir().unwrap();
    let mut image = create(dir.path());
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let image = &image;
            // Backwards, so that the file grows first and fills up later.
            scope.spawn(move || {
                for index in (thread..320).step_by(4).rev() {
                    image
                        .write_at((index * PIECE) as u64, &vec![index as u8; PIECE])
                        .unwrap();
                }
            });
        }
    });
    image.commit(320 * PIECE as u64, false).unwrap();
    let content = std::fs::read(dir.path().join("pages-7.img")).unwrap();
    assert!(
        content
            .chunks(PIECE)
            .enumerate()
            .all(|(index, piece)| piece.iter().all(|b| *b == index as u8))
    );
}

#[test]
fn only_trustworthy_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        dir.path()
            .canonicalize()
            .unwrap()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    };
    let refused = |path: &str| ImageFile::open(path, Cache::Keep).unwrap_err();
    let file = at("image");
    std::fs::write(&file, b"abc").unwrap();
    for mode in [0o620, 0o602, 0o666] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = refused(&file);
        assert_eq!(error.code, code::PERMISSION);
        assert!(
            error.message.contains(&format!("{mode:04o}")),
            "{}",
            error.message
        );
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    ImageFile::open(&file, Cache::Keep).unwrap();
    symlink(&file, at("link")).unwrap();
    assert!(refused(&at("link")).message.contains("symbolic link"));
    rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(refused(&at("fifo")).message.contains("not a regular file"));
    std::fs::create_dir(at("dir")).unwrap();
    assert!(refused(&at("dir")).message.contains("not a regular file"));
    assert_eq!(refused(&at("absent")).code, code::NOT_FOUND);
    assert_eq!(refused(&at("nowhere/image")).code, code::NOT_FOUND);
    for path in ["image", "", "/", "/tmp/", "/tmp/..", "./image"] {
        assert_eq!(refused(path).code, code::INVALID_CONFIG, "{path:?}");
    }
    if is_root("a file of another user") {
        chown(&file, Some(12_345), None).unwrap();
        assert!(refused(&file).message.contains("uid 12345"));
    }
}

#[test]
fn a_full_disk_is_told_and_given_back() {
    let Some(mount) = TestTmpfs::mount("size=1m") else {
        return;
    };
    let free = || directory(mount.path()).free_len().unwrap().unwrap();
    let before = free();
    let image = create(mount.path());
    let error = (0..32)
        .find_map(|n| image.write_at(n << 16, &[1; 1 << 16]).err())
        .unwrap();
    assert_eq!(error.code, code::NO_SPACE);
    assert_eq!(error.sys_errno, Errno::NOSPC.raw_os_error());
    assert!(
        error.message.contains("65536 bytes at 1048576"),
        "{}",
        error.message
    );
    assert!(error.hint.contains("make room"));
    drop(image);
    assert_eq!(free(), before);
}

#[test]
fn a_tmpfs_without_a_limit_has_no_known_free_space() {
    let Some(mount) = TestTmpfs::mount("size=0") else {
        return;
    };
    assert_eq!(directory(mount.path()).free_len().unwrap(), None);
}

#[test]
fn a_name_of_another_user_in_a_sticky_directory_is_left_to_them() {
    if !is_root("files of two users") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::write(dir.path().join("pages-7.img"), b"in the way").unwrap();
    as_nobody(|| {
        let mut image = create(dir.path());
        image.commit(0, false).unwrap();
        assert!(image.path().contains("pages-7-abab"), "{}", image.path());
        image.remove().unwrap();
    });
    assert_eq!(names(dir.path()), ["pages-7.img"]);
}

#[test]
fn a_directory_that_may_not_be_written_is_refused_early() {
    if !is_root("to become another user") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = as_nobody(|| {
        let dir = directory(dir.path());
        ImageFile::create(dir, &new_image(7), Cache::Drop).unwrap_err()
    });
    assert_eq!(error.code, code::PERMISSION);
    assert!(error.hint.contains("may write"), "{}", error.hint);
}

#[test]
fn the_page_cache_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = create(dir.path());
    if rustix::fs::fstatfs(&image.file).unwrap().f_type as u64 == 0x0102_1994 {
        return skip(
            "the temporary directory is a tmpfs: it has no page cache apart from its files",
        );
    }
    const PIECE: usize = 1 << 20;
    for n in 0..80 {
        image
            .write_at((n * PIECE) as u64, &vec![n as u8; PIECE])
            .unwrap();
    }
    // Past a bound: only what was written since is still cached.
    let early = cached(&image, 80);
    assert!(early < 40, "{early} of 80 MiB are cached before the commit");
    let mut image = image;
    image.commit(80 << 20, false).unwrap();
    let late = cached(&image, 80);
    assert!(late < 4, "{late} of 80 MiB are cached after the commit");
    // Read as by --verify: some at first, then all the rest.
    let mut out = vec![0; PIECE];
    let mut read =
        |n: usize| assert_eq!(image.read_at((n * PIECE) as u64, &mut out).unwrap(), PIECE);
    (0..40).for_each(&mut read);
    // What lies ahead the measure itself has brought in.
    let early = cached(&image, 40);
    assert!(
        early < 16,
        "{early} of 40 MiB are cached once they are read"
    );
    (40..80).for_each(read);
    assert_eq!(cached(&image, 80), 0, "after they were read");
    // The measure itself sees what is there.
    let kept = ImageFile::create(directory(dir.path()), &new_image(8), Cache::Keep).unwrap();
    kept.write_at(0, &vec![1; 8 * PIECE]).unwrap();
    assert_eq!(cached(&kept, 8), 8);
}

/// How many of the first `n_mib` MiB begin with a cached page: a read that may not wait
/// finds it, or fails.
fn cached(image: &ImageFile, n_mib: u64) -> usize {
    let is_cached = |mib: &u64| {
        let mut byte = [0];
        let mut into = [std::io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(
            &image.file,
            &mut into,
            mib << 20,
            rustix::io::ReadWriteFlags::NOWAIT,
        ) {
            Ok(n) => n == 1,
            Err(Errno::AGAIN) => false,
            Err(e) => panic!("RWF_NOWAIT: {e}"),
        }
    };
    // From the end, so that the kernel does not read ahead of us.
    (0..n_mib).rev().filter(is_cached).count()
}
