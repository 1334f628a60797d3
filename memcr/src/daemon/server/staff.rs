//! The children: started, told, heard, reaped.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use super::Server;
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::daemon::child::{self, Task};
use crate::daemon::desk::Key;
use crate::daemon::link::{How, Link, News, Order};
use crate::daemon::poller::Source;
use crate::sys::fork::{self, Child, Ended};

/// A child, and what connects us.
#[derive(Debug)]
struct One {
    child: Child,
    link: Link,
    /// It was asked a question, and has no work at a target.
    is_asked: bool,
    answer: Option<Value>,
}

/// Who waits to be told which stages there are. Each answer takes a child that loads them
/// all, so there is one at a time; whoever comes while it looks has the next one's answer,
/// together with all others.
#[derive(Debug, Default)]
struct Asking {
    is_under_way: bool,
    now: Vec<u64>,
    next: Vec<u64>,
}

/// How many may wait for the next one: of those who have gone, too.
const MAX_ASKING: usize = 64;

impl Asking {
    /// Somebody waits for it from now on. False: too many do.
    fn add(&mut self, waiter: u64) -> bool {
        let has_room = self.next.len() < MAX_ASKING;
        if has_room {
            self.next.push(waiter);
        }
        has_room
    }

    /// Whether a child is to be started for those who wait.
    fn begin(&mut self) -> bool {
        if self.is_under_way || self.next.is_empty() {
            return false;
        }
        self.is_under_way = true;
        self.now = std::mem::take(&mut self.next);
        true
    }

    /// The child is done: who waited for it.
    fn end(&mut self) -> Vec<u64> {
        self.is_under_way = false;
        std::mem::take(&mut self.now)
    }
}

/// All children.
#[derive(Debug, Default)]
pub(super) struct Staff {
    all: BTreeMap<Key, One>,
    asking: Asking,
}

/// What stops the work of a child, as our own death does.
pub(in crate::daemon) const STOP: Signal = Signal::TERM;

/// The key of the child that answers a question, which the desk knows nothing of.
const QUESTION: Key = 1 << 48;

impl Staff {
    pub(super) fn tell(&self, key: Key, order: &Order) {
        if let Some(one) = self.all.get(&key) {
            // One that is gone hears nothing, and its end is noticed.
            if let Err(error) = one.link.say(order) {
                tracing::debug!(key, "a session's process does not listen: {error}");
            }
        }
    }

    pub(super) fn stop(&self, key: Key) {
        if let Some(one) = self.all.get(&key) {
            one.child.signal(STOP);
        }
    }

    /// Whether a process is a child of ours.
    pub(super) fn is_ours(&self, pid: i32) -> bool {
        self.all.values().any(|one| one.child.pid == pid)
    }
}

impl Server {
    /// Starts a child for the desk.
    pub(super) fn start(&mut self, key: Key, task: &Task, now: Instant) {
        if let Err(error) = self.spawn(key, task, false) {
            let what = format!("no process could be started for the session: {error}");
            let answer = Failure::new(Exit::Internal, what).to_json();
            let how = match task {
                Task::Checkpoint(_) => How::Undone,
                _ => How::Parked,
            };
            self.desk.news(key, News::End { how, answer }, now);
            self.desk.child_gone(key, "was not started", now);
        }
    }

    /// `waiter` is told which stages there are.
    ///
    /// # Errors
    /// Too many want to know.
    pub(super) fn ask_stages(&mut self, waiter: u64, now: Instant) -> Result<(), Failure> {
        if !self.staff.asking.add(waiter) {
            let what = "too many wait for an answer to that";
            return Err(Failure::new(Exit::Unavailable, what));
        }
        self.look_for_stages(now);
        Ok(())
    }

    fn look_for_stages(&mut self, now: Instant) {
        if self.staff.asking.begin()
            && let Err(error) = self.spawn(QUESTION, &Task::Stages, true)
        {
            let what = format!("no process could be started for it: {error}");
            self.tell_stages(&Failure::new(Exit::Internal, what).to_json(), now);
        }
    }

    fn tell_stages(&mut self, answer: &Value, now: Instant) {
        for waiter in self.staff.asking.end() {
            self.answer(waiter, answer.clone(), now);
        }
    }

    fn spawn(&mut self, key: Key, task: &Task, is_asked: bool) -> io::Result<()> {
        let (ours, theirs) = Link::pair()?;
        self.poller.add(&ours, Source::Link(key))?;
        let home = &self.home;
        let child = fork::spawn(theirs.into(), STOP, |link| {
            child::run(home, task, Link::from(link))
        })?;
        let watched = self.poller.add(&child.pidfd, Source::Child(key));
        watched.inspect_err(|_| child.call_off())?;
        let one = One {
            child,
            link: ours,
            is_asked,
            answer: None,
        };
        self.staff.all.insert(key, one);
        Ok(())
    }

    /// Hears what a child has to say, one message.
    pub(super) fn hear(&mut self, key: Key, now: Instant) {
        let Some(one) = self.staff.all.get_mut(&key) else {
            return;
        };
        match one.link.hear::<News>(true) {
            Ok(Some(News::End { answer, .. })) if one.is_asked => {
                one.answer = Some(answer);
            }
            Ok(Some(news)) => self.desk.news(key, news, now),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Its end is told by its descriptor.
            Ok(None) => self.poller.remove(&one.link),
            Err(error) => {
                tracing::error!(
                    key,
                    "a session's process says what nobody understands: {error}"
                );
                self.poller.remove(&one.link);
            }
        }
    }

    /// A child has ended. What it said before is heard first.
    pub(super) fn child_ended(&mut self, key: Key, now: Instant) {
        while let Some(one) = self.staff.all.get_mut(&key) {
            match one.link.hear::<News>(true) {
                Ok(Some(News::End { answer, .. })) if one.is_asked => {
                    one.answer = Some(answer);
                }
                Ok(Some(news)) => self.desk.news(key, news, now),
                Ok(None) | Err(_) => break,
            }
        }
        let Some(one) = self.staff.all.remove(&key) else {
            return;
        };
        self.poller.remove(&one.link);
        self.poller.remove(&one.child.pidfd);
        let fate = match one.child.reap() {
            Ok(Ended::Signaled(signal)) => format!("was ended by signal {signal}"),
            Ok(Ended::Exited(code)) => format!("ended with exit code {code}"),
            Err(error) => format!("is gone ({error})"),
        };
        if !one.is_asked {
            return self.desk.child_gone(key, &fate, now);
        }
        let crashed = || {
            let what = format!("the process that was asked {fate}");
            Failure::new(Exit::Internal, what).to_json()
        };
        self.tell_stages(&one.answer.unwrap_or_else(crashed), now);
        self.look_for_stages(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_look_at_a_time_for_all_who_wait() {
        let mut asking = Asking::default();
        assert!(asking.add(1));
        assert!(asking.begin());
        for waiter in 2..=65 {
            assert!(asking.add(waiter) && !asking.begin());
        }
        assert!(!asking.add(66), "somebody hangs up and asks again");
        assert_eq!(asking.end(), [1]);
        assert!(asking.begin());
        assert_eq!(asking.end(), (2..=65).collect::<Vec<u64>>());
        assert!(!asking.begin(), "nobody wants to know");
    }
}
