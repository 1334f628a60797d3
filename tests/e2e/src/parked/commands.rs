//! What the commands answer, to whom it may concern and to whom not.

use super::{bring_back, park, round_trip};
use crate::common::without_keyring;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Context, Result, Rig, Snapshot, Victim, ensure};
use rustix::process::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "parked",
        &[
            ("round_trip", whole_round_trip),
            ("again_and_again", again_and_again),
            ("many_threads", many_threads),
            ("ephemeral_key", ephemeral_key),
            ("key_that_nobody_else_gets", key_of_ours_alone),
            ("into_a_tmpfs", into_a_tmpfs),
            ("restore_what_is_not_there", restore_what_is_not_there),
            ("pid_used_again", pid_used_again),
            ("restored_from_elsewhere", restored_from_elsewhere),
        ],
    )
}

fn whole_round_trip() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=64M", "threads=4"])?;
    let pid = victim.pid();
    round_trip(&rig, &mut victim, pid, 64 << 10)?;
    victim.quit()
}

/// Other content every time: a page of an older image would show.
fn again_and_again() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=2"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for i in 0..10 {
        park(&rig, pid)?;
        bring_back(&rig, pid)?;
        victim.verify()?;
        victim.ask(&format!("refill {i}"))?;
    }
    before.still(pid, Allow::default())?;
    victim.quit()
}

fn many_threads() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=200"])?;
    let pid = victim.pid();
    round_trip(&rig, &mut victim, pid, 4 << 10)?;
    victim.quit()
}

/// The key that nobody has given: the memcr that restores has to find it, and it goes.
fn ephemeral_key() -> Result {
    let rig = Rig::with("lz4,encrypt,file")?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=2"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    let id = image_id(&rig)?;
    ensure(has_key(&id)?, || format!("no key for the image {id}"))?;
    bring_back(&rig, pid)?;
    // The kernel takes away what has no link left when it finds the time.
    until("the key to go", || has_key(&id).is_ok_and(|has| !has))?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// The key ends with memcr: it must not go. One that stays may have such a key, and one whose
/// key others find may go.
fn key_of_ours_alone() -> Result {
    let rig = Rig::with("lz4,encrypt,file")?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=2"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let refused = without_keyring(rig.checkpoint(pid))?.run()?;
    refused.expect(3)?;
    refused.says("no other memcr could give process")?;
    refused.says("key_file")?;
    refused.says("`memcr -p")?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    rig.expect_clean()?;
    let stays = without_keyring(rig.memcr(pid).arg("-n"))?.run()?;
    stays.expect(0)?;
    stays.says("only this process can restore the image")?;
    victim.verify()?;
    let key = rig.dir().join("key");
    std::fs::write(&key, [7; 32]).context("write a key")?;
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).context("chmod the key")?;
    let given = format!("encrypt.key_file={}", key.display());
    let goes = rig.checkpoint(pid).args(["--set", &given]);
    without_keyring(goes)?.run()?.expect(0)?;
    bring_back(&rig, pid)?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    std::fs::remove_file(&key).context("remove the key")?;
    rig.expect_clean()?;
    victim.quit()
}

fn image_id(rig: &Rig) -> Result<String> {
    let list = rig.list()?;
    let id = list["sessions"][0]["image"]["id"].as_str();
    Ok(id.ok_or_else(|| format!("no image in {list}"))?.to_owned())
}

fn has_key(image_id: &str) -> Result<bool> {
    let keys = std::fs::read_to_string("/proc/keys").context("/proc/keys")?;
    Ok(keys.contains(image_id))
}

fn into_a_tmpfs() -> Result {
    let rig = Rig::with("lz4,tmpfs")?;
    let mut victim = Victim::start("memory", &["size=16M", "threads=2"])?;
    let pid = victim.pid();
    round_trip(&rig, &mut victim, pid, 16 << 10)?;
    victim.quit()
}

fn journal_path(rig: &Rig, pid: u32) -> PathBuf {
    rig.state_dir().join(format!("{pid}.json"))
}

fn journal(rig: &Rig, pid: u32) -> Result<Vec<u8>> {
    let path = journal_path(rig, pid);
    std::fs::read(&path).context(path.display())
}

fn restore_what_is_not_there() -> Result {
    let rig = Rig::new()?;
    const NOBODY_HAS_IT: u32 = 0x3fff_fff0;
    for command in [rig.restore(NOBODY_HAS_IT), rig.checkpoint(NOBODY_HAS_IT)] {
        command.run()?.expect(5)?;
    }
    rig.expect_clean()
}

/// The held one has died, and a process that has nothing to do with it got its pid: that
/// one is not touched, and what was left of the other one goes.
fn pid_used_again() -> Result {
    let rig = Rig::new()?;
    let mut heir = Victim::start("memory", &["size=4M", "threads=2"])?;
    let (pid, before) = (heir.pid(), Snapshot::take(heir.pid())?);
    leave_remains(&rig, pid)?;
    rig.restore(pid).run()?.expect(5)?;
    before.still(pid, Allow::default())?;
    rig.recover(pid).run()?.expect(5)?;
    before.still(pid, Allow::default())?;
    rig.expect_clean()?;
    leave_remains(&rig, pid)?;
    round_trip(&rig, &mut heir, pid, 4 << 10)?;
    heir.quit()
}

/// Parks a process, kills it, and writes its journal as if its pid had been `heir`.
fn leave_remains(rig: &Rig, heir: u32) -> Result {
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let pid = victim.pid();
    park(rig, pid)?;
    victim.signal(Signal::KILL)?;
    victim.exit_status()?;
    let mut record: serde_json::Value =
        serde_json::from_slice(&journal(rig, pid)?).context("journal")?;
    record["pid"] = heir.into();
    // Both may have been started within one tick of the clock; one of the two pids was not.
    let start = record["start_time"].as_u64().unwrap_or_default();
    record["start_time"] = (start / 2).into();
    let (from, to) = (journal_path(rig, pid), journal_path(rig, heir));
    std::fs::write(&from, record.to_string())?;
    std::fs::rename(from, to)?;
    for lock in [pid, heir] {
        let _ = std::fs::remove_file(rig.state_dir().join(format!("{lock}.lock")));
    }
    Ok(())
}

/// From another directory, with another environment, in another session: nothing of the
/// shell that made the checkpoint is needed.
fn restored_from_elsewhere() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=8M", "threads=2"])?;
    let pid = victim.pid();
    park(&rig, pid)?;
    let restore = rig
        .restore(pid)
        .via(&["setsid", "--wait", "env", "-C", "/"]);
    restore.run()?.expect(0)?;
    rig.expect_clean()?;
    victim.verify()?;
    victim.quit()
}
