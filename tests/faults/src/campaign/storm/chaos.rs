//! Kills and restarts, at any moment.

use super::World;
use super::daemon::{Daemon, ended_well, parent_of};
use crate::random::Random;
use memcr_harness::daemon::children;
use memcr_harness::{Result, ensure, proc};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest time between two strokes.
const PAUSE_MILLIS: u64 = 600;

/// Strikes until the storm is over.
///
/// # Errors
/// When the daemon does not end, or does not come back.
pub(super) fn run(
    world: &World,
    mut random: Random,
    daemon: &mut Daemon,
    restarts: bool,
) -> Result {
    while !world.is_over() {
        // Not synchronisation: any moment will do.
        std::thread::sleep(Duration::from_millis(random.below(PAUSE_MILLIS)));
        match random.below(16) {
            0 | 1 if restarts => kill_daemon(world, daemon)?,
            2 if restarts => kill_everybody(world, daemon)?,
            3 | 4 if restarts => restart(world, daemon)?,
            _ => kill_session(world, &mut random, daemon),
        }
    }
    Ok(())
}

/// SIGKILL of the daemon, and a new one.
///
/// # Errors
/// When that one does not come.
pub(super) fn kill_daemon(world: &World, daemon: &mut Daemon) -> Result {
    let begin = Instant::now();
    world.life.fetch_add(1, Ordering::AcqRel);
    daemon.end(Signal::KILL)?;
    daemon.again()?;
    world.life.fetch_add(1, Ordering::AcqRel);
    world.tally.struck("SIGKILL of the daemon", begin.elapsed());
    Ok(())
}

/// SIGKILL of the daemon and of its sessions' processes, as the kernel does when a cgroup
/// is ended.
fn kill_everybody(world: &World, daemon: &mut Daemon) -> Result {
    let begin = Instant::now();
    world.life.fetch_add(1, Ordering::AcqRel);
    // Stopped, so that it replaces none of them meanwhile.
    proc::send(daemon.pid(), Signal::STOP)?;
    for pid in children(daemon.pid()) {
        kill_child(world, daemon.pid(), pid);
    }
    daemon.end(Signal::KILL)?;
    daemon.again()?;
    world.life.fetch_add(1, Ordering::AcqRel);
    world.tally.struck("SIGKILL of all of it", begin.elapsed());
    Ok(())
}

/// SIGTERM, which leaves what is held held, and a new daemon.
fn restart(world: &World, daemon: &mut Daemon) -> Result {
    let begin = Instant::now();
    world.life.fetch_add(1, Ordering::AcqRel);
    let status = daemon.end(Signal::TERM)?;
    ensure(ended_well(status), || {
        format!("told to end, the daemon ended with {status}")
    })?;
    daemon.again()?;
    world.life.fetch_add(1, Ordering::AcqRel);
    world.tally.struck("SIGTERM of the daemon", begin.elapsed());
    Ok(())
}

fn kill_session(world: &World, random: &mut Random, daemon: &Daemon) {
    let sessions = children(daemon.pid());
    if sessions.is_empty() {
        return;
    }
    let pid = sessions[random.below(sessions.len() as u64) as usize];
    kill_child(world, daemon.pid(), pid);
}

/// SIGKILL of a process if it is still that child.
fn kill_child(world: &World, parent: u32, pid: u32) {
    let raw = proc::handle(pid).ok();
    let pidfd = raw.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(pidfd) = pidfd else { return };
    // Whoever has that pid now, the descriptor is of one that was our child after it was
    // opened.
    if parent_of(pid) != Some(parent) {
        return;
    }
    // Before: whoever finds a target killed must find this too.
    for mark in &world.marks {
        if tracer_of(mark.pid()) == Some(pid) {
            mark.n_struck.fetch_add(1, Ordering::AcqRel);
        }
    }
    if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
        world.tally.session_killed();
    }
}

fn tracer_of(pid: i32) -> Option<u32> {
    let status = proc::text(pid.cast_unsigned(), "status").ok()?;
    proc::field(&status, "TracerPid").ok()?.parse().ok()
}
