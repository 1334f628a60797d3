//! What the daemon remembers: counters since it started, and how the last sessions ended.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Desk, Session, Stage};
use crate::daemon::link::{Facts, How};

/// How many ended sessions are remembered.
const N_RECENT: usize = 256;

/// Numbers since the start of the daemon. They only grow.
#[derive(Debug, Clone, Default, Serialize)]
pub(in crate::daemon) struct Counters {
    pub(in crate::daemon) connections: u64,
    pub(in crate::daemon) connections_refused: u64,
    pub(in crate::daemon) requests: u64,
    pub(in crate::daemon) requests_malformed: u64,
    pub(in crate::daemon) requests_denied: u64,
    pub(super) checkpoints: u64,
    pub(super) checkpoints_failed: u64,
    pub(super) restores: u64,
    pub(super) restores_failed: u64,
    /// Targets that ended, or were ended, while they were worked on or held.
    pub(super) targets_ended: u64,
    pub(super) targets_killed: u64,
    pub(super) crashes: u64,
    /// Pages that were stored, and the images that they became.
    pub(super) stored_bytes: u64,
    pub(super) image_bytes: u64,
    pub(super) restored_bytes: u64,
    /// How long targets stood still until they were held, and until they ran again.
    pub(super) checkpoint_seconds: f64,
    pub(super) restore_seconds: f64,
}

impl Counters {
    pub(super) fn checkpointed(&mut self, facts: &Facts, answer: &Value) {
        self.checkpoints += 1;
        self.stored_bytes += facts.raw_bytes;
        self.image_bytes += facts.image_bytes;
        let millis = answer["checkpoint"]["frozen_millis"].as_f64();
        self.checkpoint_seconds += millis.unwrap_or(0.0) / 1e3;
    }

    pub(super) fn ended(&mut self, how: How, session: &Session, answer: &Value) {
        match how {
            How::Restored => {
                self.restores += 1;
                self.restored_bytes += answer["restore"]["raw_bytes"].as_u64().unwrap_or(0);
                self.restore_seconds += millis_of(&answer["restore"]) / 1e3;
            }
            How::Undone => self.checkpoints_failed += 1,
            How::Exited => self.targets_ended += 1,
            How::Killed => self.targets_killed += 1,
            How::Parked | How::Unheld | How::Answered => {}
        }
        let is_restoring = matches!(session.stage, Stage::Restoring);
        if is_restoring && matches!(how, How::Exited | How::Killed) {
            self.restores_failed += 1;
        }
    }

    /// Name and number of each.
    pub(in crate::daemon) fn to_map(&self) -> Map<String, Value> {
        match json!(self) {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// How long a restore took, from its report, milliseconds.
pub(super) fn millis_of(report: &Value) -> f64 {
    let phases = report["phases"].as_array().into_iter().flatten();
    phases.filter_map(|phase| phase["millis"].as_f64()).sum()
}

/// How a session ended.
#[derive(Debug, Clone, Serialize)]
struct Ended {
    #[serde(skip)]
    pid: i32,
    #[serde(skip)]
    uid: Option<u32>,
    how: How,
    /// Seconds since 1970.
    at: u64,
    exit_code: u64,
    message: Option<String>,
}

/// How the last sessions ended.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<Ended>);

impl Recent {
    pub(super) fn note(&mut self, pid: i32, uid: Option<u32>, how: How, answer: &Value) {
        if self.0.len() == N_RECENT {
            self.0.pop_front();
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        self.0.push_back(Ended {
            pid,
            uid,
            how,
            at: at.map_or(0, |at| at.as_secs()),
            exit_code: answer["exit_code"].as_u64().unwrap_or(0),
            message: answer["error"]["message"].as_str().map(str::to_owned),
        });
    }

    fn of(&self, pid: i32) -> Option<&Ended> {
        self.0.iter().rev().find(|ended| ended.pid == pid)
    }
}

impl Desk {
    /// The sessions that `is_shown` allows to be seen.
    pub(in crate::daemon) fn list(&self, is_shown: impl Fn(i32) -> bool) -> Value {
        let shown = self.sessions.iter().filter(|(pid, _)| is_shown(**pid));
        let sessions: Vec<Value> = shown.map(|(&pid, session)| row(pid, session)).collect();
        json!({ "sessions": sessions })
    }

    /// Whose process it was whose session has ended; `None`: none is remembered.
    pub(in crate::daemon) fn owner_of_ended(&self, pid: i32) -> Option<u32> {
        self.recent.of(pid)?.uid
    }

    /// One process, or how its last session ended.
    pub(in crate::daemon) fn status_of(&self, pid: i32) -> Value {
        let Some(session) = self.sessions.get(&pid) else {
            return json!({ "pid": pid, "state": "none", "ended": self.recent.of(pid) });
        };
        row(pid, session)
    }

    /// Sessions by state, and what they save.
    pub(in crate::daemon) fn status(&self) -> Value {
        let count = |word: &str| {
            let sessions = self.sessions.values();
            sessions.filter(|it| it.stage.word() == word).count()
        };
        let saved: u64 = self
            .sessions
            .values()
            .map(|it| it.facts.saved_bytes())
            .sum();
        json!({
            "sessions": {
                "queued": count("queued"),
                "storing": count("storing"),
                "held": count("held"),
                "restoring": count("restoring"),
            },
            "saved_bytes": saved,
            "counters": self.counters.to_map(),
            "stopping": self.is_stopping,
        })
    }
}

fn row(pid: i32, session: &Session) -> Value {
    let facts = &session.facts;
    let age = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = age.map_or(0, |now| now.as_secs().saturating_sub(facts.since));
    json!({
        "pid": pid,
        "name": facts.name,
        "state": session.stage.word(),
        "attended": session.key.is_some(),
        "since": facts.since,
        "age_seconds": if facts.since == 0 { 0 } else { age },
        "rss_before_bytes": facts.rss_before_bytes,
        "rss_held_bytes": facts.rss_held_bytes,
        "rss_saved_bytes": facts.saved_bytes(),
        "image": facts.image,
        "pipeline": facts.pipeline,
        "group": session.group.as_ref().map(|group| &group.name),
        "uid": session.uid,
    })
}
