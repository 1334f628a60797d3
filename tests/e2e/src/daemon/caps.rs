//! A daemon that is not root, but has of root's capabilities what it needs.
//!
//! | capability     | for                                                              |
//! |----------------|------------------------------------------------------------------|
//! | `sys_ptrace`   | tracing processes of others, userfaultfd(2)                      |
//! | `dac_override` | `/proc/PID/mem` of others, `/dev/userfaultfd` where it is root's |
//! | `kill`         | stopping targets that are parked                                 |
//! | `sys_admin`    | targets with a seccomp filter, and nothing else                  |

use super::{As, Public, expect_traced, runs};
use crate::common::PublicCopy;
use crate::table;
use libtest_mimic::Trial;
use memcr_harness::daemon::checkpoint_of;
use memcr_harness::{Daemon, Result, Rig, Setup, Snapshot, Victim, ensure, proc, require};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) fn tests() -> Vec<Trial> {
    table(
        "daemon",
        &[
            ("capabilities_that_are_enough", || enough(NEEDED, "memory")),
            ("capabilities_for_a_filter", || {
                enough(FOR_FILTERS, "filter")
            }),
            ("no_capabilities", || too_few("")),
            ("capabilities_without_dac_override", || {
                too_few("+sys_ptrace,+kill")
            }),
            ("capabilities_without_kill", || {
                too_few("+sys_ptrace,+dac_override")
            }),
        ],
    )
}

const NEEDED: &str = "+sys_ptrace,+dac_override,+kill";
const FOR_FILTERS: &str = "+sys_ptrace,+dac_override,+kill,+sys_admin";
/// The user that is the daemon, and the one whose processes are held.
const DAEMON: As = As::user(3);
const OWNER: As = As::user(1);

/// A place of the daemon's user, and memcr where it can be executed.
struct Place {
    rig: Rig,
    copy: PublicCopy,
    public: Public,
}

impl Place {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let own = |path: &std::path::Path| chown(path, Some(DAEMON.uid), Some(DAEMON.gid));
        own(rig.dir())?;
        own(&rig.state_dir())?;
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(rig.state_dir(), mode)?;
        let public = Public::new()?;
        own(public.dir())?;
        Ok(Self {
            rig,
            copy: PublicCopy::make()?,
            public,
        })
    }

    fn setup(&self, capabilities: &str) -> Setup {
        let (uid, gid) = (DAEMON.uid.to_string(), DAEMON.gid.to_string());
        let mut words = vec![
            "setpriv",
            "--reuid",
            &uid,
            "--regid",
            &gid,
            "--clear-groups",
        ];
        if !capabilities.is_empty() {
            words.extend(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
        }
        let dir = self.copy.dir();
        let setup = Setup::new(&self.rig).socket(&self.public.socket());
        setup.memcr(|memcr| {
            let memcr = memcr.via(&words).program(&dir.join("memcr"));
            memcr.env("MEMCR_STAGE_PATH", dir.join("stages"))
        })
    }

    fn victim(&self, mode: &str) -> Result<Victim> {
        let mut command = Command::new(self.copy.dir().join("victim"));
        command.arg(mode).uid(OWNER.uid).gid(OWNER.gid);
        if mode == "memory" {
            command.args(["size=4M", "threads=2"]);
        }
        Victim::talk(command, "a victim of another user")
    }
}

fn expect_not_root(daemon: &Daemon) -> Result {
    let uid = proc::field(&proc::text(daemon.pid(), "status")?, "Uid")?;
    ensure(uid.split_whitespace().all(|uid| uid == "3"), || {
        format!("the daemon has the uids {uid}")
    })
}

/// Held and restored, attended and parked.
fn enough(capabilities: &str, mode: &str) -> Result {
    require("root")?;
    let place = Place::new()?;
    let mut victim = place.victim(mode)?;
    let (pid, before) = (victim.pid(), Snapshot::take(victim.pid())?);
    let setup = place.setup(capabilities);
    let daemon = setup.clone().start()?;
    expect_not_root(&daemon)?;
    daemon.checkpoint(pid)?;
    daemon.restore(pid)?;
    runs(&place.rig, &mut victim, &before, &[])?;
    daemon.checkpoint(pid)?;
    daemon.stop()?;
    expect_traced(pid, false)?;
    let daemon = setup.start()?;
    daemon.await_state(pid, "held")?;
    daemon.restore(pid)?;
    runs(&place.rig, &mut victim, &before, &[])?;
    daemon.stop()?;
    victim.quit()
}

/// It says that it may not, and touches nothing.
fn too_few(capabilities: &str) -> Result {
    require("root")?;
    let place = Place::new()?;
    let mut victim = place.victim("memory")?;
    let before = Snapshot::take(victim.pid())?;
    let daemon = place.setup(capabilities).start()?;
    expect_not_root(&daemon)?;
    daemon.refused(checkpoint_of(victim.pid()), 6)?;
    ensure(daemon.list()?.is_empty(), || "it is listed".into())?;
    runs(&place.rig, &mut victim, &before, &[])?;
    daemon.stop()?;
    victim.quit()
}
