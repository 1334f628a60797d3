//! Who may do what: decided from numbers, with nothing asked of anybody.
//!
//! ```text
//!                      ┌ the daemon, pid 1, its ancestors, its sessions ─▶ refused for all
//! Peer ─┐              │
//!       ├─ Rules::may ─┼ root, members of the group, anyone where TCP is trusted ─▶ allowed
//! /proc ┴─▶ Subjected  │
//!                      └ others ─▶ as ptrace(2), "Ptrace access mode checking", with
//!                                  PTRACE_MODE_ATTACH_REALCREDS:
//!                                    uid  = real, effective and saved uid of every thread
//!                                    gid  = real, effective and saved gid of every thread
//!                                    dumpable, no capability, our user namespace,
//!                                    Yama 0, or 1 with the peer an ancestor
//! ```
//!
//! What was read of a running target may be old when it is used: it can execute a
//! set-user-ID program at any time. So `may` is asked twice, the second time by the session's
//! process once the target is frozen ([`Rules::look_at_frozen`]) and can change no more.
//!
//! Where the kernel knows more than we can, we refuse: capabilities of the peer,
//! PR_SET_PTRACER of Yama, a user namespace that the peer owns. What other security modules
//! (SELinux, AppArmor, Landlock) would say of the peer is not known here; they see the daemon.

mod choice;
mod subjected;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;

use super::peer::{Peer, user_namespace};

pub(super) use choice::Choices;
pub(super) use subjected::Subjected;

/// The rules of one daemon. A copy is as good, in a session's process too.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Whose members may act on every target.
    group: Option<u32>,
    /// Every user may connect to the UNIX socket.
    others: bool,
    /// The daemon's process.
    daemon: i32,
    /// The daemon's user.
    user: u32,
    /// The daemon's user namespace; `None`: a kernel without such.
    user_namespace: Option<u64>,
    /// The ids that stand for all those that have none in our user namespace.
    nobody: Nobody,
}

/// Why something is refused. The texts tell nothing of a target but which rule it
/// does not meet, which everybody can read in `/proc`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Denied {
    /// Not one of those who may connect.
    #[error("uid {uid} may not use this daemon: it is for root{}", and_group(*.group))]
    Stranger { uid: u32, group: Option<u32> },
    /// Nobody may act on it.
    #[error("process {pid} is {what}: it is refused for everybody")]
    Ours { pid: i32, what: &'static str },
    /// Not a process.
    #[error("{tid} is a thread of process {pid}, not a process")]
    Thread { tid: i32, pid: i32 },
    /// The peer's id stands for many users.
    #[error("uid {uid} stands for users that have no number in this user namespace")]
    Nobody { uid: u32 },
    /// Of another user.
    #[error(
        "process {pid} does not belong to uid {uid} with its real, effective and saved user id{}",
        of_any(*.is_leader)
    )]
    User { pid: i32, uid: u32, is_leader: bool },
    /// Of another group.
    #[error(
        "process {pid} does not have gid {gid} as its real, effective and saved group id{}",
        of_any(*.is_leader)
    )]
    Group { pid: i32, gid: u32, is_leader: bool },
    /// Over TCP, from a user that has no login.
    #[error(
        "/etc/passwd has no uid {uid}, so the client's group is not known; over a UNIX socket it is"
    )]
    NoLogin { uid: u32 },
    /// It has more rights than the peer.
    #[error("process {pid} has capabilities (CapPrm {permitted:#x})")]
    Capabilities { pid: i32, permitted: u64 },
    /// It hides its memory.
    #[error("process {pid} is not dumpable (prctl(2), PR_SET_DUMPABLE)")]
    NotDumpable { pid: i32 },
    /// It lives in a container.
    #[error("process {pid} is not in the user namespace of the daemon")]
    TargetNamespace { pid: i32 },
    /// The peer lives in a container, or nobody knows.
    #[error("the client is not in the user namespace of the daemon, or has ended")]
    PeerNamespace,
    /// The system forbids it.
    #[error("process {pid}: /proc/sys/kernel/yama/ptrace_scope is {scope}: {}", yama_says(*.scope))]
    Yama { pid: i32, scope: u8 },
}

/// Overflow ids (user_namespaces(7)): `None` where every id has a number of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Nobody {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Rules {
    /// The rules of this process, which is to be the daemon's: after any fork that makes
    /// it one. `group` may act on every target; `others`: every user may connect to the
    /// UNIX socket.
    #[must_use]
    pub(super) fn new(group: Option<u32>, others: bool) -> Self {
        let daemon = std::process::id().cast_signed();
        Self {
            group,
            others,
            daemon,
            user: rustix::process::geteuid().as_raw(),
            user_namespace: user_namespace(daemon).ok(),
            nobody: Nobody::read(),
        }
    }

    /// Whether the peer is to be served at all. For a UNIX socket its mode says the same; but
    /// a socket has another one for the moment between its making and its change.
    ///
    /// # Errors
    /// [`Denied::Stranger`].
    pub(super) fn welcome(&self, peer: &Peer) -> Result<(), Denied> {
        let is_unix = matches!(peer, Peer::Process { .. });
        if !is_unix || self.others || peer.uid() == self.user || self.acts_on_all(peer) {
            return Ok(());
        }
        Err(Denied::Stranger {
            uid: peer.uid(),
            group: self.group,
        })
    }

    /// Whether the peer may act on every target: root, the group, and anyone where
    /// `tcp_trust` says so.
    #[must_use]
    pub(super) fn acts_on_all(&self, peer: &Peer) -> bool {
        let is_member = |group| self.nobody.gid != Some(group) && peer.is_in(group);
        peer.uid() == 0 || self.group.is_some_and(is_member)
    }

    /// Reads what the rules need to know of a process. Of its threads only the first
    /// is asked: enough for a first answer, at the same cost for any process.
    ///
    /// # Errors
    /// `NotFound`: there is no such process.
    pub(super) fn look(&self, pid: i32) -> io::Result<Subjected> {
        Subjected::read(pid, self.daemon)
    }

    /// The same of a target that is frozen, with all its threads: the kernel lets each have
    /// ids of its own.
    ///
    /// # Errors
    /// As [`Rules::look`].
    pub(super) fn look_at_frozen(&self, pid: i32) -> io::Result<Subjected> {
        Subjected::read(pid, self.daemon)?.with_threads()
    }

    /// Whether `peer` may act on `target`. `is_session`: whether a pid is that of a session's
    /// process.
    ///
    /// # Errors
    /// The first rule that says no.
    pub(super) fn may(
        &self,
        peer: &Peer,
        target: &Subjected,
        is_session: impl Fn(i32) -> bool,
    ) -> Result<(), Denied> {
        self.is_not_ours(target, is_session)?;
        if self.acts_on_all(peer) {
            return Ok(());
        }
        self.could_trace(peer, target)
    }

    /// What the daemon cannot do without, and what would wait for itself.
    fn is_not_ours(
        &self,
        target: &Subjected,
        is_session: impl Fn(i32) -> bool,
    ) -> Result<(), Denied> {
        let Subjected { pid, tgid, .. } = *target;
        let is_of_session =
            || is_session(pid) || target.ancestors.iter().any(|above| is_session(above.pid));
        let what = match () {
            () if tgid != pid => {
                return Err(Denied::Thread {
                    tid: pid,
                    pid: tgid,
                });
            }
            () if pid <= 1 => "the first one of the system",
            () if pid == self.daemon => "the daemon",
            () if target.is_above_daemon => "an ancestor of the daemon",
            () if is_of_session() => "one of the daemon's own",
            () => return Ok(()),
        };
        Err(Denied::Ours { pid, what })
    }

    /// The algorithm of ptrace(2), for a caller without capabilities.
    fn could_trace(&self, peer: &Peer, target: &Subjected) -> Result<(), Denied> {
        let pid = target.pid;
        let uid = peer.uid();
        if self.nobody.uid == Some(uid) {
            return Err(Denied::Nobody { uid });
        }
        let gid = match peer {
            Peer::Process { gid, .. } => Some(*gid),
            Peer::User { gid, .. } => *gid,
            Peer::Anyone => None,
        };
        for (at, thread) in target.threads.iter().enumerate() {
            let is_leader = at == 0;
            if thread.uids != [uid; 3] {
                return Err(Denied::User {
                    pid,
                    uid,
                    is_leader,
                });
            }
            let gid = gid.ok_or(Denied::NoLogin { uid })?;
            if thread.gids != [gid; 3] || self.nobody.gid == Some(gid) {
                return Err(Denied::Group {
                    pid,
                    gid,
                    is_leader,
                });
            }
            let permitted = thread.permitted;
            if permitted != 0 {
                return Err(Denied::Capabilities { pid, permitted });
            }
        }
        if !target.is_dumpable {
            return Err(Denied::NotDumpable { pid });
        }
        self.same_namespace(peer, target)?;
        yama_allows(peer, target)
    }

    /// One number space of users for all three, so that equal numbers are the same user and
    /// "root" in `/proc` is ours. Over TCP it is not known where the peer lives.
    fn same_namespace(&self, peer: &Peer, target: &Subjected) -> Result<(), Denied> {
        if self.user_namespace.is_none() {
            return Ok(());
        }
        if target.user_namespace != self.user_namespace {
            return Err(Denied::TargetNamespace { pid: target.pid });
        }
        match peer {
            Peer::Process { process, .. }
                if process.and_then(|process| process.user_namespace) != self.user_namespace =>
            {
                Err(Denied::PeerNamespace)
            }
            _ => Ok(()),
        }
    }
}

/// Yama's ptrace_scope (Documentation/admin-guide/LSM/Yama.rst), for a caller without
/// capabilities.
fn yama_allows(peer: &Peer, target: &Subjected) -> Result<(), Denied> {
    let is_ancestor = || {
        let Peer::Process {
            process: Some(process),
            ..
        } = peer
        else {
            return false;
        };
        let mut lineage = target.ancestors.iter();
        lineage.any(|above| (above.pid, above.start_time) == (process.pid, process.start_time))
            || (target.pid, target.start_time) == (process.pid, process.start_time)
    };
    match target.yama {
        0 => Ok(()),
        1 if is_ancestor() => Ok(()),
        scope => Err(Denied::Yama {
            pid: target.pid,
            scope,
        }),
    }
}

impl Nobody {
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let overflow = |map, id| {
            let id = text(id).trim().parse().unwrap_or(65534);
            (!maps_all(&text(map))).then_some(id)
        };
        Self {
            uid: overflow("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
            gid: overflow("/proc/self/gid_map", "/proc/sys/kernel/overflowgid"),
        }
    }
}

/// Whether a `uid_map` (user_namespaces(7)) has a number for every id, as that of the
/// first namespace has; a kernel without user namespaces has no such file.
fn maps_all(text: &str) -> bool {
    let lengths = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    let n_ids: u64 = lengths.filter_map(|len| len.parse::<u64>().ok()).sum();
    text.is_empty() || n_ids >= u64::from(u32::MAX)
}

fn and_group(group: Option<u32>) -> String {
    group.map_or_else(String::new, |gid| {
        format!(" and members of the group {gid}")
    })
}

fn of_any(is_leader: bool) -> &'static str {
    match is_leader {
        true => "",
        false => " in each of its threads",
    }
}

fn yama_says(scope: u8) -> &'static str {
    match scope {
        1 => "only its ancestors may trace it, over a UNIX socket",
        2 => "only root may trace",
        _ => "nobody may trace",
    }
}
