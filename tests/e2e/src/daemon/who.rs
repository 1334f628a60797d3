//! Who may do what: a table of sockets, clients and targets.
//!
//! A client is a thread that has become another user: the kernel tells the daemon of it as
//! of a process.

use super::family::{Before, checkpoint, restore, shell, tree, tree_of};
use super::{As, Public, expect_code, expect_traced};
use crate::common::PublicCopy;
use crate::table;
use libtest_mimic::Trial;
use memcr_client::{Ask, Client, ClientError, Location};
use memcr_harness::daemon::{abort_of, await_end, checkpoint_of, restore_of};
use memcr_harness::require::lacking;
use memcr_harness::wait::DEADLINE;
use memcr_harness::{
    Allow, Context, Daemon, Result, Rig, Setup, Snapshot, Victim, Wire, ensure, proc, require,
};
use rustix::process::Signal;
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("who_may_socket_of_root", || {
                matrix(
                    "",
                    Door::Unix {
                        opens: opens_to_root,
                    },
                )
            }),
            ("who_may_socket_of_a_group", || {
                matrix(
                    GROUP_KEY,
                    Door::Unix {
                        opens: opens_to_group,
                    },
                )
            }),
            ("who_may_socket_of_everybody", || {
                matrix(
                    "others = true",
                    Door::Unix {
                        opens: opens_to_all,
                    },
                )
            }),
            ("who_may_socket_of_everybody_and_a_group", || {
                let config = "others = true\ngroup = \"64100\"";
                matrix(
                    config,
                    Door::Unix {
                        opens: opens_to_all,
                    },
                )
            }),
            ("who_may_port", || {
                matrix(GROUP_KEY, Door::Tcp { trusts_all: false })
            }),
            ("who_may_port_of_everybody", || {
                matrix("tcp_trust = \"all\"", Door::Tcp { trusts_all: true })
            }),
            ("refused_for_everybody", refused_for_everybody),
            ("more_rights_than_the_client", more_rights),
            ("end_of_others_is_not_told", end_of_others),
            ("tree_of_others_that_is_let_go", tree_of_others_let_go),
        ],
    )
}

/// The daemon's group. Nobody is in it but who is put there.
const GROUP: u32 = 64100;
const GROUP_KEY: &str = "group = \"64100\"";
/// Users that every system has, for of a TCP client the group is looked up.
const ROOT: As = As::user(0);
const A: As = As::user(1);
const B: As = As::user(2);
const MEMBER: As = As {
    group: Some(GROUP),
    ..B
};
const CLIENTS: [As; 4] = [ROOT, A, B, MEMBER];

/// Through which a client comes.
#[derive(Clone, Copy)]
enum Door {
    Unix { opens: fn(As) -> bool },
    Tcp { trusts_all: bool },
}

fn opens_to_root(client: As) -> bool {
    client == ROOT
}

fn opens_to_group(client: As) -> bool {
    client == ROOT || client == MEMBER
}

fn opens_to_all(_: As) -> bool {
    true
}

impl Door {
    fn opens(self, client: As) -> bool {
        match self {
            Self::Unix { opens } => opens(client),
            Self::Tcp { .. } => true,
        }
    }

    /// Whether `client` may act on a target of `owner`.
    fn may(self, client: As, owner: As, has_group: bool) -> bool {
        let is_member = has_group && client.group == Some(GROUP);
        let acts_on_all = match self {
            Self::Unix { .. } => is_member,
            Self::Tcp { trusts_all } => trusts_all,
        };
        client == ROOT || acts_on_all || client.uid == owner.uid
    }
}

/// Targets of root and two users.
struct Targets {
    all: Vec<(As, Victim, Snapshot)>,
    _copy: PublicCopy,
}

impl Targets {
    fn start() -> Result<Self> {
        let copy = PublicCopy::make()?;
        let mut all = Vec::new();
        for owner in [ROOT, A, B] {
            let mut command = Command::new(copy.dir().join("victim"));
            command
                .args(["memory", "size=1M"])
                .uid(owner.uid)
                .gid(owner.gid);
            let victim = Victim::talk(command, &format!("a victim of {owner:?}"))?;
            let before = Snapshot::take(victim.pid())?;
            all.push((owner, victim, before));
        }
        Ok(Self { all, _copy: copy })
    }
}

fn without_yama() -> Result {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Err(_) | Ok("0") => Ok(()),
        Ok(scope) => Err(lacking(
            "ptrace_scope",
            &format!("Yama's ptrace_scope is {scope}"),
        )),
    }
}

/// What a client is answered: the exit code, or nothing because it may not connect.
fn asked(client: As, at: &Location, ask: Ask) -> Result<Option<u8>> {
    client.run(|| match Client::connect(at) {
        Err(ClientError::Connect { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Ok(None)
        }
        Err(error) => Err(error.to_string().into()),
        Ok(mut connected) => {
            connected.set_patience(Some(DEADLINE));
            match connected.ask(ask) {
                Ok(_) => Ok(Some(0)),
                Err(ClientError::NotDone(answer)) => Ok(Some(answer.exit_code)),
                Err(error) => Err(error.to_string().into()),
            }
        }
    })
}

fn matrix(config: &str, door: Door) -> Result {
    require("root")?;
    without_yama()?;
    let (rig, public) = (Rig::new()?, Public::new()?);
    let setup = Setup::new(&rig).socket(&public.socket()).config(config);
    let daemon = setup.with_port()?.start()?;
    let at = match (door, daemon.locations().as_slice()) {
        (Door::Tcp { .. }, [_, port]) => port.clone(),
        _ => daemon.location(),
    };
    let mut targets = Targets::start()?;
    let has_group = config.contains("group");
    for client in CLIENTS {
        for (owner, victim, before) in &mut targets.all {
            let may = door
                .opens(client)
                .then(|| door.may(client, *owner, has_group));
            cell(&daemon, &at, client, (victim, before), may)
                .context(format!("{client:?} on a target of {owner:?}"))?;
        }
    }
    rig.expect_clean()?;
    lists(&daemon, &at, &mut targets, |client, owner| {
        door.opens(client)
            .then(|| door.may(client, owner, has_group))
    })?;
    rig.expect_clean()?;
    daemon.stop().map(drop)
}

/// One client, one target. `may`: nothing, if it may not even connect.
fn cell(
    daemon: &Daemon,
    at: &Location,
    client: As,
    (victim, before): (&mut Victim, &Snapshot),
    may: Option<bool>,
) -> Result {
    let pid = victim.pid();
    let expect = |ask: Ask, want: Option<u8>| {
        let what = format!("{ask:?}");
        let got = asked(client, at, ask).context(&what)?;
        ensure(got == want, || {
            format!("{what}: answered {got:?}, want {want:?}")
        })
    };
    let want = may.map(|may| if may { 0 } else { 6 });
    expect(checkpoint_of(pid), want)?;
    expect_traced(pid, may == Some(true))?;
    if may != Some(true) {
        // Held by root, it is no more of anybody's business.
        daemon.checkpoint(pid)?;
        for ask in [checkpoint_of(pid), restore_of(pid), abort_of(pid)] {
            expect(ask, want)?;
        }
        let pid = pid.cast_signed();
        expect(Ask::Status { pid: Some(pid) }, want)?;
        daemon.restore(victim.pid())?;
    } else {
        expect(checkpoint_of(pid), Some(13))?;
        expect(restore_of(pid), want)?;
        expect(restore_of(pid), Some(14))?;
    }
    let allow = Allow {
        less_rss: true,
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    victim.verify().map(drop)
}

/// A list shows what its reader may act on, and nothing else.
fn lists(
    daemon: &Daemon,
    at: &Location,
    targets: &mut Targets,
    may: impl Fn(As, As) -> Option<bool> + Sync,
) -> Result {
    for (_, victim, _) in &targets.all {
        daemon.checkpoint(victim.pid())?;
    }
    for client in CLIENTS {
        let want: Vec<u32> = targets
            .all
            .iter()
            .filter(|(owner, ..)| may(client, *owner) == Some(true))
            .map(|(_, victim, _)| victim.pid())
            .collect();
        if may(client, client).is_none() {
            continue;
        }
        let got = client.run(|| {
            let mut connected = Client::connect(at).context("connect")?;
            let answer = connected.list().context("list")?;
            let rows = answer.object["sessions"].as_array().cloned();
            let pids = rows.into_iter().flatten().map(|row| row["pid"].as_u64());
            Ok(pids.flatten().map(|pid| pid as u32).collect::<Vec<u32>>())
        })?;
        let (mut sorted, mut wanted) = (got.clone(), want.clone());
        sorted.sort_unstable();
        wanted.sort_unstable();
        ensure(sorted == wanted, || {
            format!("{client:?} sees {got:?}, want {want:?}")
        })?;
    }
    for (_, victim, _) in &mut targets.all {
        daemon.restore(victim.pid())?;
        victim.verify()?;
    }
    Ok(())
}

/// What nobody may touch, not even root.
fn refused_for_everybody() -> Result {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig)?;
    let mut victim = Victim::start("memory", &["size=4M", "threads=2"])?;
    daemon.checkpoint(victim.pid())?;
    let session = daemon.session_of(victim.pid())?;
    daemon.restore(victim.pid())?;
    let thread = proc::threads(victim.pid())
        .into_iter()
        .find(|tid| *tid != victim.pid());
    let thread = thread.ok_or("no thread")?;
    daemon.checkpoint(victim.pid())?;
    let session_now = daemon.session_of(victim.pid())?;
    let own = std::process::id();
    for (what, pid) in [
        ("pid 1", 1),
        ("the daemon", daemon.pid()),
        ("the session's process", session_now),
        ("an ancestor", own),
        ("a thread", thread),
    ] {
        daemon.refused(checkpoint_of(pid), 6).context(what)?;
    }
    daemon.refused(checkpoint_of(session), 5)?;
    daemon.restore(victim.pid())?;
    victim.verify()?;
    victim.quit()?;
    daemon.stop().map(drop)
}

/// Targets of one's own that one could not trace.
fn more_rights() -> Result {
    require("root")?;
    without_yama()?;
    let (rig, public) = (Rig::new()?, Public::new()?);
    let setup = Setup::new(&rig).socket(&public.socket());
    let daemon = setup.config("others = true").start()?;
    let copy = PublicCopy::make()?;
    let program = copy.dir().join("victim").display().to_string();
    for (what, words) in [
        (
            "another group",
            &["--reuid=1", "--regid=2", "--clear-groups"][..],
        ),
        (
            "another effective user",
            &["--ruid=1", "--euid=2", "--regid=1", "--clear-groups"],
        ),
        (
            "another real user",
            &["--ruid=2", "--euid=1", "--regid=1", "--clear-groups"],
        ),
        (
            "a capability",
            &[
                "--reuid=1",
                "--regid=1",
                "--clear-groups",
                "--inh-caps=+chown",
                "--ambient-caps=+chown",
            ],
        ),
    ] {
        let mut command = Command::new("setpriv");
        command
            .args(words)
            .arg(&program)
            .args(["memory", "size=1M"]);
        let mut victim = Victim::talk(command, what)?;
        let got = asked(A, &daemon.location(), checkpoint_of(victim.pid()))?;
        ensure(got == Some(6), || format!("{what}: answered {got:?}"))?;
        expect_traced(victim.pid(), false)?;
        victim.verify()?;
    }
    daemon.stop().map(drop)
}

/// How a session with another user's process ended is not told, either.
fn end_of_others() -> Result {
    require("root")?;
    without_yama()?;
    let (rig, public) = (Rig::new()?, Public::new()?);
    let setup = Setup::new(&rig).socket(&public.socket());
    let daemon = setup.config("others = true").start()?;
    let mut targets = Targets::start()?;
    for (_, victim, _) in &mut targets.all {
        daemon.checkpoint(victim.pid())?;
        daemon.restore(victim.pid())?;
        victim.verify()?;
    }
    for client in CLIENTS {
        for (owner, victim, _) in &targets.all {
            let pid = Some(victim.pid().cast_signed());
            let got = asked(client, &daemon.location(), Ask::Status { pid })?;
            let want = if client == ROOT || client.uid == owner.uid {
                0
            } else {
                6
            };
            ensure(got == Some(want), || {
                format!("{client:?} asks for one of {owner:?}: {got:?}")
            })?;
        }
    }
    daemon.stop().map(drop)
}

/// Root's tree, held by sessions whose daemon has died and who have not noticed yet: what
/// a user asks for meanwhile is not done once they let go of it, either.
fn tree_of_others_let_go() -> Result {
    require("root")?;
    let (rig, public) = (Rig::new()?, Public::new()?);
    let setup = Setup::new(&rig).socket(&public.socket());
    let setup = setup.config("others = true");
    let mut victim = shell("memory size=1M")?;
    let root = victim.pid();
    let pids = tree(root);
    let before = Before::of(&pids)?;
    let first = setup.clone().start()?;
    first.ask(checkpoint(tree_of(root)))?;
    let sessions = first.children();
    for session in &sessions {
        proc::send(*session, Signal::STOP)?;
    }
    first.signal(Signal::KILL)?;
    await_end(&[first.pid()])?;
    let daemon = setup.start()?;
    let at = daemon.location();
    let mut wire = A.run(move || Wire::open(&at))?;
    wire.say(&json!({ "memcr": 1, "do": "restore", "tree": root }))?;
    daemon.status()?;
    for session in &sessions {
        proc::send(*session, Signal::CONT)?;
    }
    first.finish()?;
    let answer = wire.line()?.ok_or("no answer")?;
    expect_code(&answer, 6)?;
    for pid in &pids {
        daemon.await_state(*pid, "held")?;
    }
    daemon.ask(restore(tree_of(root)))?;
    before.still(&rig)?;
    victim.verify()?;
    daemon.stop()?;
    victim.quit()
}
