//! Targets that are not where memcr is: other users, namespaces, jails, limits reached.

use super::{bring_back, park, round_trip};
use crate::common::{NOBODY, PublicCopy};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::until_some;
use memcr_harness::{Allow, Result, Rig, Snapshot, Victim, place, proc, require};
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "parked",
        &[
            ("user_net_mount_namespaces", namespaces),
            ("pid_namespace", pid_namespace),
            ("many_limits_at_once", || limited(&ALL[2..])),
            ("watched_descriptors", watched_descriptors),
            ("ordinary_user", ordinary_user),
            ("seccomp_filter", seccomp_filter),
            ("cycles_25", || cycles(25)),
            ("heavy_cycles_1000", || cycles(1000)),
        ],
    );
    for limit in ALL {
        let name = format!("parked::{}", limit.replace(['=', '/'], "_"));
        trials.push(test(name, move || limited(&[limit])));
    }
    trials
}

/// `nofile` and `as` stand first: with another user's they are lifted by CAP_SYS_RESOURCE
/// only, which not every machine that runs tests gives to root.
const ALL: [&str; 6] = [
    "nofile=1",
    "as=1",
    "nproc=1",
    "mdwe=1",
    "chroot=/var",
    "uid=65534",
];

fn limited(limits: &[&str]) -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let args = [&["size=8M", "threads=2"], limits].concat();
    let mut victim = Victim::start("memory", &args)?;
    let pid = victim.pid();
    round_trip(&rig, &mut victim, pid, 8 << 10)?;
    victim.quit()
}

fn namespaces() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "--ipc",
        "--uts",
    ]);
    command
        .arg(place::victim()?)
        .args(["memory", "size=8M", "threads=2"]);
    let mut victim = Victim::talk(command, "a victim in namespaces")?;
    let pid = victim.pid();
    round_trip(&rig, &mut victim, pid, 8 << 10)?;
    victim.quit()
}

/// Its own pid is another one than ours for it.
fn pid_namespace() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(place::victim()?)
        .args(["memory", "size=8M", "threads=2"]);
    let mut victim = Victim::talk(command, "a victim in a pid namespace")?;
    let pid = until_some("the child of unshare", || {
        let children = proc::text(victim.pid(), &format!("task/{}/children", victim.pid())).ok()?;
        children.split_whitespace().next()?.parse::<u32>().ok()
    })?;
    round_trip(&rig, &mut victim, pid, 8 << 10)
}

/// The target counts its descriptors all the time: while it is parked it does not run,
/// and afterwards there is none of ours.
fn watched_descriptors() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("fdclose", &[])?;
    let pid = victim.pid();
    for _ in 0..5 {
        round_trip(&rig, &mut victim, pid, 0)?;
    }
    victim.quit()
}

/// Neither memcr nor its target have any privilege: where a user may have a guard, she
/// may park; else it is refused, and the target has lost nothing.
fn ordinary_user() -> Result {
    require("root")?;
    let copy = PublicCopy::make()?;
    let mut command = Command::new(copy.dir().join("victim"));
    command.args(["memory", "size=8M", "threads=2"]);
    std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
    let mut victim = Victim::talk(command, "a victim of an ordinary user")?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let finished = copy.checkpoint(pid, "lz4,file").run()?;
    if finished.code != Some(4) {
        finished.expect(0)?;
        copy.restore(pid).run()?.expect(0)?;
    }
    before.still(pid, Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// Its filter allows it next to nothing, our calls not at all.
fn seccomp_filter() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("filter", &[])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    park(&rig, pid)?;
    bring_back(&rig, pid)?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// Again and again: descriptors, mappings, their flags and registrations, threads and
/// memory are as they were, and nothing of ours piles up.
fn cycles(n: usize) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=3"])?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    for i in 0..n {
        rig.checkpoint(pid).run()?.expect(0)?;
        rig.restore(pid).run()?.expect(0)?;
        if i % 10 == 9 {
            rig.expect_clean()?;
            before.still(pid, Allow::default())?;
            victim.verify()?;
            victim.ask(&format!("refill {i}"))?;
        }
    }
    victim.verify()?;
    before.still(pid, Allow::default())?;
    victim.quit()
}
