//! The daemon: what it answers, to whom, what it does to targets, and what happens when
//! anybody in the play ends.
//!
//! | module    | what                                                               |
//! |-----------|--------------------------------------------------------------------|
//! | `wire`    | the protocol of the C memcr, byte by byte                          |
//! | `own`     | our own protocol                                                   |
//! | `hostile` | clients that are slow, rude or gone                                |
//! | `abort`   | checkpoints that are stopped, and the queue                        |
//! | `death`   | targets that end while they are held                               |
//! | `crash`   | the process of a session ends                                      |
//! | `who`     | who may do what                                                    |
//! | `caps`    | a daemon that is not root                                          |
//! | `tree`    | many processes as one                                              |
//! | `clients` | memcr-client, the C library, and the command line beside a daemon  |
//! | `stop`    | the daemon ends, is killed, is replaced                            |
//! | `tells`   | the service manager, the log, counters                             |

mod abort;
mod caps;
mod clients;
mod crash;
mod death;
mod family;
mod hostile;
mod own;
mod stop;
mod tells;
mod tree;
mod who;
mod wire;

use libtest_mimic::Trial;
use memcr_harness::{Allow, Context, Daemon, Result, Rig, Snapshot, Victim, ensure, proc};

use crate::common::{expect_freed, expect_private};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::Value;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) fn tests() -> Vec<Trial> {
    let all = [
        wire::tests(),
        own::tests(),
        hostile::tests(),
        abort::tests(),
        death::tests(),
        crash::tests(),
        stop::tests(),
        tells::tests(),
        who::tests(),
        clients::tests(),
        caps::tests(),
        tree::tests(),
    ];
    all.into_iter().flatten().collect()
}

/// A daemon and a target, as most tests want them.
struct Scene {
    // In the order in which they go: the daemon restores what the victim needs to end.
    daemon: Daemon,
    victim: Victim,
    before: Snapshot,
    rig: Rig,
}

/// A small target that does nothing by itself.
fn small() -> Result<Victim> {
    Victim::start("memory", &["size=4M"])
}

impl Scene {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let daemon = Daemon::start(&rig)?;
        Self::with(rig, daemon)
    }

    fn with(rig: Rig, daemon: Daemon) -> Result<Self> {
        let victim = small()?;
        let before = Snapshot::take(victim.pid())?;
        Ok(Self {
            daemon,
            victim,
            before,
            rig,
        })
    }

    fn pid(&self) -> u32 {
        self.victim.pid()
    }

    /// Its memory is away, its image is there and private.
    fn expect_held(&self) -> Result {
        let state = &self.daemon.status_of(self.pid())?["state"];
        ensure(state == "held", || {
            format!("held, but its state is {state}")
        })?;
        expect_freed(&self.before, self.pid(), 4 << 10)?;
        expect_private(&self.rig.image(self.pid()))
    }

    /// It runs with all its memory, and nothing is left of us.
    fn expect_free(&mut self) -> Result {
        runs(&self.rig, &mut self.victim, &self.before, &[])
    }

    /// Ends it all in good order.
    fn quit(self) -> Result {
        self.daemon.stop()?;
        self.rig.expect_clean()?;
        self.victim.quit()
    }
}

/// A target runs with all its memory, and nothing is left of us but these facts.
fn runs(
    rig: &Rig,
    victim: &mut Victim,
    before: &Snapshot,
    facts: &'static [&'static str],
) -> Result {
    rig.expect_clean()?;
    // What was read of files and never needed again may be gone.
    let allow = Allow {
        less_rss: true,
        facts,
        ..Allow::default()
    };
    before.still(victim.pid(), allow)?;
    victim.verify().map(drop)
}

/// Somebody traces it, or nobody does.
fn expect_traced(pid: u32, wanted: bool) -> Result {
    let tracer = proc::field(&proc::text(pid, "status")?, "TracerPid")?;
    ensure((tracer != "0") == wanted, || {
        format!("process {pid} is traced by {tracer}")
    })
}

/// An answer has this exit code.
fn expect_code(answer: &Value, code: u8) -> Result {
    ensure(answer["exit_code"] == code, || {
        format!("want exit code {code}: {answer}")
    })
}

/// A directory that everybody can reach, for sockets.
struct Public(TempDir);

impl Public {
    fn new() -> Result<Self> {
        let builder = tempfile::Builder::new()
            .prefix("memcr-e2e-")
            .tempdir_in("/tmp")?;
        std::fs::set_permissions(builder.path(), Permissions::from_mode(0o755))?;
        Ok(Self(builder))
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("socket")
    }
}

/// A user, as which something is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct As {
    uid: u32,
    gid: u32,
    /// A group beside its own.
    group: Option<u32>,
}

impl As {
    /// One whose group has the same number.
    const fn user(uid: u32) -> Self {
        Self {
            uid,
            gid: uid,
            group: None,
        }
    }

    /// Does it on a thread that is this user: the kernel tells others so of whatever it
    /// connects.
    fn run<T: Send>(self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let become_user = move || {
            let groups: Vec<Gid> = self.group.into_iter().map(Gid::from_raw).collect();
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_user().context(format!("become {self:?}"))?;
                what()
            });
            thread.join().map_err(|_| "a thread panicked")?
        })
    }
}
