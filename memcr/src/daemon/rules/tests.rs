//! The rules as tables: every peer against every target.
#![allow(clippy::unwrap_used)]

use super::subjected::{Ancestor, Rights};
use super::*;
use crate::daemon::peer::Process;

const DAEMON: i32 = 500;
const SESSION: i32 = 600;
const GROUP: u32 = 77;
const NAMESPACE: u64 = 4_026_531_837;
const USER: u32 = 1000;
const GID: u32 = 100;
/// The peer's process, and the time at which it started.
const PEER: (i32, u64) = (700, 70);

fn rules() -> Rules {
    Rules {
        group: Some(GROUP),
        others: true,
        daemon: DAEMON,
        user: 0,
        user_namespace: Some(NAMESPACE),
        nobody: Nobody::default(),
    }
}

fn unix(uid: u32, gid: u32, groups: &[u32]) -> Peer {
    Peer::Process {
        uid,
        gid,
        groups: groups.to_vec(),
        process: Some(Process {
            pid: PEER.0,
            start_time: PEER.1,
            user_namespace: Some(NAMESPACE),
        }),
    }
}

fn tcp(uid: u32, gid: Option<u32>) -> Peer {
    Peer::User { uid, gid }
}

fn from(pid: Option<i32>, start_time: u64, user_namespace: Option<u64>) -> Peer {
    Peer::Process {
        uid: USER,
        gid: GID,
        groups: Vec::new(),
        process: pid.map(|pid| Process {
            pid,
            start_time,
            user_namespace,
        }),
    }
}

fn rights(uids: [u32; 3], gids: [u32; 3], permitted: u64) -> Rights {
    Rights {
        uids,
        gids,
        permitted,
    }
}

/// A plain process of the user.
fn plain() -> Subjected {
    Subjected {
        pid: 4711,
        start_time: 90,
        tgid: 4711,
        threads: vec![rights([USER; 3], [GID; 3], 0)],
        is_dumpable: true,
        ancestors: vec![Ancestor {
            pid: 1,
            start_time: 1,
        }],
        is_above_daemon: false,
        user_namespace: Some(NAMESPACE),
        yama: 0,
    }
}

fn with(change: impl FnOnce(&mut Subjected)) -> Subjected {
    let mut target = plain();
    change(&mut target);
    target
}

fn of(uids: [u32; 3], gids: [u32; 3], permitted: u64) -> Subjected {
    with(|target| target.threads = vec![rights(uids, gids, permitted)])
}

fn may(peer: &Peer, target: &Subjected) -> Result<(), Denied> {
    rules().may(peer, target, |pid| pid == SESSION)
}

/// The name of a denial's kind, as in the tables.
fn word(result: Result<(), Denied>) -> &'static str {
    match result {
        Ok(()) => "yes",
        Err(Denied::User { .. }) => "uid",
        Err(Denied::Group { .. }) => "gid",
        Err(Denied::NoLogin { .. }) => "login",
        Err(Denied::Capabilities { .. }) => "caps",
        Err(Denied::NotDumpable { .. }) => "dump",
        Err(Denied::TargetNamespace { .. }) => "ns",
        Err(Denied::PeerNamespace) => "peer-ns",
        Err(Denied::Yama { .. }) => "yama",
        Err(Denied::Ours { .. }) => "ours",
        Err(Denied::Thread { .. }) => "thread",
        Err(Denied::Nobody { .. }) => "nobody",
        Err(Denied::Stranger { .. }) => "stranger",
    }
}

/// The targets, and what each peer hears: root, a member by its first group, a member by
/// another group, the user, another user of the same group (all over the UNIX socket);
/// root, the user, the user without a login, another user (TCP); anyone (TCP, trusted).
const TABLE: &str = "
target            root prim supp user other | root user nolog other | anyone
plain             yes  yes  yes  yes  uid   | yes  yes  login uid   | yes
of-root           yes  yes  yes  uid  uid   | yes  uid  uid   uid   | yes
of-root-no-caps   yes  yes  yes  uid  uid   | yes  uid  uid   uid   | yes
of-other          yes  yes  yes  uid  yes   | yes  uid  uid   yes   | yes
setuid-running    yes  yes  yes  uid  uid   | yes  uid  uid   uid   | yes
setuid-dropped    yes  yes  yes  uid  uid   | yes  uid  uid   uid   | yes
setuid-real       yes  yes  yes  uid  uid   | yes  uid  uid   uid   | yes
setgid-running    yes  yes  yes  gid  uid   | yes  gid  login uid   | yes
setgid-dropped    yes  yes  yes  gid  uid   | yes  gid  login uid   | yes
setgid-real       yes  yes  yes  gid  uid   | yes  gid  login uid   | yes
of-other-group    yes  yes  yes  gid  uid   | yes  gid  login uid   | yes
capable           yes  yes  yes  caps uid   | yes  caps login uid   | yes
not-dumpable      yes  yes  yes  dump uid   | yes  dump login uid   | yes
container         yes  yes  yes  ns   uid   | yes  ns   login uid   | yes
hidden-namespace  yes  yes  yes  ns   uid   | yes  ns   login uid   | yes
yama-1            yes  yes  yes  yama uid   | yes  yama login uid   | yes
yama-1-child      yes  yes  yes  yes  uid   | yes  yama login uid   | yes
yama-1-deep       yes  yes  yes  yes  uid   | yes  yama login uid   | yes
yama-1-itself     yes  yes  yes  yes  uid   | yes  yama login uid   | yes
yama-1-reused     yes  yes  yes  yama uid   | yes  yama login uid   | yes
yama-2-child      yes  yes  yes  yama uid   | yes  yama login uid   | yes
yama-3-child      yes  yes  yes  yama uid   | yes  yama login uid   | yes
yama-4-child      yes  yes  yes  yama uid   | yes  yama login uid   | yes
thread-of-root    yes  yes  yes  uid  uid   | yes  uid  login uid   | yes
thread-setgid     yes  yes  yes  gid  uid   | yes  gid  login uid   | yes
thread-capable    yes  yes  yes  caps uid   | yes  caps login uid   | yes
a-tid             thread thread thread thread thread | thread thread thread thread | thread
init              ours ours ours ours ours  | ours ours ours  ours  | ours
daemon            ours ours ours ours ours  | ours ours ours  ours  | ours
daemons-parent    ours ours ours ours ours  | ours ours ours  ours  | ours
session           ours ours ours ours ours  | ours ours ours  ours  | ours
child-of-session  ours ours ours ours ours  | ours ours ours  ours  | ours
";

fn target(name: &str) -> Subjected {
    let (root, plain_gid) = (0, [GID; 3]);
    let above = |pid, start_time| Ancestor { pid, start_time };
    let yama = |scope, ancestors: &[Ancestor]| {
        with(|target| {
            target.yama = scope;
            target.ancestors = ancestors.to_vec();
        })
    };
    let child = [above(PEER.0, PEER.1), above(1, 1)];
    let also = |other: Rights| with(|target| target.threads.push(other));
    match name {
        "plain" => plain(),
        "of-root" => of([root; 3], [root; 3], u64::MAX),
        "of-root-no-caps" => of([root; 3], plain_gid, 0),
        "of-other" => of([1001; 3], plain_gid, 0),
        "setuid-running" => of([USER, root, root], plain_gid, 0),
        "setuid-dropped" => of([USER, USER, root], plain_gid, 0),
        "setuid-real" => of([root, USER, USER], plain_gid, 0),
        "setgid-running" => of([USER; 3], [GID, 5, 5], 0),
        "setgid-dropped" => of([USER; 3], [GID, GID, 5], 0),
        "setgid-real" => of([USER; 3], [5, GID, GID], 0),
        "of-other-group" => of([USER; 3], [5; 3], 0),
        "capable" => of([USER; 3], plain_gid, 1 << 10),
        "not-dumpable" => with(|target| target.is_dumpable = false),
        "container" => with(|target| target.user_namespace = Some(1)),
        "hidden-namespace" => with(|target| target.user_namespace = None),
        "yama-1" => yama(1, &[above(1, 1)]),
        "yama-1-child" => yama(1, &child),
        "yama-1-deep" => yama(1, &[above(800, 80), child[0], child[1]]),
        "yama-1-itself" => with(|target| {
            (target.pid, target.tgid, target.start_time) = (PEER.0, PEER.0, PEER.1);
            target.yama = 1;
        }),
        "yama-1-reused" => yama(1, &[above(PEER.0, PEER.1 + 1)]),
        "yama-2-child" => yama(2, &child),
        "yama-3-child" => yama(3, &child),
        "yama-4-child" => yama(4, &child),
        "thread-of-root" => also(rights([root; 3], plain_gid, 0)),
        "thread-setgid" => also(rights([USER; 3], [GID, 5, 5], 0)),
        "thread-capable" => also(rights([USER; 3], plain_gid, 1)),
        "a-tid" => with(|target| target.tgid = 4710),
        "init" => with(|target| (target.pid, target.tgid) = (1, 1)),
        "daemon" => with(|target| (target.pid, target.tgid) = (DAEMON, DAEMON)),
        "daemons-parent" => with(|target| target.is_above_daemon = true),
        "session" => with(|target| (target.pid, target.tgid) = (SESSION, SESSION)),
        "child-of-session" => with(|target| target.ancestors.insert(0, above(SESSION, 60))),
        other => panic!("no target {other}"),
    }
}

#[test]
fn every_peer_and_every_target() {
    let peers = [
        unix(0, 0, &[]),
        unix(1002, GROUP, &[]),
        unix(1002, GID, &[4, GROUP]),
        unix(USER, GID, &[4]),
        unix(1001, GID, &[4]),
        tcp(0, Some(0)),
        tcp(USER, Some(GID)),
        tcp(USER, None),
        tcp(1001, Some(GID)),
        Peer::Anyone,
    ];
    let mut n_targets = 0;
    for row in TABLE.lines().skip(2) {
        let mut words = row.split_whitespace().filter(|word| *word != "|");
        let name = words.next().unwrap();
        let want: Vec<_> = words.collect();
        let target = target(name);
        let said: Vec<_> = peers.iter().map(|peer| word(may(peer, &target))).collect();
        assert_eq!(said, want, "{name}");
        n_targets += 1;
    }
    assert_eq!(n_targets, 32);
}

/// What ptrace(2) says, written down once more, against every combination.
#[test]
fn every_combination_agrees_with_ptrace() {
    let (uids, flags) = ([0, USER, 1001], [false, true]);
    let mut n_allowed = 0;
    for (peer_uid, peer_gid, is_tcp, is_member) in uids
        .into_iter()
        .flat_map(|uid| [GID, 5].map(|gid| (uid, gid)))
        .flat_map(|(uid, gid)| flags.map(|is_tcp| (uid, gid, is_tcp)))
        .flat_map(|(uid, gid, is_tcp)| flags.map(|member| (uid, gid, is_tcp, member)))
    {
        let groups: &[u32] = if is_member { &[GROUP] } else { &[] };
        let peer = match is_tcp {
            true => tcp(peer_uid, Some(peer_gid)),
            false => unix(peer_uid, peer_gid, groups),
        };
        for bits in 0..3_u32.pow(3) * 2_u32.pow(6) {
            let mut rest = bits;
            let mut digit = |base: u32| {
                let digit = rest % base;
                rest /= base;
                digit as usize
            };
            let ids = [uids[digit(3)], uids[digit(3)], uids[digit(3)]];
            let (has_caps, is_dumpable) = (digit(2) == 1, digit(2) == 1);
            let (yama, is_child) = (digit(4) as u8, digit(2) == 1);
            let is_foreign = digit(2) == 1;
            let target = with(|target| {
                target.threads = vec![rights(ids, [GID; 3], has_caps.into())];
                target.is_dumpable = is_dumpable;
                target.yama = yama;
                target.user_namespace = Some(NAMESPACE + u64::from(is_foreign));
                if is_child {
                    target.ancestors = vec![Ancestor {
                        pid: PEER.0,
                        start_time: PEER.1,
                    }];
                }
            });
            let is_privileged = peer_uid == 0 || (is_member && !is_tcp);
            let could_trace = ids == [peer_uid; 3]
                && peer_gid == GID
                && is_dumpable
                && !has_caps
                && !is_foreign
                && (yama == 0 || (yama == 1 && is_child && !is_tcp));
            let want = is_privileged || could_trace;
            assert_eq!(may(&peer, &target).is_ok(), want, "{peer:?} {target:?}");
            n_allowed += u32::from(want);
        }
    }
    assert!(n_allowed > 0);
}

#[test]
fn a_peer_that_is_not_known_well_gets_less() {
    for (what, peer, want) in [
        ("ended", from(None, 0, None), "peer-ns"),
        ("hidden", from(Some(PEER.0), PEER.1, None), "peer-ns"),
        (
            "in a container",
            from(Some(PEER.0), PEER.1, Some(1)),
            "peer-ns",
        ),
        ("known", from(Some(PEER.0), PEER.1, Some(NAMESPACE)), "yes"),
    ] {
        assert_eq!(word(may(&peer, &plain())), want, "{what}");
    }
    let without = Rules {
        user_namespace: None,
        ..rules()
    };
    let target = with(|target| target.user_namespace = None);
    let peer = from(None, 0, None);
    assert_eq!(
        without.may(&peer, &target, |_| false),
        Ok(()),
        "a kernel without namespaces"
    );
}

#[test]
fn an_id_that_stands_for_many_is_nobodys() {
    let rules = Rules {
        group: Some(65534),
        nobody: Nobody {
            uid: Some(65534),
            gid: Some(65534),
        },
        ..rules()
    };
    let nobodys = of([65534; 3], [GID; 3], 0);
    let said = |peer: &Peer, target| word(rules.may(peer, target, |_| false));
    assert_eq!(said(&unix(65534, GID, &[]), &nobodys), "nobody");
    assert_eq!(
        said(&unix(USER, GID, &[65534]), &nobodys),
        "uid",
        "no member"
    );
    let target = of([USER; 3], [65534; 3], 0);
    assert_eq!(said(&unix(USER, 65534, &[]), &target), "gid");
    for (text, want) in [
        ("         0          0 4294967295\n", true),
        ("         0       1000          1\n", false),
        ("0 0 1000\n1000 1000 4294966295\n", true),
        ("", true),
    ] {
        assert_eq!(maps_all(text), want, "{text}");
    }
}

#[test]
fn the_socket_is_for_those_whom_its_mode_lets_in() {
    let closed = Rules {
        others: false,
        user: 1002,
        ..rules()
    };
    for (peer, want) in [
        (unix(0, 0, &[]), "yes"),
        (unix(1002, 1002, &[]), "yes"),
        (unix(USER, GID, &[GROUP]), "yes"),
        (unix(USER, GID, &[]), "stranger"),
        (tcp(USER, Some(GID)), "yes"),
        (Peer::Anyone, "yes"),
    ] {
        assert_eq!(word(closed.welcome(&peer)), want, "{peer:?}");
        assert_eq!(word(rules().welcome(&peer)), "yes", "{peer:?}");
    }
}

#[test]
fn denials_say_which_rule() {
    let user = unix(USER, GID, &[]);
    for (name, want) in [
        (
            "of-root",
            "process 4711 does not belong to uid 1000 with its real, effective and saved user id",
        ),
        (
            "thread-setgid",
            "process 4711 does not have gid 100 as its real, effective and saved group id in each of its threads",
        ),
        (
            "yama-1",
            "process 4711: /proc/sys/kernel/yama/ptrace_scope is 1: only its ancestors may trace it, over a UNIX socket",
        ),
        ("capable", "process 4711 has capabilities (CapPrm 0x400)"),
        ("a-tid", "4711 is a thread of process 4710, not a process"),
        (
            "daemon",
            "process 500 is the daemon: it is refused for everybody",
        ),
    ] {
        assert_eq!(may(&user, &target(name)).unwrap_err().to_string(), want);
    }
    let closed = Rules {
        others: false,
        ..rules()
    };
    assert_eq!(
        closed.welcome(&user).unwrap_err().to_string(),
        "uid 1000 may not use this daemon: it is for root and members of the group 77"
    );
}

#[test]
fn we_ourselves_are_refused() {
    let rules = Rules::new(None, false);
    let we = rules.look(std::process::id().cast_signed()).unwrap();
    assert_eq!(word(rules.may(&unix(0, 0, &[]), &we, |_| false)), "ours");
    let parent = std::os::unix::process::parent_id().cast_signed();
    let parent = rules.look(parent).unwrap();
    assert_eq!(word(rules.may(&Peer::Anyone, &parent, |_| false)), "ours");
}
