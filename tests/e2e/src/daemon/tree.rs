//! Many processes as one: trees and cgroups, through the daemon and from the command line.

use super::expect_code;
use super::family::{
    Before, Cgroup, checkpoint, command_line, family, let_go_until, members, restore, shell, tree,
    tree_of,
};
use crate::table;
use libtest_mimic::Trial;
use memcr_client::{Choice, ClientError, Subject};
use memcr_harness::daemon::{await_end, children};
use memcr_harness::wait::{until, until_some};
use memcr_harness::{Context, Daemon, Result, Rig, Setup, Victim, ensure, proc, require};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("tree_of_a_shell", tree_of_a_shell),
            ("tree_with_shared_memory", tree_with_shared_memory),
            ("tree_from_the_command_line", tree_from_the_command_line),
            ("tree_one_member_cannot", one_member_cannot),
            ("tree_one_member_is_traced", one_member_is_traced),
            ("tree_stopped_by_its_root", || stopped("pid")),
            ("tree_stopped_by_its_name", || stopped("tree")),
            ("tree_interrupted", interrupted),
            ("tree_killed_in_the_middle", killed_in_the_middle),
            ("tree_a_member_is_killed", a_member_is_killed),
            ("tree_whose_members_end", members_that_end),
            ("tree_a_member_restored_alone", a_member_alone),
            ("tree_over_a_restart", over_a_restart),
            ("cgroup_and_those_below", cgroup_and_those_below),
        ],
    )
}

/// All of them are held, in the order of the tree; then all run.
fn round_trip(daemon: &Daemon, rig: &Rig, victim: &mut Victim) -> Result {
    let root = victim.pid();
    let pids = tree(root);
    let before = Before::of(&pids)?;
    let answer = daemon.ask(checkpoint(tree_of(root)))?;
    let answer = Value::Object(answer.object);
    ensure(answer["group"] == format!("tree:{root}"), || {
        answer.to_string()
    })?;
    ensure(members(&answer) == pids, || {
        format!("want {pids:?}: {answer}")
    })?;
    for member in answer["members"].as_array().into_iter().flatten() {
        expect_code(member, 0)?;
        ensure(member["checkpoint"].is_object(), || member.to_string())?;
    }
    let rows = daemon.list()?;
    let all_held = rows.len() == pids.len()
        && rows
            .iter()
            .all(|row| row["state"] == "held" && row["group"] == answer["group"]);
    ensure(all_held, || format!("{rows:?}"))?;
    daemon.refused(checkpoint(tree_of(root)), 13)?;
    let answer = daemon.ask(restore(tree_of(root)))?;
    let answer = Value::Object(answer.object);
    ensure(members(&answer) == pids, || {
        format!("want {pids:?}: {answer}")
    })?;
    before.still(rig)?;
    victim.verify()?;
    daemon.refused(restore(tree_of(root)), 14).map(drop)
}

fn tree_of_a_shell() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = shell("memory size=4M threads=2")?;
    for _ in 0..3 {
        round_trip(&daemon, &rig, &mut victim)?;
    }
    daemon.stop()?;
    victim.quit()
}

/// What they share is there while they are held, and afterwards.
fn tree_with_shared_memory() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = family()?;
    ensure(tree(victim.pid()).len() == 3, || {
        "no family of three".into()
    })?;
    for _ in 0..2 {
        round_trip(&daemon, &rig, &mut victim)?;
    }
    daemon.stop()?;
    victim.quit()
}

fn tree_from_the_command_line() -> Result {
    let rig = Rig::new()?;
    let mut victim = family()?;
    let (root, pids) = (victim.pid(), tree(victim.pid()));
    let before = Before::of(&pids)?;
    let which = ["--tree", &root.to_string()];
    command_line(&rig, "restore", &which).run()?.expect(14)?;
    let held = command_line(&rig, "checkpoint", &which)
        .arg("--json")
        .run()?;
    held.expect(0)?;
    ensure(members(&held.json()?) == pids, || held.to_string())?;
    for pid in &pids {
        until("it to be stopped", || proc::state(*pid, *pid) == Some('T'))?;
        super::expect_traced(*pid, false)?;
    }
    command_line(&rig, "checkpoint", &which).run()?.expect(13)?;
    let back = command_line(&rig, "restore", &which).arg("--json").run()?;
    back.expect(0)?;
    ensure(members(&back.json()?) == pids, || back.to_string())?;
    before.still(&rig)?;
    victim.verify()?;
    let text = command_line(&rig, "checkpoint", &which).run()?;
    text.expect(0)?;
    text.says("3 processes")?;
    command_line(&rig, "restore", &which).run()?.expect(0)?;
    victim.verify()?;
    before.still(&rig)?;
    let nobody = ["--tree", "2147483647"];
    command_line(&rig, "checkpoint", &nobody).run()?.expect(5)?;
    victim.quit()
}

/// All or none, whoever asks.
fn refuses(rig: &Rig, daemon: &Daemon, root: u32, codes: &[u8]) -> Result {
    let before = Before::of(&tree(root))?;
    let client = daemon
        .client()?
        .checkpoint(tree_of(root), Choice::default(), None);
    let answer = match client {
        Err(ClientError::NotDone(answer)) => *answer,
        other => return Err(format!("not refused: {other:?}").into()),
    };
    ensure(codes.contains(&answer.exit_code), || format!("{answer:?}"))?;
    before.still(rig)?;
    let finished = command_line(rig, "checkpoint", &["--tree", &root.to_string()]).run()?;
    let is_refused = finished
        .code
        .is_some_and(|code| codes.iter().any(|it| i32::from(*it) == code));
    ensure(is_refused, || finished.to_string())?;
    before.still(rig)?;
    ensure(daemon.list()?.is_empty(), || "something is held".into())
}

fn one_member_cannot() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = shell("vfork")?;
    let below = children(victim.pid()).first().copied().unwrap_or_default();
    until("a thread in vfork", || {
        let mut threads = proc::threads(below).into_iter();
        threads.any(|tid| proc::state(below, tid) == Some('D'))
    })?;
    victim.verify()?;
    refuses(&rig, &daemon, victim.pid(), &[4])?;
    victim.verify()?;
    daemon.stop()?;
    victim.ask("release")?;
    Ok(())
}

/// Somebody else works on one of them.
fn one_member_is_traced() -> Result {
    let (rig, other) = (Rig::new()?, Rig::new()?);
    let daemon = Daemon::start(&rig)?;
    let mut victim = family()?;
    let pids = tree(victim.pid());
    let last = pids.last().copied().unwrap_or_default();
    let held = other.memcr(last).hold()?;
    let before = Before::of(&pids[..2])?;
    for _ in 0..2 {
        let answer = daemon
            .client()?
            .checkpoint(tree_of(pids[0]), Choice::default(), None);
        ensure(answer.is_err(), || "done, with one that is traced".into())?;
        before.still(&rig)?;
    }
    let finished = command_line(&rig, "checkpoint", &["--tree", &pids[0].to_string()]).run()?;
    ensure(finished.code != Some(0), || finished.to_string())?;
    before.still(&rig)?;
    held.release()?;
    victim.verify()?;
    round_trip(&daemon, &rig, &mut victim)?;
    daemon.stop()?;
    victim.quit()
}

/// A restore, or an abort, of the tree or of one of its members stops the whole.
fn stopped(key: &str) -> Result {
    for verb in ["abort", "restore"] {
        for point in [
            "sink.write@3=stop",
            "checkpoint.frozen=stop",
            "checkpoint.stored=stop",
        ] {
            let rig = Rig::new()?;
            let setup = Setup::new(&rig).memcr(|memcr| memcr.with_fault(point));
            let daemon = setup.start()?;
            let mut victim = family()?;
            let root = victim.pid();
            let before = Before::of(&tree(root))?;
            let (mut first, mut second) = (daemon.wire()?, daemon.wire()?);
            first.say(&json!({ "memcr": 1, "do": "checkpoint", "tree": root }))?;
            daemon.stopped_session()?;
            second.say(&json!({ "memcr": 1, "do": verb, key: root }))?;
            daemon.status()?;
            let is_over = || daemon.list().is_ok_and(|rows| rows.is_empty());
            let_go_until(is_over, || daemon.children())?;
            let what = format!("{verb} by {key} at {point}");
            let answer = first.line()?.ok_or("no answer")?;
            expect_code(&answer, 8).context(&what)?;
            expect_code(&second.line()?.ok_or("no answer")?, 0).context(&what)?;
            before.still(&rig).context(&what)?;
            victim.verify()?;
            daemon.stop()?;
        }
    }
    Ok(())
}

/// Ctrl-C in the middle of `memcr checkpoint --tree`.
fn interrupted() -> Result {
    for signal in [Signal::INT, Signal::TERM] {
        let rig = Rig::new()?;
        let mut victim = family()?;
        let root = victim.pid();
        let before = Before::of(&tree(root))?;
        let memcr = command_line(&rig, "checkpoint", &["--tree", &root.to_string()]);
        let mut running = memcr.with_fault("sink.write@3=stop").start()?;
        running.close_input();
        let memcr = running.pid();
        until_some("a session to stop itself", || {
            let mut sessions = children(memcr).into_iter();
            sessions.find(|&session| proc::state(session, session) == Some('T'))
        })?;
        running.signal(signal)?;
        let_go_until(|| !proc::lives(memcr), || children(memcr))?;
        running.finish()?.expect(8)?;
        before.still(&rig)?;
        victim.verify()?;
    }
    Ok(())
}

/// All of memcr is killed: what of the tree is held then is restored as one.
fn killed_in_the_middle() -> Result {
    for point in [
        "checkpoint.held=stop",
        "checkpoint.drop=stop",
        "sink.write@3=stop",
    ] {
        let rig = Rig::new()?;
        let mut victim = family()?;
        let pids = tree(victim.pid());
        let before = Before::of(&pids)?;
        let which = ["--tree", &victim.pid().to_string()];
        let memcr = command_line(&rig, "checkpoint", &which);
        let mut running = memcr.with_fault(point).start()?;
        running.close_input();
        let memcr = running.pid();
        let is_stopped = |session: &u32| proc::state(*session, *session) == Some('T');
        until("a session to stop itself", || {
            children(memcr).iter().any(is_stopped)
        })?;
        // None of them is to notice that another one is gone.
        running.signal(Signal::STOP)?;
        let sessions = children(memcr);
        for &session in &sessions {
            proc::send(session, Signal::KILL)?;
        }
        running.signal(Signal::KILL)?;
        running.finish()?;
        await_end(&sessions)?;
        let restored = command_line(&rig, "restore", &which).run()?;
        restored.expect(0).context(point)?;
        before.still(&rig).context(point)?;
        victim.verify()?;
        victim.quit()?;
    }
    Ok(())
}

/// Children that end all the time, and that nobody waits for: some do between the look at who
/// there is and the look at each. The others do not miss them.
fn members_that_end() -> Result {
    require("python3")?;
    let mut command = Command::new("python3");
    command.args(["-c", SHORT_LIVED]);
    let victim = Victim::talk(command, "a family of the short-lived")?;
    let rig = Rig::new()?;
    let which = ["--tree", &victim.pid().to_string()];
    for _ in 0..10 {
        let held = command_line(&rig, "checkpoint", &which).run()?;
        held.expect(0)?;
        command_line(&rig, "restore", &which).run()?.expect(0)?;
        rig.expect_clean()?;
    }
    ensure(proc::lives(victim.pid()), || "it has ended".into())
}

const SHORT_LIVED: &str = r"
import os, select, sys, time
print('ready', flush=True)
n = 0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    if os.fork() == 0:
        time.sleep(0.1); os._exit(0)
    n += 1
    if n % 50 == 0:
        for _ in range(40): os.wait()
";

/// The others do not miss it.
fn a_member_is_killed() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let victim = family()?;
    let pids = tree(victim.pid());
    let before = Before::of(&pids[..2])?;
    daemon.ask(checkpoint(tree_of(pids[0])))?;
    proc::send(pids[2], Signal::KILL)?;
    daemon.await_state(pids[0], "held")?;
    until("its session to go", || {
        daemon.list().is_ok_and(|rows| rows.len() == 2)
    })?;
    daemon.ask(restore(tree_of(pids[0])))?;
    // Its parent may have waited for it, and has something to read then.
    rig.expect_clean()?;
    ensure(before.0.iter().all(|(pid, _)| proc::lives(*pid)), || {
        "they ended".into()
    })?;
    daemon.stop().map(drop)
}

fn a_member_alone() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = family()?;
    let pids = tree(victim.pid());
    let before = Before::of(&pids)?;
    daemon.ask(checkpoint(tree_of(pids[0])))?;
    daemon.restore(pids[1])?;
    ensure(daemon.list()?.len() == 2, || "not two are left".into())?;
    daemon.ask(restore(tree_of(pids[0])))?;
    before.still(&rig)?;
    victim.verify()?;
    round_trip(&daemon, &rig, &mut victim)?;
    daemon.stop()?;
    victim.quit()
}

/// The next daemon, and the command line, know them as one.
fn over_a_restart() -> Result {
    let rig = Rig::new()?;
    let setup = Setup::new(&rig);
    let mut victim = family()?;
    let root = victim.pid();
    let pids = tree(root);
    let before = Before::of(&pids)?;
    let ends: [fn(Daemon) -> Result; 3] = [
        |daemon| daemon.stop().map(drop),
        |daemon| daemon.kill().map(drop),
        |daemon| daemon.kill_all().map(drop),
    ];
    for end in ends {
        let daemon = setup.clone().start()?;
        daemon.ask(checkpoint(tree_of(root)))?;
        end(daemon)?;
        let daemon = setup.clone().start()?;
        for pid in &pids {
            daemon.await_state(*pid, "held")?;
        }
        daemon.ask(restore(tree_of(root)))?;
        before.still(&rig)?;
        victim.verify()?;
        daemon.ask(checkpoint(tree_of(root)))?;
        daemon.stop()?;
        let which = ["--tree", &root.to_string()];
        command_line(&rig, "restore", &which).run()?.expect(0)?;
        before.still(&rig)?;
        victim.verify()?;
    }
    victim.quit()
}

fn cgroup_and_those_below() -> Result {
    let cgroup = Cgroup::new()?;
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let start = || Victim::start("memory", &["size=1M"]);
    let (mut inside, mut below, mut outside) = (start()?, start()?, start()?);
    cgroup.take_in("", inside.pid())?;
    cgroup.take_in("below", below.pid())?;
    let before = Before::of(&[inside.pid(), below.pid(), outside.pid()])?;
    let subject = || Subject::Cgroup(cgroup.path.clone());
    let answer = Value::Object(daemon.ask(checkpoint(subject()))?.object);
    let mut held = members(&answer);
    held.sort_unstable();
    let mut want = vec![inside.pid(), below.pid()];
    want.sort_unstable();
    ensure(held == want, || format!("want {want:?}: {answer}"))?;
    outside.verify()?;
    daemon.ask(restore(subject()))?;
    before.still(&rig)?;
    let which = ["--cgroup", &cgroup.path];
    command_line(&rig, "checkpoint", &which).run()?.expect(0)?;
    command_line(&rig, "restore", &which).run()?.expect(0)?;
    before.still(&rig)?;
    for victim in [&mut inside, &mut below, &mut outside] {
        victim.verify()?;
    }
    daemon.refused(checkpoint(Subject::Cgroup("/memcr-e2e-none".into())), 5)?;
    daemon.ask(checkpoint(subject()))?;
    let setup = daemon.setup();
    daemon.stop()?;
    let daemon = setup.start()?;
    // One has ended, which the daemon hears just before it is asked for all.
    daemon.await_state(below.pid(), "held")?;
    let mut wire = daemon.wire()?;
    daemon.status()?;
    daemon.signal(Signal::STOP)?;
    below.signal(Signal::KILL)?;
    below.exit_status()?;
    wire.say(&json!({ "memcr": 1, "do": "restore", "cgroup": cgroup.path }))?;
    daemon.signal(Signal::CONT)?;
    expect_code(&wire.line()?.ok_or("no answer")?, 0)?;
    drop(wire);
    inside.verify()?;
    daemon.stop()?;
    let pids = [inside.pid(), below.pid()];
    drop((inside, below));
    await_end(&pids)?;
    drop(cgroup);
    Ok(())
}
