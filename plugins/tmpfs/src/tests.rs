#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memcr_filestore::testing::{TestTmpfs, as_nobody, is_root, skip};

use super::*;

fn try_sink(params: &[(&str, &str)]) -> Result<TmpfsSink> {
    TmpfsSink::create(&Params::new(params.iter().copied()), Host::default())
}

fn sink(params: &[(&str, &str)]) -> TmpfsSink {
    try_sink(params).unwrap()
}

fn image(pid: u64, expected_len: u64, compressed: bool) -> NewImage {
    NewImage {
        id: [pid as u8; 16],
        pid,
        expected_len,
        compressed,
        keep: false,
    }
}

/// The line of `/proc/self/mountinfo` for what is mounted at `path`.
fn mounted(path: &Path) -> Option<String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = format!(" {} ", path.canonicalize().unwrap().display());
    mountinfo
        .lines()
        .find(|line| line.contains(&at))
        .map(str::to_owned)
}

/// A directory in which a test may mount: a private parent, so that locks are ours.
fn mount_dir() -> Option<(tempfile::TempDir, String)> {
    if !is_root("mounting a tmpfs") {
        return None;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("own/images");
    Some((parent, dir.to_str().unwrap().to_owned()))
}

#[test]
fn an_image_from_start_to_end() {
    let Some(tmpfs) = TestTmpfs::mount("size=4m") else {
        return;
    };
    let dir = tmpfs.path().to_str().unwrap();
    let mut writer = sink(&[("dir", dir)]);
    writer.open_new(&image(42, 1 << 20, true)).unwrap();
    writer.write_at(0, b"abc").unwrap();
    writer.commit(3, 4096).unwrap();
    let locator = writer.locator().unwrap();
    assert!(locator.ends_with("/pages-42.img"), "{locator}");
    let mut reader = sink(&[]);
    reader.open_existing(&locator).unwrap();
    let mut out = [0; 8];
    assert_eq!(reader.read_at(0, &mut out).unwrap(), 3);
    assert_eq!(reader.len().unwrap(), 3);
    reader.remove().unwrap();
    reader.remove().unwrap();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    assert!(
        mounted(tmpfs.path()).is_some(),
        "a tmpfs that is not ours stays mounted"
    );
}

#[test]
fn the_default_directory_is_a_tmpfs_for_everybody() {
    if !Path::new(SHARED_DIR).is_dir() {
        return skip("no /dev/shm");
    }
    let pid = u64::from(std::process::id()) << 32;
    let open = || sink(&[]).open_new(&image(pid, 1, true));
    open().unwrap();
    if is_root("to become another user") {
        as_nobody(open).unwrap();
    }
}

#[test]
fn plain_memory_is_refused_before_anything_is_opened() {
    let Some(tmpfs) = TestTmpfs::mount("size=4m") else {
        return;
    };
    let dir = ("dir", tmpfs.path().to_str().unwrap());
    let error = sink(&[dir]).open_new(&image(1, 4096, false)).unwrap_err();
    assert_eq!(error.code, code::INVALID_CONFIG);
    assert!(
        error.hint.contains("lz4") && error.hint.contains("allow_plain=true"),
        "{}",
        error.hint
    );
    sink(&[dir, ("allow_plain", "true")])
        .open_new(&image(1, 4096, false))
        .unwrap();
}

#[test]
fn an_image_that_saves_nothing_is_refused_at_its_commit() {
    let Some(tmpfs) = TestTmpfs::mount("size=8m") else {
        return;
    };
    let dir = ("dir", tmpfs.path().to_str().unwrap());
    let commit = |params: &[(&str, &str)], len: u64, raw_len| {
        let mut sink = sink(params);
        sink.open_new(&image(1, 1 << 20, true)).unwrap();
        sink.write_at(0, &vec![1; len as usize]).unwrap();
        sink.commit(len, raw_len)?;
        sink.remove()
    };
    let big = SMALL_IMAGE + 1;
    let error = commit(&[dir], big, big).unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(
        error
            .message
            .contains("1048577 bytes of RAM to save 1048577"),
        "{}",
        error.message
    );
    assert_eq!(
        std::fs::read_dir(tmpfs.path()).unwrap().count(),
        0,
        "nothing stays"
    );
    commit(&[dir], big, big + 1).unwrap();
    commit(&[dir], SMALL_IMAGE, 0).unwrap();
    commit(&[dir, ("allow_plain", "true")], big, 0).unwrap();
}

#[test]
fn what_is_no_tmpfs_is_refused() {
    let open = |dir: &str| {
        sink(&[("dir", dir)])
            .open_new(&image(1, 1, true))
            .unwrap_err()
    };
    let error = open("/proc");
    assert_eq!(error.code, code::INVALID_CONFIG);
    assert!(
        error.message.contains("/proc is not on a tmpfs"),
        "{}",
        error.message
    );
    assert_eq!(open("/nowhere/at/all").code, code::NOT_FOUND);
    if is_root("mounting a ramfs") {
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount(
            "none",
            dir.path(),
            "ramfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .unwrap();
        let error = open(dir.path().to_str().unwrap());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(error.message.contains("is a ramfs"), "{}", error.message);
    }
}

#[test]
fn room_is_checked_in_the_tmpfs_and_in_ram() {
    let Some(tmpfs) = TestTmpfs::mount("size=1m") else {
        return;
    };
    let plain = [
        ("dir", tmpfs.path().to_str().unwrap()),
        ("allow_plain", "true"),
    ];
    let error = sink(&plain)
        .open_new(&image(1, 2 << 20, false))
        .unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(error.message.contains("1024 KiB free"), "{}", error.message);

    let Some(unlimited) = TestTmpfs::mount("size=0") else {
        return;
    };
    let plain = [
        ("dir", unlimited.path().to_str().unwrap()),
        ("allow_plain", "true"),
    ];
    let error = sink(&plain)
        .open_new(&image(1, 1 << 50, false))
        .unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(
        error.message.starts_with("the RAM has"),
        "{}",
        error.message
    );
}

#[test]
fn a_full_tmpfs_fails_the_write() {
    let Some(tmpfs) = TestTmpfs::mount("size=1m") else {
        return;
    };
    let mut sink = sink(&[("dir", tmpfs.path().to_str().unwrap())]);
    sink.open_new(&image(1, 4 << 20, true)).unwrap();
    let error = (0..32)
        .find_map(|n| sink.write_at(n << 16, &[1; 1 << 16]).err())
        .unwrap();
    assert_eq!(error.code, code::NO_SPACE);
    sink.remove().unwrap();
}

#[test]
fn writing_stops_before_the_ram_is_used_up() {
    let Some(tmpfs) = TestTmpfs::mount("size=64m") else {
        return;
    };
    let mut sink = sink(&[("dir", tmpfs.path().to_str().unwrap())]);
    sink.open_new(&image(1, 1, true)).unwrap();
    sink.reserve = Reserve::of(u64::MAX); // More than any machine has left.
    let piece = vec![1; 1 << 20];
    let error = (0..64_u64)
        .find_map(|n| sink.write_at(n << 20, &piece).err())
        .unwrap();
    assert_eq!(error.code, code::NO_SPACE);
    assert!(
        error.message.contains("must stay free"),
        "{}",
        error.message
    );
}

#[test]
fn a_tmpfs_of_its_own_comes_and_goes_with_its_images() {
    let Some((_parent, dir)) = mount_dir() else {
        return;
    };
    let params = [
        ("dir", dir.as_str()),
        ("mount", "true"),
        ("size", "8388608"),
        ("huge", "never"),
    ];
    let path = Path::new(&dir);
    let (mut first, mut second) = (sink(&params), sink(&params));
    first.open_new(&image(1, 1, true)).unwrap();
    let line = mounted(path).unwrap();
    for word in [
        "nosuid",
        "nodev",
        "noexec",
        " - tmpfs memcr-stage-tmpfs ",
        "size=8192k",
        "mode=700",
    ] {
        assert!(line.contains(word), "{word} in {line}");
    }
    assert!(
        !line.contains("huge="),
        "never is the default, which is not shown: {line}"
    );
    assert_eq!(std::fs::metadata(path).unwrap().mode() & 0o7777, 0o700);

    second.open_new(&image(2, 1, true)).unwrap();
    first.commit(0, 1).unwrap();
    first.remove().unwrap();
    assert_eq!(
        mounted(path),
        Some(line),
        "in use by an image without a name"
    );
    second.commit(0, 1).unwrap();
    let locator = second.locator().unwrap();
    drop(second);
    assert!(mounted(path).is_some(), "a committed image stays");

    // Found by its locator alone, and unmounted without any parameter.
    let mut reader = sink(&[]);
    reader.open_existing(&locator).unwrap();
    reader.remove().unwrap();
    assert_eq!(mounted(path), None);
}

#[test]
fn a_failure_to_open_leaves_no_mount() {
    let Some((_parent, dir)) = mount_dir() else {
        return;
    };
    let params = [
        ("dir", dir.as_str()),
        ("mount", "true"),
        ("size", "1048576"),
        ("allow_plain", "true"),
    ];
    let error = sink(&params)
        .open_new(&image(1, 2 << 20, false))
        .unwrap_err();
    assert_eq!(error.code, code::NO_SPACE);
    assert_eq!(mounted(Path::new(&dir)), None);
}

#[test]
fn huge_pages_are_used_where_the_kernel_has_them() {
    let Some((_parent, dir)) = mount_dir() else {
        return;
    };
    let mut own = sink(&[("dir", dir.as_str()), ("mount", "true")]);
    own.open_new(&image(1, 1, true)).unwrap();
    let line = mounted(Path::new(&dir)).unwrap();
    if Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists() {
        let huge = format!("huge={}", mount::usual_huge());
        assert!(line.contains(&huge), "{line}");
    } else {
        skip("the kernel has no huge pages for tmpfs");
    }
}

#[test]
fn a_directory_with_something_in_it_is_not_hidden() {
    let Some((_parent, dir)) = mount_dir() else {
        return;
    };
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(Path::new(&dir).join("precious"), b"").unwrap();
    let error = sink(&[("dir", &dir), ("mount", "true")])
        .open_new(&image(1, 1, true))
        .unwrap_err();
    assert_eq!(error.code, code::INVALID_CONFIG);
    assert!(error.message.contains("not empty"), "{}", error.message);
    assert_eq!(mounted(Path::new(&dir)), None);
}

#[test]
fn many_at_once_share_one_mount_and_leave_none() {
    let Some((_parent, dir)) = mount_dir() else {
        return;
    };
    let params = [
        ("dir", dir.as_str()),
        ("mount", "true"),
        ("size", "1048576"),
    ];
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..20 {
                    let mut sink = sink(&params);
                    sink.open_new(&image(thread * 100 + round, 1, true))
                        .unwrap();
                    sink.write_at(0, b"abc").unwrap();
                    sink.commit(3, 4).unwrap();
                    let locator = sink.locator().unwrap();
                    assert_eq!(
                        std::fs::read(locator).unwrap(),
                        b"abc",
                        "hidden by another mount"
                    );
                    sink.remove().unwrap();
                }
            });
        }
    });
    assert_eq!(mounted(Path::new(&dir)), None);
}

#[test]
fn mounting_takes_root() {
    let Some((parent, _)) = mount_dir() else {
        return;
    };
    std::fs::set_permissions(
        parent.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let dir = parent.path().join("own").to_str().unwrap().to_owned();
    let error = as_nobody(|| {
        sink(&[("dir", &dir), ("mount", "true")])
            .open_new(&image(1, 1, true))
            .unwrap_err()
    });
    assert_eq!(error.code, code::PERMISSION);
    assert!(
        error.message.contains("mount a tmpfs at"),
        "{}",
        error.message
    );
    assert!(error.hint.contains("root"), "{}", error.hint);
}

#[test]
fn parameters_of_a_mount_need_one() {
    for param in [("size", "1048576"), ("huge", "always")] {
        let error = try_sink(&[param]).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
        assert!(error.message.contains(param.0), "{}", error.message);
    }
    let own = Place::Own(OWN_DIR.into(), MountOptions::default());
    assert_eq!(sink(&[("mount", "true")]).place, own);
    let shared = Place::There(SHARED_DIR.into());
    assert_eq!(sink(&[("mount", "false")]).place, shared);
    assert_eq!(sink(&[]).place, Place::Best);
    assert_eq!(sink(&[("dir", "/d")]).place, Place::There("/d".into()));
}

#[test]
fn unless_told_it_mounts_where_everybody_sees_it() {
    if !is_root("mounting a tmpfs") {
        return;
    }
    let mut sink = sink(&[]);
    let pid = u64::from(std::process::id()) << 33;
    sink.open_new(&image(pid, 1, true)).unwrap();
    let place = if mount::is_seen_by_all() && mount::huge_by_length() {
        OWN_DIR
    } else {
        SHARED_DIR
    };
    let locator = sink.locator().unwrap();
    assert!(locator.starts_with(place), "{locator}");
}
