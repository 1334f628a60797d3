//! Targets that cannot be checkpointed: a clear message, a code of its own, no harm.
//!
//! The messages are pinned: they are what people search for.

use crate::common::{PublicCopy, Rig, on_older_kernel};
use crate::{table, test};
use libtest_mimic::Trial;
use memcr_harness::wait::{until, until_some};
use memcr_harness::{
    Allow, Context, Finished, Memcr, Result, Snapshot, Victim, ensure, place, proc, require,
};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) fn tests() -> Vec<Trial> {
    let mut trials = table(
        "refusals",
        &[
            ("no_such_process", no_such_process),
            ("kernel_thread", kernel_thread),
            ("zombie", zombie),
            ("itself_or_an_ancestor", itself_or_an_ancestor),
            ("first_of_a_namespace", first_of_a_namespace),
            ("a_thread", a_thread),
            ("traced", traced),
            ("another_user", another_user),
            ("shared_memory", shared_memory),
            ("vfork_parent", vfork_parent),
            ("leader_exited", leader_exited),
            ("io_uring_in_flight", || {
                io_under_way("uring", "inflight=1", "")
            }),
            ("io_uring_multishot", || {
                io_under_way("uring", "multishot=1", "requests wait")
            }),
            ("io_uring_polled", || {
                // By its thread or by its ring, whichever is seen first.
                io_under_way("uring", "kind=polled", "the kernel")
            }),
            ("io_uring_own_memory", || {
                io_under_way("uring", "kind=own", "not mapped by the kernel")
            }),
            ("io_uring_buffers", || {
                let why = "the provided buffers of group 7 are listed in the process's own memory";
                io_under_way("uring", "buffers=own", why)
            }),
            ("io_uring_of_one_thread", || {
                io_under_way(
                    "uring",
                    "kind=single",
                    "cannot be asked for its provided buffers",
                )
            }),
            ("io_uring_hidden", || {
                io_under_way("uring", "hidden=1", "on no descriptor")
            }),
            ("aio_in_flight", || io_under_way("aio", "inflight=1", "")),
            ("af_xdp", af_xdp),
            ("dispatch_before_linux_6_4", dispatch_before_linux_6_4),
            ("filter_comes_meanwhile", filter_comes_meanwhile),
            ("thirty_two_bits", thirty_two_bits),
            ("cgroup_freezer", cgroup_freezer),
        ],
    );
    // Seccomp and dispatch: works, since the filter is suspended; or is refused.
    for mode in ["filter", "strict", "dispatch"] {
        trials.push(test(format!("refusals::or_works_{mode}"), move || {
            works_or_is_refused(mode)
        }));
    }
    trials.push(test("refusals::or_works_idle_uring", || {
        works_or_is_refused("uring")
    }));
    trials.push(test("refusals::none_for_buffers_of_the_kernel", || {
        crate::common::round_trip("uring", &["buffers=mapped"], Allow::default())
    }));
    trials.push(test("refusals::or_works_idle_aio", || {
        works_or_is_refused("aio")
    }));
    trials
}

/// memcr on `pid` is refused with 4 and says `message`.
fn refused(pid: u32, message: &str) -> Result<Finished> {
    let rig = Rig::new()?;
    let finished = rig.memcr(pid).arg("-n").run()?;
    finished.expect(4)?;
    finished.says(&format!(
        "memcr: cannot checkpoint process {pid}: {message}"
    ))?;
    rig.expect_clean()?;
    Ok(finished)
}

fn no_such_process() -> Result {
    // Above any pid_max.
    let finished = Memcr::on(0x7fff_fff0).arg("-n").run()?;
    finished.expect(5)?;
    finished.says("memcr: cannot checkpoint process 2147483632: no process 2147483632")
}

fn kernel_thread() -> Result {
    require("root")?;
    refused(2, "process 2 is a thread of the kernel").map(drop)
}

fn zombie() -> Result {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    until("the zombie", || proc::state(pid, pid) == Some('Z'))?;
    let outcome = refused(pid, &format!("process {pid} is a zombie"));
    child.wait()?;
    outcome.map(drop)
}

/// The parent of memcr is this very program.
fn itself_or_an_ancestor() -> Result {
    let pid = std::process::id();
    refused(
        pid,
        &format!("process {pid} is memcr itself or one of its ancestors"),
    )
    .map(drop)
}

/// From within its namespace it could be neither stopped nor ended; from outside it is as any other.
fn first_of_a_namespace() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(place::victim()?)
        .args(["memory", "size=4M"]);
    let mut victim = Victim::talk(command, "a victim that is the first of its namespace")?;
    let pid = until_some("the child of unshare", || {
        let children = proc::text(victim.pid(), &format!("task/{}/children", victim.pid())).ok()?;
        children.split_whitespace().next()?.parse::<u32>().ok()
    })?;
    let target = pid.to_string();
    let within = rig.memcr(1).via(&["nsenter", "-t", &target, "-p", "-m"]);
    let finished = within.arg("-n").run()?;
    finished.expect(4)?;
    finished.says("process 1 is the first one of this pid namespace")?;
    let held = rig.memcr(pid).hold()?;
    // Nobody has a handler for it, and the first process of a namespace does not die of it.
    proc::send(pid, Signal::TERM)?;
    held.release()?;
    victim.verify()?;
    rig.expect_clean()
}

fn a_thread() -> Result {
    let mut victim = Victim::start("memory", &["size=1M", "threads=1"])?;
    let pid = victim.pid();
    let tid = proc::threads(pid)
        .into_iter()
        .find(|&tid| tid != pid)
        .ok_or("no second thread")?;
    refused(
        tid,
        &format!("{tid} is a thread of process {pid}; name the process"),
    )?;
    victim.verify()?;
    victim.quit()
}

/// A target that one memcr holds is traced by it: another one names it.
fn traced() -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start("memory", &["size=4M"])?;
    let before = Snapshot::take(victim.pid())?;
    let held = rig.memcr(victim.pid()).hold()?;
    let (pid, tracer) = (victim.pid(), held.pid());
    let other = Rig::new()?;
    let finished = other.memcr(pid).arg("-n").run()?;
    finished.expect(4)?;
    finished.says(&format!(
        "memcr: cannot checkpoint process {pid}: process {pid} is traced by process {tracer} (memcr) already"
    ))?;
    held.release()?;
    before.still(pid, Allow::default())?;
    victim.verify()?;
    victim.quit()
}

/// An ordinary user on a process of root's.
fn another_user() -> Result {
    require("root")?;
    let public = PublicCopy::make()?;
    let mut victim = Victim::start("memory", &["size=1M"])?;
    let before = Snapshot::take(victim.pid())?;
    let finished = public.memcr(victim.pid(), "file").arg("-n").run()?;
    finished.expect(6)?;
    finished.says(&format!(
        "process {} may not be traced or stopped by us",
        victim.pid()
    ))?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    victim.quit()
}

fn shared_memory() -> Result {
    let mut victim = Victim::start("sharedvm", &[])?;
    let pid = victim.pid();
    refused(
        pid,
        &format!("process {pid} shares its memory with process "),
    )?;
    victim.verify()?;
    victim.ask("release")?;
    victim.quit()
}

/// The parent of a vfork child waits uninterruptibly, and shares its memory.
fn vfork_parent() -> Result {
    let mut victim = Victim::start("vfork", &[])?;
    let pid = victim.pid();
    until("a thread in vfork", || {
        proc::threads(pid)
            .iter()
            .any(|&tid| proc::state(pid, tid) == Some('D'))
    })?;
    refused(
        pid,
        &format!("process {pid} shares its memory with process "),
    )?;
    victim.verify()?;
    victim.ask("release")?;
    victim.quit()
}

fn leader_exited() -> Result {
    let mut victim = Victim::start("leader", &[])?;
    let pid = victim.pid();
    refused(pid, &format!("the first thread of process {pid} has ended"))?;
    victim.verify()?;
    victim.quit()
}

/// The kernel may write to memory at any moment.
fn io_under_way(mode: &str, arg: &str, why: &str) -> Result {
    let mut victim = Victim::start(mode, &[arg])?;
    let before = Snapshot::take(victim.pid())?;
    let pid = victim.pid();
    refused(
        pid,
        &format!("process {pid} has input or output under way that does not stop with it"),
    )?
    .says(why)?;
    before.still(pid, Allow::default())?;
    // Completes the operation and looks at what came of it.
    victim.verify()?;
    victim.quit()
}

/// Its pages are pinned, of which `VmPin` says nothing.
fn af_xdp() -> Result {
    require("af_xdp")?;
    io_under_way("xsk", "size=1M", "AF_XDP")
}

/// Dispatch cannot be switched off, so our calls raise SIGSYS: nothing comes of it, and the
/// target keeps its handler.
fn dispatch_before_linux_6_4() -> Result {
    require("root")?;
    let rig = Rig::new()?;
    let mut victim = Victim::start("dispatch", &["handled=1"])?;
    let before = Snapshot::take(victim.pid())?;
    let memcr = rig.memcr(victim.pid()).arg("-n");
    let finished = on_older_kernel(memcr, "4210,4211")?.run()?;
    finished.expect(7)?;
    finished.says("raised signal 31 during a remote call")?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    let calls = victim.ask("calls")?;
    ensure(calls == "0", || {
        format!("it was told of {calls} calls of ours")
    })?;
    rig.expect_clean()?;
    victim.quit()
}

/// A filter that would kill the target for what we do in it, and that was not there when
/// memcr looked at it first.
fn filter_comes_meanwhile() -> Result {
    require("root")?;
    for i in 0..60 {
        let rig = Rig::new()?;
        let mut victim = Victim::start("filter", &["late=1", "size=1M"])?;
        let memcr = rig.memcr(victim.pid()).arg("-n").start()?;
        std::thread::sleep(std::time::Duration::from_micros(i * 200));
        let installed = victim.ask("install")?;
        let finished = memcr.finish()?;
        ensure(installed == "installed" && finished.code == Some(0), || {
            format!("round {i}: {installed}: {finished}")
        })?;
        victim.verify()?;
        rig.expect_clean()?;
        victim.quit()?;
    }
    Ok(())
}

/// A program of 32 bits by hand: an ELF file whose code is `int 0x80` with pause.
fn thirty_two_bits() -> Result {
    let dir = tempfile::tempdir_in("/tmp")?;
    let path = dir.path().join("thirty-two");
    std::fs::write(&path, elf32())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    let mut child = match Command::new(&path).stdin(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(err) => {
            return Err(memcr_harness::require::lacking(
                "ia32",
                &format!("cannot run 32-bit programs: {err}"),
            ));
        }
    };
    let pid = child.id();
    until("the program to pause", || {
        proc::state(pid, pid) == Some('S')
    })?;
    let outcome = refused(pid, "thread ")
        .and_then(|finished| finished.says("runs code of another ABI than memcr (32-bit)"));
    let state = proc::state(pid, pid);
    child.kill()?;
    child.wait()?;
    outcome?;
    ensure(state == Some('S'), || {
        format!("the target is in state {state:?}")
    })
}

/// ELF header, one program header, and `1: mov eax, 29 (pause); int 0x80; jmp 1b`.
fn elf32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let (header_len, program_len) = (52u32, 32u32);
    let len = header_len + program_len + CODE.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, n: u16| file.extend(n.to_le_bytes());
    let word = |file: &mut Vec<u8>, n: u32| file.extend(n.to_le_bytes());
    half(&mut file, 2); // ET_EXEC
    half(&mut file, 3); // EM_386
    for n in [1, BASE + header_len + program_len, header_len, 0, 0] {
        word(&mut file, n); // version, entry, program headers, section headers, flags
    }
    for n in [header_len as u16, program_len as u16, 1, 40, 0, 0] {
        half(&mut file, n);
    }
    for n in [1, 0, BASE, BASE, len, len, 5, 0x1000] {
        word(&mut file, n); // PT_LOAD, offset, addresses, lengths, R+X, alignment
    }
    file.extend(CODE);
    file
}

/// A cgroup that can be frozen: its directory, the file, and what means frozen and thawed there.
type Freezer = (PathBuf, &'static str, &'static str, &'static str);

/// Two of every hierarchy that has a freezer: a cgroup may have any name.
fn freezers() -> Vec<Freezer> {
    let root = Path::new("/sys/fs/cgroup");
    let v1 = root.join("freezer");
    let mut all = Vec::new();
    if v1.join("tasks").exists() {
        all.push((v1, "freezer.state", "FROZEN", "THAWED"));
    }
    for v2 in [root.to_owned(), root.join("unified")] {
        if v2.join("cgroup.controllers").exists() {
            all.push((v2, "cgroup.freeze", "1", "0"));
        }
    }
    let named = |name: &[u8]| {
        let below = |(top, file, frozen, thaw): &Freezer| {
            (top.join(OsStr::from_bytes(name)), *file, *frozen, *thaw)
        };
        all.iter().map(below).collect::<Vec<_>>()
    };
    [named(b"memcr-e2e"), named(b"memcr-e2e-\xff")].concat()
}

/// Code of ours would never run in it: neither on the way out nor on the way back.
fn cgroup_freezer() -> Result {
    require("root")?;
    let freezers = freezers();
    if freezers.is_empty() {
        return Err(memcr_harness::require::lacking(
            "cgroup_freezer",
            "no cgroup freezer is mounted",
        ));
    }
    for freezer in &freezers {
        let (dir, file, _, thaw) = freezer;
        let mut victim = Victim::start("memory", &["size=1M"])?;
        std::fs::create_dir_all(dir).context(dir.display())?;
        std::fs::write(dir.join("cgroup.procs"), victim.pid().to_string())
            .context("move the victim")?;
        let outcome = frozen_outcome(&mut victim, freezer);
        std::fs::write(dir.join(file), thaw).context("thaw")?;
        let verified = victim.verify();
        victim.quit()?;
        // Empty only when the victim is gone.
        until("the cgroup to be empty", || {
            std::fs::remove_dir(dir).is_ok()
        })?;
        outcome?;
        verified?;
    }
    Ok(())
}

fn frozen_outcome(victim: &mut Victim, (dir, file, frozen, thaw): &Freezer) -> Result {
    let (pid, state) = (victim.pid(), dir.join(file));
    let freeze = || -> Result {
        std::fs::write(&state, frozen).context("freeze")?;
        until("the freezer", || {
            std::fs::read_to_string(&state).is_ok_and(|text| text.trim() == *frozen)
        })
    };
    let thaw = || std::fs::write(&state, thaw).context("thaw");
    freeze()?;
    let what = format!("process {pid} is frozen by the cgroup ");
    refused(pid, &what)?.says("memcr-e2e")?;
    thaw()?;
    let rig = Rig::new()?;
    rig.checkpoint(pid).run()?.expect(0)?;
    freeze()?;
    let finished = rig.restore(pid).run()?;
    finished.expect(12)?;
    finished.says(&what)?;
    thaw()?;
    rig.restore(pid).run()?.expect(0)?;
    victim.verify()?;
    // One that holds it tries again until it thaws.
    let mut held = rig.memcr(pid).hold()?;
    freeze()?;
    held.enter_and_await("it is frozen by the cgroup ")?;
    thaw()?;
    held.finish()?.expect(0)?;
    rig.expect_clean()
}

/// The kernel lets us (and then everything must hold), or memcr says no.
fn works_or_is_refused(mode: &str) -> Result {
    let rig = Rig::new()?;
    let mut victim = Victim::start(mode, &[])?;
    let before = Snapshot::take(victim.pid())?;
    let finished = rig.memcr(victim.pid()).arg("-n").run()?;
    if finished.code != Some(0) {
        finished.expect(4)?;
    }
    rig.expect_clean()?;
    before.still(victim.pid(), Allow::default())?;
    victim.verify()?;
    if mode == "strict" {
        // It ends by `exit` when its input does; nothing else is allowed to it.
        return victim.quit();
    }
    victim.signal(Signal::CONT)?;
    victim.quit()
}
