//! The children: started, told, heard, reaped.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use rustix::process::Signal;

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
    /// A question was asked, not work at a target: who waits for the answer.
    asked_by: Option<u64>,
    answer: Option<serde_json::Value>,
}

/// All children.
#[derive(Debug, Default)]
pub(super) struct Staff {
    all: BTreeMap<Key, One>,
    /// Of children that the desk knows nothing of, from the other end of the numbers.
    last_question: Key,
}

/// What stops the work of a child, as our own death does.
pub(in crate::daemon) const STOP: Signal = Signal::TERM;

/// Keys of children that answer questions.
const QUESTIONS: Key = 1 << 48;

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
        if let Err(error) = self.spawn(key, task, None) {
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

    /// Starts a child that answers a question.
    pub(super) fn ask(&mut self, task: &Task, waiter: u64, now: Instant) {
        self.staff.last_question += 1;
        let key = QUESTIONS + self.staff.last_question;
        if let Err(error) = self.spawn(key, task, Some(waiter)) {
            let what = format!("no process could be started for it: {error}");
            let failure = Failure::new(Exit::Internal, what);
            self.answer(waiter, failure.to_json(), now);
        }
    }

    fn spawn(&mut self, key: Key, task: &Task, asked_by: Option<u64>) -> io::Result<()> {
        let (ours, theirs) = Link::pair()?;
        let home = &self.home;
        let child = fork::spawn(theirs.into(), STOP, |link| {
            child::run(home, task, Link::from(link))
        })?;
        self.poller.add(&ours, Source::Link(key))?;
        self.poller.add(&child.pidfd, Source::Child(key))?;
        let one = One {
            child,
            link: ours,
            asked_by,
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
            Ok(Some(News::End { answer, .. })) if one.asked_by.is_some() => {
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
                Ok(Some(News::End { answer, .. })) if one.asked_by.is_some() => {
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
        match one.asked_by {
            None => self.desk.child_gone(key, &fate, now),
            Some(waiter) => {
                let crashed = || {
                    let what = format!("the process that was asked {fate}");
                    Failure::new(Exit::Internal, what).to_json()
                };
                self.answer(waiter, one.answer.unwrap_or_else(crashed), now);
            }
        }
    }
}
