//! Targets that nobody of ours is beside: that they end, that a signal would end them, that
//! somebody else finishes their sessions. And journals that others work on still.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Server, TICK};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::cli::list;
use crate::daemon::desk::{Desk, Found};
use crate::daemon::link::Facts;
use crate::daemon::peer::Peer;
use crate::daemon::poller::{Poller, Source};
use crate::freeze::doom_of_parked;
use crate::pipeline::causes;
use crate::session::journal::{Entry, Record, Standing};

/// How many parked targets are looked at in one tick.
const N_LOOKS: usize = 50;
/// How often journals are looked at that others work on.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a restore waits for somebody else to let go of its target. The sessions of a
/// daemon that has just died leave theirs in milliseconds.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// What is to be restored.
#[derive(Debug)]
pub(super) enum Wanted {
    /// A process.
    Pid(i32),
    /// What was checkpointed as one under this name.
    Group(String),
}

/// A restore of what somebody else works on.
#[derive(Debug)]
struct Later {
    /// Who asks. What is found when the others let go may not be theirs.
    peer: Peer,
    wanted: Wanted,
    waiter: u64,
    until: Instant,
}

/// What is watched.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The descriptors of parked targets.
    parked: BTreeMap<i32, OwnedFd>,
    /// The parked target that was looked at last, and when.
    last: i32,
    looked_at_parked: Option<Instant>,
    /// Journals that somebody else has locked.
    others: BTreeSet<i32>,
    looked: Option<Instant>,
    /// Restores that wait for them.
    later: Vec<Later>,
}

impl Watch {
    /// Whether there is nothing that has to be looked at.
    pub(super) fn is_quiet(&self, desk: &Desk) -> bool {
        self.others.is_empty() && self.later.is_empty() && desk.parked().next().is_none()
    }

    pub(super) fn unwatch(&mut self, poller: &Poller, pid: i32) {
        if let Some(pidfd) = self.parked.remove(&pid) {
            poller.remove(&pidfd);
        }
    }
}

impl Server {
    /// Takes over what stands in the journals.
    pub(in crate::daemon) fn adopt_all(&mut self, now: Instant) {
        let entries = match self.state_dir.list() {
            Ok(entries) => entries,
            Err(error) => {
                return tracing::error!(
                    "the sessions of a daemon before this one are not known: {}",
                    causes(&error)
                );
            }
        };
        for entry in entries {
            self.adopt(entry, now);
        }
        if let Err(error) = self.state_dir.sweep() {
            tracing::warn!("{}", causes(&error));
        }
    }

    /// Takes over what is held as one under `name`, and nothing else.
    pub(in crate::daemon) fn adopt_group(&mut self, name: &str, now: Instant) {
        for entry in self.state_dir.list().unwrap_or_default() {
            let group = entry.record.as_ref().ok().and_then(|it| it.group.as_ref());
            if group.is_some_and(|group| group.name == name) {
                self.adopt(entry, now);
            }
        }
    }

    fn adopt(&mut self, entry: Entry, now: Instant) {
        let pid = entry.pid;
        if self.desk.has(pid) {
            return;
        }
        if entry.owner.is_some() {
            // A memcr of somebody's, or a session of a daemon that has just died.
            self.watch.others.insert(pid);
            return;
        }
        self.watch.others.remove(&pid);
        let record = match &entry.record {
            Ok(record) => record,
            Err(error) => {
                return tracing::warn!(pid, "{}", causes(error));
            }
        };
        if let Standing::Unknown(why) = &entry.standing {
            return tracing::warn!(pid, "a session with process {pid} is left alone: {why}");
        }
        let found = match entry.standing {
            Standing::Same if record.parked => Found::Parked,
            Standing::Same => Found::Interrupted,
            _ => Found::Gone,
        };
        // What could not be removed is not begun with again at each request.
        if found == Found::Gone && !self.desk.may_try(pid, now) {
            return;
        }
        let facts = facts(record);
        let word = list::state(&entry);
        tracing::info!(pid, "a session with process {pid} is taken over: {word}");
        self.desk
            .adopt(pid, facts, record.group.clone(), found, now);
    }

    /// What somebody else may have begun or finished with process `pid`.
    pub(super) fn refresh(&mut self, pid: i32, now: Instant) {
        let is_parked = self.desk.is_parked(pid);
        if self.desk.has(pid) && !is_parked {
            return;
        }
        if !self.state_dir.has(pid) {
            self.watch.others.remove(&pid);
            self.desk.forget(pid);
        } else if !is_parked && let Some(entry) = self.state_dir.entry(pid) {
            self.adopt(entry, now);
        }
    }

    pub(super) fn refresh_all(&mut self, now: Instant) {
        let parked: Vec<i32> = self.desk.parked().collect();
        for pid in parked {
            self.refresh(pid, now);
        }
        for pid in self.state_dir.held_pids().unwrap_or_default() {
            self.refresh(pid, now);
        }
    }

    /// What of it is held, or about to be, and not by us.
    pub(super) fn held_by_others(&self, wanted: &Wanted) -> Vec<i32> {
        let is_wanted = |pid: i32| match wanted {
            Wanted::Pid(wanted) => pid == *wanted,
            Wanted::Group(name) => {
                let entry = self.state_dir.entry(pid);
                let record = entry.and_then(|entry| entry.record.ok());
                let group = record.and_then(|record| record.group);
                group.is_some_and(|group| group.name == *name)
            }
        };
        let others = self.watch.others.iter().copied();
        others
            .filter(|&pid| !self.desk.has(pid) && is_wanted(pid))
            .collect()
    }

    /// Restores it for `peer`; what somebody else works on, when they have let go of it.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn restore(
        &mut self,
        peer: &Peer,
        wanted: Wanted,
        waiter: u64,
        now: Instant,
    ) -> Result<(), Failure> {
        self.restore_or_wait(
            Later {
                peer: peer.clone(),
                wanted,
                waiter,
                until: now + LET_GO_WITHIN,
            },
            now,
        )
    }

    fn restore_or_wait(&mut self, later: Later, now: Instant) -> Result<(), Failure> {
        self.expect_may_restore(&later.peer, &later.wanted)?;
        if self.held_by_others(&later.wanted).is_empty() {
            match later.wanted {
                Wanted::Pid(pid) => self.desk.restore(pid, later.waiter, now),
                Wanted::Group(name) => self.desk.restore_group(&name, later.waiter, now),
            }
        } else if now < later.until {
            self.watch.later.push(later);
        } else {
            let what = match later.wanted {
                Wanted::Pid(pid) => format!("another memcr works on process {pid}"),
                Wanted::Group(name) => format!("another memcr works on {name}"),
            };
            return Err(Failure::new(Exit::Held, what));
        }
        Ok(())
    }

    fn look_at_later(&mut self, now: Instant) {
        for later in std::mem::take(&mut self.watch.later) {
            match &later.wanted {
                Wanted::Pid(pid) => self.refresh(*pid, now),
                Wanted::Group(_) => self.look_at_others(now),
            }
            let (peer, waiter) = (later.peer.clone(), later.waiter);
            if let Err(failure) = self.restore_or_wait(later, now) {
                self.refuse(&peer, waiter, &failure, now);
            }
        }
    }

    /// Looks at what tells nothing by itself. At the end only who waits for an answer matters:
    /// what would be begun is for the next daemon.
    pub(super) fn watch_sessions(&mut self, now: Instant) {
        self.look_at_later(now);
        if self.ending.has_begun() {
            return;
        }
        self.watch_parked(now);
        if is_time(&mut self.watch.looked_at_parked, TICK, now) {
            self.look_at_parked(now);
        }
        if !self.watch.others.is_empty() && is_time(&mut self.watch.looked, LOOK_AGAIN, now) {
            self.look_at_others(now);
        }
    }

    /// Has the end of every parked target told.
    fn watch_parked(&mut self, now: Instant) {
        let parked: BTreeSet<i32> = self.desk.parked().collect();
        let gone: Vec<i32> = self
            .watch
            .parked
            .keys()
            .copied()
            .filter(|pid| !parked.contains(pid))
            .collect();
        for pid in gone {
            self.watch.unwatch(&self.poller, pid);
        }
        for pid in parked {
            if self.watch.parked.contains_key(&pid) {
                continue;
            }
            match self.watch_one(pid) {
                Ok(pidfd) => {
                    self.watch.parked.insert(pid, pidfd);
                }
                Err(Errno::SRCH) => self.desk.has_ended(pid, now),
                // No descriptors are left: the next tick tries again.
                Err(error) => tracing::debug!(pid, "cannot watch process {pid}: {error}"),
            }
        }
    }

    fn watch_one(&self, pid: i32) -> rustix::io::Result<OwnedFd> {
        let raw = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        self.poller.add(&pidfd, Source::Target(pid))?;
        Ok(pidfd)
    }

    /// A few at a time: each look reads a file for each thread.
    fn look_at_parked(&mut self, now: Instant) {
        let after = self.watch.last;
        let parked: Vec<i32> = self.desk.parked().collect();
        let next = parked.iter().filter(|pid| **pid > after);
        let first = parked.iter().filter(|pid| **pid <= after);
        let looks: Vec<i32> = next.chain(first).copied().take(N_LOOKS).collect();
        for pid in looks {
            self.watch.last = pid;
            // Somebody else may have finished its session.
            if !self.state_dir.has(pid) {
                self.desk.forget(pid);
            } else if doom_of_parked(pid).is_some() {
                self.desk.is_doomed(pid, now);
            }
        }
    }

    fn look_at_others(&mut self, now: Instant) {
        for pid in self.watch.others.clone() {
            match self.state_dir.entry(pid) {
                None => {
                    self.watch.others.remove(&pid);
                }
                Some(entry) => self.adopt(entry, now),
            }
        }
    }
}

/// Whether `pause` has passed since the `last` time, which then is `now`.
fn is_time(last: &mut Option<Instant>, pause: Duration, now: Instant) -> bool {
    let is_time = last.is_none_or(|last| now.duration_since(last) >= pause);
    if is_time {
        *last = Some(now);
    }
    is_time
}

fn facts(record: &Record) -> Facts {
    let image = record.image.as_ref();
    Facts {
        name: record.name.clone(),
        since: record.since,
        rss_before_bytes: record.rss_before_bytes,
        rss_held_bytes: record.rss_held_bytes,
        image: image.map_or_else(String::new, |image| image.locator.clone()),
        pipeline: list::stages(record),
        raw_bytes: 0,
        image_bytes: image.map_or(0, |image| image.len_bytes),
    }
}
