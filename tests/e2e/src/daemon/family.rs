//! Many processes that belong together: a shell and what it runs, a family, a cgroup.

use memcr_client::{Ask, Choice, Subject};
use memcr_harness::daemon::children;
use memcr_harness::require::lacking;
use memcr_harness::wait::until;
use memcr_harness::{Allow, Context, Memcr, Result, Rig, Snapshot, Victim, place, proc, require};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A parent with two children that have memory of their own, and share some with it; it
/// speaks as victims do, and verifies them all.
const FAMILY: &str = r#"
import mmap, os, sys
SIZE = 1 << 20
shared = mmap.mmap(-1, SIZE)
shared[:] = bytes(range(256)) * (SIZE // 256)
def fill(n): return bytearray((n * 7 + i * 13 + (i >> 8)) % 256 for i in range(1 << 12)) * (SIZE >> 12)
kids = []
for n in (1, 2):
    down, up = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(down[1]); os.close(up[0])
        for _, w, r in kids: os.close(w); os.close(r)
        mine = fill(n)
        os.write(up[1], b'.')
        while os.read(down[0], 1):
            good = mine == fill(n) and shared[n] == n and shared[SIZE - 1] == 255
            os.write(up[1], b'.' if good else b'!')
        os._exit(0)
    os.close(down[0]); os.close(up[1])
    kids.append((n, down[1], up[0]))
    assert os.read(up[0], 1) == b'.'
own = fill(0)
print('ready', flush=True)
for line in sys.stdin:
    if line.strip() != 'verify': continue
    good = own == fill(0) and shared[:256] == bytes(range(256))
    for n, w, r in kids:
        try: os.write(w, b'?'); good = good and os.read(r, 1) == b'.'
        except BrokenPipeError: good = False
    print('ok %d bytes' % (4 * SIZE) if good else 'WRONG somewhere', flush=True)
for n, w, r in kids: os.close(w)
for _ in kids: os.wait()
"#;

pub(super) fn family() -> Result<Victim> {
    require("python3")?;
    let mut command = Command::new("python3");
    command.args(["-c", FAMILY]);
    let mut victim = Victim::talk(command, "a family")?;
    // The memory that it needs for that is there from then on.
    victim.verify()?;
    Ok(victim)
}

/// A shell, and a victim of this mode below it that speaks for it.
pub(super) fn shell(mode: &str) -> Result<Victim> {
    let mut command = Command::new("sh");
    let script = format!("\"$0\" {mode}; exit $?");
    command.args(["-c", &script]).arg(place::victim()?);
    Victim::talk(command, &format!("a shell with a victim {mode}"))
}

/// A process and its descendants, parents first.
pub(super) fn tree(root: u32) -> Vec<u32> {
    let mut pids = vec![root];
    let mut at = 0;
    while let Some(&pid) = pids.get(at) {
        let mut below = children(pid);
        below.sort_unstable();
        pids.extend(below);
        at += 1;
    }
    pids
}

/// What all of them were like.
pub(super) struct Before(pub(super) Vec<(u32, Snapshot)>);

impl Before {
    pub(super) fn of(pids: &[u32]) -> Result<Self> {
        let take = |&pid: &u32| Ok((pid, Snapshot::take(pid)?));
        pids.iter().map(take).collect::<Result<_>>().map(Self)
    }

    /// They are as they were, and nothing of ours is left.
    pub(super) fn still(&self, rig: &Rig) -> Result {
        rig.expect_clean()?;
        let allow = Allow {
            less_rss: true,
            ..Allow::default()
        };
        for (pid, before) in &self.0 {
            before
                .still(*pid, allow)
                .context(format!("process {pid}"))?;
        }
        Ok(())
    }
}

pub(super) fn checkpoint(subject: Subject) -> Ask {
    Ask::Checkpoint {
        subject,
        choice: Choice::default(),
        timeout: None,
    }
}

pub(super) fn restore(subject: Subject) -> Ask {
    Ask::Restore {
        subject,
        timeout: None,
    }
}

pub(super) fn tree_of(root: u32) -> Subject {
    Subject::Tree(root.cast_signed())
}

pub(super) fn members(answer: &Value) -> Vec<u32> {
    let members = answer["members"].as_array().into_iter().flatten();
    members
        .filter_map(|member| u32::try_from(member["pid"].as_u64()?).ok())
        .collect()
}

/// `memcr checkpoint --tree`, as a rig has it.
pub(super) fn command_line(rig: &Rig, verb: &str, which: &[&str]) -> Memcr {
    let memcr = Memcr::new()
        .arg(verb)
        .args(which)
        .state_dir(&rig.state_dir());
    match verb {
        "checkpoint" => {
            let set = format!("file.dir={}", rig.dir_text());
            memcr.args(["--pipeline", rig.pipeline(), "--set", &set])
        }
        _ => memcr,
    }
}

/// Lets go on whoever has stopped itself, until that is over.
pub(super) fn let_go_until(done: impl Fn() -> bool, sessions: impl Fn() -> Vec<u32>) -> Result {
    until("the end of it", || {
        for session in sessions() {
            if proc::state(session, session) == Some('T') {
                // It may have ended meanwhile.
                let _ = proc::send(session, Signal::CONT);
            }
        }
        done()
    })
}

/// A cgroup of our own and one below it; removed on drop.
pub(super) struct Cgroup {
    dir: PathBuf,
    pub(super) path: String,
}

impl Cgroup {
    pub(super) fn new() -> Result<Self> {
        require("root")?;
        let root = Path::new("/sys/fs/cgroup");
        let hybrid = root.join("unified");
        let root = if hybrid.is_dir() {
            hybrid
        } else {
            root.to_owned()
        };
        let path = format!("/memcr-e2e-{}", std::process::id());
        let dir = root.join(&path[1..]);
        let made = std::fs::create_dir(&dir).and_then(|()| std::fs::create_dir(dir.join("below")));
        made.map_err(|error| lacking("cgroup", &format!("{}: {error}", dir.display())))?;
        Ok(Self { dir, path })
    }

    pub(super) fn take_in(&self, below: &str, pid: u32) -> Result {
        let file = self.dir.join(below).join("cgroup.procs");
        std::fs::write(&file, pid.to_string()).context(file.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in [self.dir.join("below"), self.dir.clone()] {
            // Those that were killed take a moment to leave it.
            let _ = until("the cgroup to be empty", || {
                std::fs::remove_dir(&dir).is_ok()
            });
        }
    }
}
