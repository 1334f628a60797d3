//! What clients may choose, on directories of our own.
#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

const ROOT: Peer = Peer::User { uid: 0, gid: None };
const USER: Peer = Peer::User {
    uid: 1000,
    gid: None,
};

fn choices(pipelines: &[&str], dirs: Option<&[&Path]>, compress: bool) -> Choices {
    Choices {
        pipelines: pipelines.iter().map(|&name| name.to_owned()).collect(),
        dirs: dirs.map(|dirs| dirs.iter().map(|&dir| dir.to_owned()).collect()),
        compress,
    }
}

fn dir(choices: &Choices, peer: &Peer, dir: impl AsRef<Path>) -> Result<PathBuf, String> {
    let rules = Rules::new(None, true);
    let result = choices.dir(&rules, peer, dir.as_ref());
    result.map_err(|error| error.to_string())
}

fn make(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn pipelines_are_chosen_by_their_name() {
    let some = choices(&["fast", "small"], None, true);
    assert!(some.pipeline("small").is_ok());
    for (choices, name, want) in [
        (
            &some,
            "zstd,file",
            "clients may not name the pipeline `zstd,file`; allowed are fast, small",
        ),
        (
            &choices(&[], None, true),
            "a\n",
            "clients may not name the pipeline `a\\n`; they may name none",
        ),
    ] {
        assert_eq!(choices.pipeline(name).unwrap_err().to_string(), want);
    }
}

#[test]
fn the_compression_is_chosen_or_not() {
    assert!(choices(&[], None, true).compression().is_ok());
    assert!(choices(&[], None, false).compression().is_err());
}

#[test]
fn without_dirs_only_who_may_act_on_all_names_one() {
    let any = choices(&[], None, true);
    assert_eq!(
        dir(&any, &ROOT, "/srv//x/./y/").unwrap(),
        Path::new("/srv/x/y")
    );
    assert_eq!(
        dir(&any, &USER, "/tmp").unwrap_err(),
        "uid 1000 may not name a directory: the daemon's configuration has no `dirs`"
    );
    for bad in ["tmp", "", "/tmp/..", "/tmp/../etc"] {
        let want = format!("the directory {bad} is not an absolute path without `..`");
        assert_eq!(dir(&any, &ROOT, bad).unwrap_err(), want);
    }
    let none = choices(&[], Some(&[]), true);
    assert_eq!(
        dir(&none, &ROOT, "/tmp").unwrap_err(),
        "clients may not name the directory /tmp; they may name none"
    );
}

#[test]
fn what_is_below_an_allowed_one_must_last() {
    let top = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(top.path()).unwrap();
    let base = top.join("base");
    make(&base, 0o1777);
    make(&base.join("ours"), 0o755);
    make(&base.join("ours/deep"), 0o700);
    make(&base.join("open"), 0o777);
    make(&base.join("group"), 0o775);
    make(&base.join("open/inner"), 0o755);
    make(&top.join("based"), 0o755);
    fs::write(base.join("file"), "").unwrap();
    symlink("/etc", base.join("link")).unwrap();
    symlink(&base, top.join("alias")).unwrap();
    let alias = top.join("alias");
    let choices = choices(&[], Some(&[&alias, Path::new("/nowhere")]), true);
    let said = |name: &str| dir(&choices, &USER, top.join(name));
    for (name, want) in [
        ("alias", "base"),
        ("base", "base"),
        ("alias/ours", "base/ours"),
        ("base/ours/deep/", "base/ours/deep"),
    ] {
        assert_eq!(said(name).unwrap(), top.join(want), "{name}");
    }
    for (name, at, why) in [
        ("base/link", "base/link", "is a symbolic link"),
        ("base/link/cron.d", "base/link", "is a symbolic link"),
        ("base/file", "base/file", "is no directory"),
        (
            "base/open",
            "base/open",
            "can be written by others and is not sticky",
        ),
        (
            "base/group",
            "base/group",
            "can be written by others and is not sticky",
        ),
        (
            "base/open/inner",
            "base/open",
            "can be written by others and is not sticky",
        ),
    ] {
        let want = format!("because {} {why}", top.join(at).display());
        assert!(said(name).unwrap_err().ends_with(&want), "{:?}", said(name));
        // Whoever asks: root would be led astray just so.
        assert!(dir(&choices, &ROOT, top.join(name)).is_err());
    }
    assert!(
        said("based")
            .unwrap_err()
            .contains("clients may not name the directory")
    );
    assert!(
        said("base/none")
            .unwrap_err()
            .starts_with("cannot look at the directory")
    );
    if chown(base.join("ours"), Some(1000), None).is_ok() {
        let want = "belongs to another user than root and the daemon's";
        assert!(said("base/ours").unwrap_err().ends_with(want));
        assert!(said("base/ours/deep").unwrap_err().ends_with(want));
    }
}

#[test]
fn the_nearest_allowed_one_counts() {
    let top = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(top.path()).unwrap();
    let open = top.join("open");
    make(&open, 0o777);
    make(&open.join("images"), 0o755);
    let outer = choices(&[], Some(&[&open]), true);
    assert!(dir(&outer, &USER, open.join("images")).is_err());
    let both = choices(&[], Some(&[&open, &open.join("images")]), true);
    assert!(dir(&both, &USER, open.join("images")).is_ok());
}
