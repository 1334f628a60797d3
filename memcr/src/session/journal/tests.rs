//! Sessions that begin, end and are left behind, and journals that were tampered with.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::dir::{MAX_LEN_BYTES, path_for, untrusted};
use super::*;
use crate::pipeline::{PipelineSpec, StageSpec};

/// A state directory, and a process that lives until its input ends.
struct World {
    root: tempfile::TempDir,
    process: Child,
}

impl World {
    fn new() -> Self {
        let process = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            root: tempfile::tempdir().unwrap(),
            process,
        }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn dir(&self) -> StateDir {
        StateDir::open(Some(&self.path())).unwrap()
    }

    fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    fn record(&self) -> Record {
        Record::begin(self.pid(), &spec()).unwrap()
    }

    /// Puts `text` where the journal of the process would be.
    fn plant(&self, text: impl AsRef<[u8]>) -> PathBuf {
        self.dir();
        let path = self.path().join(format!("{}.json", self.pid()));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// As if the journal had been written with this change.
    fn plant_record(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record();
        change(&mut record);
        self.plant(serde_json::to_vec(&record).unwrap());
    }

    fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn damage(&self) -> String {
        let error = self.dir().adopt(self.pid()).unwrap_err();
        let is_refused = matches!(
            error,
            JournalError::Damaged { .. } | JournalError::Untrusted { .. }
        );
        assert!(is_refused, "{error:?}");
        let listed = self.dir().list().unwrap().pop().unwrap().record;
        assert_eq!(listed.unwrap_err().to_string(), error.to_string());
        let begun = self.dir().begin(self.record()).unwrap_err();
        assert_eq!(begun.to_string(), error.to_string());
        let path = format!("{}/{}.json ", self.path().display(), self.pid());
        let text = error.to_string();
        text.strip_prefix(&format!("the journal {path}"))
            .unwrap()
            .to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spec() -> PipelineSpec {
    let stage = |alias: &str, plugin: &str, params: &[(&str, &str)]| StageSpec {
        alias: alias.into(),
        plugin: plugin.into(),
        params: params
            .iter()
            .map(|&(key, value)| (key.into(), value.into()))
            .collect(),
    };
    PipelineSpec {
        stages: vec![
            stage("compress", "lz4", &[("acceleration", "3")]),
            stage("file", "file", &[("dir", "/tmp")]),
        ],
        workers: std::num::NonZeroUsize::new(2),
        chunk_len_bytes: 65536,
        stall_limit: None,
    }
}

#[test]
fn a_session_begins_is_left_adopted_and_ends() {
    let world = World::new();
    let (dir, pid) = (world.dir(), world.pid());
    let mut journal = dir.begin(world.record()).unwrap();
    journal
        .update(|record| {
            record.image = Some(ImageRecord {
                n_chunks: None,
                locator: "/tmp/pages-1.img".into(),
                id: "00ff".into(),
                len_bytes: 7,
            });
            record.guard = Some(GuardRecord {
                fd: 1023,
                ranges: (0..60_000).map(|n| (n << 20, u64::MAX >> 44)).collect(),
            });
            record.hold(4096);
        })
        .unwrap();
    let written = journal.record().clone();
    assert_eq!(
        world.files(),
        [format!("{pid}.json"), format!("{pid}.lock")]
    );
    drop(journal);
    assert_eq!(world.files(), [format!("{pid}.json")]);

    let journal = dir.adopt(pid).unwrap();
    assert_eq!(*journal.record(), written);
    assert_eq!(PipelineSpec::from(&journal.record().pipeline), spec());
    journal.remove().unwrap();
    assert_eq!(world.files(), [""; 0]);
    let error = dir.adopt(pid).unwrap_err();
    assert!(matches!(error, JournalError::NotHeld { .. }), "{error}");
}

#[test]
fn how_far_an_image_is_written_stands_behind_the_record() {
    let world = World::new();
    let (dir, pid) = (world.dir(), world.pid());
    let mut journal = dir.begin(world.record()).unwrap();
    let image = ImageRecord {
        n_chunks: Some(0),
        locator: "/tmp/pages-1.img".into(),
        id: "00ff".into(),
        len_bytes: 7,
    };
    journal
        .update(|record| record.image = Some(image.clone()))
        .unwrap();
    let mark = |n_chunks, len_bytes| Mark {
        n_chunks,
        len_bytes,
    };
    let file = world.path().join(format!("{pid}.json"));
    let record_len = fs::metadata(&file).unwrap().len();
    journal.reach(mark(3, 70), &[(0x1000, 0x2000)]).unwrap();
    journal.reach(mark(5, 90), &[(0x9000, 0x1000)]).unwrap();
    let written = journal.record().clone();
    assert_eq!(
        written.image.as_ref().unwrap().mark(),
        Some(Mark {
            n_chunks: 5,
            len_bytes: 90
        })
    );
    assert_eq!(written.huge, [(0x1000, 0x2000), (0x9000, 0x1000)]);
    drop(journal);

    // Cut anywhere behind the record, it tells of what stands there whole.
    let text = fs::read(&file).unwrap();
    let mut told = BTreeSet::new();
    for len in record_len as usize..=text.len() {
        fs::write(&file, &text[..len]).unwrap();
        let journal = dir.adopt(pid).unwrap();
        told.insert(journal.record().image.as_ref().unwrap().n_chunks);
    }
    assert_eq!(told, [Some(0), Some(3), Some(5)].into());

    let mut journal = dir.adopt(pid).unwrap();
    assert_eq!(*journal.record(), written);
    // Replaced as a whole, it has no lines behind it any more.
    journal.update(|record| record.hold(0)).unwrap();
    assert_eq!(
        fs::read(&file)
            .unwrap()
            .iter()
            .filter(|&&it| it == b'\n')
            .count(),
        0
    );
    drop(journal);

    fs::write(&file, [&text[..], b"\n{\"len_bytes\":true}"].concat()).unwrap();
    assert!(world.damage().contains("is no journal"));
}

#[test]
fn files_are_private() {
    let world = World::new();
    let _journal = world.dir().begin(world.record()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&world.path()), 0o700);
    for file in world.files() {
        assert_eq!(mode(&world.path().join(&file)), 0o600, "{file}");
    }
}

#[test]
fn a_held_process_is_not_begun_again() {
    let world = World::new();
    let mut journal = world.dir().begin(world.record()).unwrap();
    // In our own process too: another lock is another lock.
    let error = world.dir().begin(world.record()).unwrap_err();
    let by = format!("(process {}) works on process", std::process::id());
    assert!(error.to_string().contains(&by), "{error}");
    let error = world.dir().adopt(world.pid()).unwrap_err();
    assert!(matches!(error, JournalError::Busy { by: Some(_), .. }));
    journal.update(|record| record.hold(0)).unwrap();
    drop(journal);
    match world.dir().begin(world.record()).unwrap_err() {
        JournalError::Held { record } => assert_eq!(record.pid, world.pid()),
        other => panic!("{other:?}"),
    }
    // What looked at it has changed nothing.
    assert_eq!(world.files(), [format!("{}.json", world.pid())]);
}

#[test]
fn a_session_that_died_before_it_took_anything_is_begun_anew() {
    let world = World::new();
    drop(world.dir().begin(world.record()).unwrap());
    // Its resident size may still grow: one record, not two.
    let record = world.record();
    let journal = world.dir().begin(record.clone()).unwrap();
    assert_eq!(journal.record(), &record);
}

#[test]
fn the_list_tells_orphans_from_sessions_and_locks_nothing() {
    let world = World::new();
    let journal = world.dir().begin(world.record()).unwrap();
    for junk in [
        "x.json",
        "-1.json",
        "0.json",
        "07.json",
        "5.lock",
        "6.json.new",
    ] {
        fs::write(world.path().join(junk), "{}").unwrap();
    }
    let look = || {
        let mut entries = world.dir().list().unwrap();
        assert_eq!(entries.len(), 1);
        entries.pop().unwrap()
    };
    let entry = look();
    assert_eq!(entry.owner, Some(Some(std::process::id().cast_signed())));
    assert_eq!(entry.standing, Standing::Same);
    assert_eq!(entry.record.unwrap(), *journal.record());
    drop(journal);
    assert_eq!(look().owner, None);
    assert!(!world.path().join(format!("{}.lock", world.pid())).exists());
}

#[test]
fn a_process_that_ended_leaves_its_journal_to_be_cleaned() {
    let mut world = World::new();
    let record = world.record();
    drop(world.dir().begin(record.clone()).unwrap());
    world.process.kill().unwrap();
    // A zombie has ended; so has what is waited for.
    wait_for_zombie(world.pid());
    assert_eq!(record.standing(), Standing::Gone);
    world.process.wait().unwrap();
    assert_eq!(record.standing(), Standing::Gone);
    let JournalError::Gone { journal } = world.dir().begin(record).unwrap_err() else {
        panic!("it has ended")
    };
    let error = world.dir().adopt(world.pid()).unwrap_err();
    assert!(matches!(error, JournalError::Busy { .. }), "ours to clean");
    journal.remove().unwrap();
    assert_eq!(world.files(), [""; 0]);
}

fn wait_for_zombie(pid: i32) {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let id = WaitId::Pid(Pid::from_raw(pid).unwrap());
    waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
}

#[test]
fn another_process_with_the_same_pid_is_not_it() {
    type Change = fn(&mut Record);
    let changes: [Change; 2] = [
        |record| record.start_time += 1,
        |record| record.boot_id = "another".into(),
    ];
    for change in changes {
        let world = World::new();
        world.plant_record(change);
        let error = world.dir().adopt(world.pid()).unwrap_err();
        assert!(matches!(error, JournalError::Gone { .. }), "{error:?}");
    }
}

#[test]
fn what_cannot_be_seen_from_here_is_not_taken_for_gone() {
    let world = World::new();
    world.plant_record(|record| {
        record.namespaces.pid += 1;
        record.start_time += 1;
    });
    let error = world.dir().adopt(world.pid()).unwrap_err();
    assert!(error.to_string().ends_with("another pid or time namespace"));
}

#[test]
fn damaged_journals_are_named_with_what_is_wrong() {
    let world = World::new();
    let good = serde_json::to_string(&world.record()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{good}");
        good.replace(from, to)
    };
    let pid = format!("\"pid\":{},", world.pid());
    for (text, want) in [
        (String::new(), "is no journal: EOF while parsing"),
        (good[..good.len() / 2].into(), "is no journal: EOF while"),
        ("[]".into(), "is no journal: invalid"),
        ("\0".repeat(100), "is no journal: expected value"),
        (
            with("\"storing\"", "\"thinking\""),
            "is no journal: unknown variant `thinking`",
        ),
        (
            with("\"guard\":null", "\"guard\":{\"fd\":\"3\",\"ranges\":[]}"),
            "is no journal: invalid type: string",
        ),
        (
            with("\"guard\":null", "\"guard\":{\"fd\":-1,\"ranges\":[]}"),
            "says that the guard has descriptor -1",
        ),
        (
            with("\"huge\":[]", "\"huge\":[[4096,0]]"),
            "has the range 0x1000+0x0, which is none",
        ),
        (
            with("\"huge\":[]", "\"huge\":[[18446744073709551615,1]]"),
            "has the range 0xffffffffffffffff+0x1",
        ),
        (with(&pid, "\"pid\":1,"), "is of process 1, not"),
        (with(&pid, "\"pid\":99999999999,"), "is no journal: invalid"),
    ] {
        world.plant(&text);
        let damage = world.damage();
        assert!(damage.starts_with(want), "{text}: {damage}");
    }
}

#[test]
fn a_journal_of_a_newer_memcr_is_left_to_it() {
    let world = World::new();
    world.plant("{\"version\":2,\"pid\":\"something else\"}");
    let error = world.dir().adopt(world.pid()).unwrap_err();
    assert!(matches!(error, JournalError::Newer { version: 2, .. }));
    assert!(world.dir().begin(world.record()).is_err());
}

#[test]
fn fields_of_later_versions_are_passed_over() {
    let world = World::new();
    let text = serde_json::to_string(&world.record()).unwrap();
    world.plant(text.replacen('{', "{\"later\":[1],", 1));
    world.dir().adopt(world.pid()).unwrap();
}

#[test]
fn files_that_are_no_journals_of_ours_are_not_read() {
    let world = World::new();
    let path = world.plant("x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    assert_eq!(
        world.damage(),
        "is refused: others than its owner may write it (mode 0620)"
    );
    let long = fs::File::create(&path).unwrap();
    long.set_len(MAX_LEN_BYTES + 1).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(world.damage(), "is longer than 33554432 bytes");
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert_eq!(world.damage(), "is a symbolic link");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(world.damage(), "is no regular file");
    fs::remove_dir(&path).unwrap();
    // Opening it must not wait for a writer.
    let status = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(status.success());
    assert_eq!(world.damage(), "is no regular file");
}

#[test]
fn links_in_the_place_of_a_new_file_are_not_followed() {
    let world = World::new();
    let victim = world.root.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let dir = world.dir();
    symlink(
        &victim,
        world.path().join(format!("{}.json.new", world.pid())),
    )
    .unwrap();
    dir.begin(world.record()).unwrap().remove().unwrap();
    symlink(&victim, world.path().join(format!("{}.lock", world.pid()))).unwrap();
    let error = dir.begin(world.record()).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_record_that_would_not_be_read_again_is_not_written() {
    let world = World::new();
    let mut journal = world.dir().begin(world.record()).unwrap();
    let huge = vec![(u64::MAX / 2, u64::MAX / 2); 900_000];
    let error = journal.update(|record| record.huge = huge).unwrap_err();
    assert!(matches!(error, JournalError::TooLong { .. }), "{error:?}");
    assert_eq!(journal.record().huge, []);
    drop(journal);
    assert_eq!(world.dir().adopt(world.pid()).unwrap().record().huge, []);
}

#[test]
fn directories_of_others_are_refused() {
    let world = World::new();
    world.dir();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o770)).unwrap();
    let error = StateDir::open(Some(&world.path())).unwrap_err().to_string();
    assert!(error.ends_with("others than its owner may write it (mode 0770)"));

    let mut meta = rustix::fs::stat(world.root.path()).unwrap();
    assert_eq!(untrusted(&meta), None);
    meta.st_uid = rustix::process::geteuid().as_raw() + 1;
    assert!(untrusted(&meta).unwrap().contains("neither root nor you"));
    meta.st_uid = 0;
    assert_eq!(untrusted(&meta), None);
}

#[test]
fn what_is_no_directory_is_none() {
    let world = World::new();
    let root = world.root.path();
    fs::write(root.join("file"), "").unwrap();
    symlink(root, root.join("link")).unwrap();
    for name in ["file", "link"] {
        let error = StateDir::open(Some(&root.join(name))).unwrap_err();
        assert!(matches!(error, JournalError::Unfit { .. }), "{error:?}");
    }
    let below = root.join("not/there");
    assert!(StateDir::open(Some(&below)).is_err());
    assert!(StateDir::find(Some(&below)).unwrap().is_none());
    assert!(StateDir::find(Some(root)).unwrap().is_some());
}

#[test]
fn everybody_has_a_directory_of_their_own() {
    let runtime = Some(PathBuf::from("/run/user/1000"));
    for (uid, runtime, want) in [
        (0, runtime.clone(), "/run/memcr"),
        (1000, runtime, "/run/user/1000/memcr"),
        (1000, Some("here".into()), "/tmp/memcr-1000"),
        (1000, None, "/tmp/memcr-1000"),
    ] {
        assert_eq!(path_for(uid, runtime), Path::new(want));
    }
}

/// What a memcr leaves that is killed while it begins or ends.
#[test]
fn what_never_was_a_session_is_swept() {
    let world = World::new();
    let journal = world.dir().begin(world.record()).unwrap();
    let kept = world.files();
    for leftover in ["5.lock", "6.json.new", "7.lock", "7.json.new"] {
        fs::write(world.path().join(leftover), "").unwrap();
    }
    fs::write(world.path().join("x.lock"), "not ours").unwrap();
    world.dir().sweep().unwrap();
    let mut want = kept.clone();
    want.push("x.lock".into());
    assert_eq!(world.files(), want);
    fs::remove_file(world.path().join("x.lock")).unwrap();
    drop(journal);
    world.dir().sweep().unwrap();
    assert_eq!(world.files(), [format!("{}.json", world.pid())]);
}

/// Many at once: exactly one may have the session at any time, whatever the others do to
/// the lock's file meanwhile.
#[test]
fn the_lock_is_held_by_one_at_a_time() {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    let world = World::new();
    let (dir, record) = (world.dir(), world.record());
    let (inside, n_sessions) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let Ok(journal) = dir.begin(record.clone()) else {
                        continue;
                    };
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    n_sessions.fetch_add(1, SeqCst);
                    inside.fetch_sub(1, SeqCst);
                    journal.remove().unwrap();
                }
            });
        }
    });
    assert!(n_sessions.into_inner() > 0);
    assert_eq!(world.files(), [""; 0]);
}
