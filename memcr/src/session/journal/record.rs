//! What a journal says of a session.

use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::pipeline::{DEFAULT_STALL_LIMIT, PipelineSpec, StageSpec};
use crate::sink::Mark;
use crate::sys::procfs::{self, Stat, Status};

/// The version that is written. It grows when a record means something else than
/// before; a reader passes over fields that it does not know, and refuses a newer version.
pub const VERSION: u32 = 1;

/// A session as its journal has it. Addresses are those of the target, lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Always [`VERSION`]; a newer one is not read.
    pub version: u32,
    /// The target.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The boot it runs in (random(4)).
    pub boot_id: String,
    /// The namespaces in which the two numbers above mean this process.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Its name (`comm`), bytes that are not UTF-8 replaced.
    pub name: String,
    /// How far the session is.
    pub state: State,
    /// When it came to be held, seconds since 1970; before that, when it began.
    pub since: u64,
    /// Held on purpose with no memcr beside it (`memcr checkpoint`). An orphan that is
    /// not parked was left by a memcr that died.
    #[serde(default)]
    pub parked: bool,
    /// The target was stopped (SIGSTOP) before, and is to be so after.
    pub was_stopped: bool,
    /// Where its memory is; `None`: not committed yet.
    pub image: Option<ImageRecord>,
    /// What reads the image.
    pub pipeline: PipelineRecord,
    /// What stands over its missing memory; `None`: none was made yet.
    pub guard: Option<GuardRecord>,
    /// The mapping of ours in the target; `None`: none.
    pub parasite: Option<ParasiteRecord>,
    /// Signals to the process that ours have taken away, to be sent again.
    #[serde(default)]
    pub owed: Vec<i32>,
    /// The group that it is a member of; `None`: it was checkpointed alone.
    #[serde(default)]
    pub group: Option<GroupRecord>,
    /// Resident memory before the freeze.
    pub rss_before_bytes: u64,
    /// Resident memory while held.
    pub rss_held_bytes: u64,
    /// Start and length of what is to be backed by huge pages again.
    #[serde(default)]
    pub huge: Vec<(u64, u64)>,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All memory is in place; the image is being written.
    Storing,
    /// Memory is being dropped: all of it is in the image, which is committed, or as far as it
    /// is written.
    Dropping,
    /// The memory is in the image.
    Held,
    /// Memory is being put back.
    Restoring,
}

/// The numbers of the namespaces (namespaces(7)) of the memcr that wrote the record.
/// In others its pid and start time may belong to another process. 0: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Of pids.
    pub pid: u64,
    /// Of clocks: it shifts start times.
    pub time: u64,
}

/// A member of a group of processes that were checkpointed as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// What was asked for: `tree:PID` or `cgroup:PATH`.
    pub name: String,
    /// Its place in the order in which they were frozen, from 0; they wake in reverse.
    pub index: u32,
}

/// A committed image, or what is written of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What its sink finds it by.
    pub locator: String,
    /// Its id, hexadecimal: an image in its place with another one is not it.
    pub id: String,
    /// Its length.
    pub len_bytes: u64,
    /// It was not finished yet, and memory was given back while it was stored: what is missing
    /// is in the chunks below this index, and they are within that length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_chunks: Option<u64>,
}

impl ImageRecord {
    /// Up to where it is written, unless it is complete.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.n_chunks.map(|n_chunks| Mark {
            n_chunks,
            len_bytes: self.len_bytes,
        })
    }
}

/// How much further the image is written that memory is given back for, before it is
/// finished: a line behind the record, so that thousands of ranges are not written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// As [`ImageRecord::len_bytes`] and [`ImageRecord::n_chunks`].
    len_bytes: u64,
    n_chunks: u64,
    /// What is to be backed by huge pages again, beside what was told before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    huge: Vec<(u64, u64)>,
}

impl Reached {
    pub(super) fn new(mark: Mark, huge: &[(u64, u64)]) -> Self {
        Self {
            len_bytes: mark.len_bytes,
            n_chunks: mark.n_chunks,
            huge: huge.to_vec(),
        }
    }

    /// The line.
    pub(super) fn line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, self)?;
        Ok(line)
    }
}

/// A pipeline as the user asked for it; see [`PipelineSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineRecord {
    /// In encode order; the last one is the sink.
    pub stages: Vec<StageRecord>,
    /// Number of workers; `None`: chosen by the machine.
    pub workers: Option<NonZeroUsize>,
    /// Longest chunk.
    pub chunk_len_bytes: u64,
    /// Seconds without an answer after which a stage is given up; 0: never.
    #[serde(default = "default_stall_limit")]
    pub stall_limit_secs: u64,
}

/// A stage as the user asked for it; see [`StageSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The word that the user wrote.
    pub alias: String,
    /// Plugin name, or a path with a `/`.
    pub plugin: String,
    /// Parameters.
    #[serde(default)]
    pub params: Vec<(String, String)>,
}

/// A userfaultfd whose descriptor is open in the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRecord {
    /// Its number there.
    pub fd: i32,
    /// Start and length of what is registered with it.
    pub ranges: Vec<(u64, u64)>,
}

/// The mapping of ours in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParasiteRecord {
    /// Its first byte.
    pub address: u64,
}

/// Why a record is not read.
pub(super) enum Unread {
    /// Its version is this one.
    Newer(u32),
    /// What is wrong with it, as a predicate.
    Damaged(String),
}

/// Whether there still is the process that a record is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is.
    Same,
    /// It has ended, or the machine has been started anew since.
    Gone,
    /// We cannot see from here, and why.
    Unknown(String),
}

impl Record {
    /// The record of a session with process `pid` that begins now.
    ///
    /// # Errors
    /// ENOENT or ESRCH: there is no such process.
    pub fn begin(pid: i32, pipeline: &PipelineSpec) -> io::Result<Self> {
        let name = std::fs::read(format!("/proc/{pid}/comm"))?;
        Ok(Self {
            version: VERSION,
            pid,
            start_time: Stat::read(pid)?.start_time,
            boot_id: procfs::boot_id()?,
            namespaces: Namespaces::ours(),
            name: String::from_utf8_lossy(name.trim_ascii_end()).into_owned(),
            state: State::Storing,
            since: now(),
            parked: false,
            was_stopped: false,
            image: None,
            pipeline: pipeline.into(),
            guard: None,
            parasite: None,
            owed: Vec::new(),
            group: None,
            rss_before_bytes: procfs::rss_bytes(pid),
            rss_held_bytes: 0,
            huge: Vec::new(),
        })
    }

    /// The target is held from now on, with this much of it resident.
    pub fn hold(&mut self, rss_held_bytes: u64) {
        self.state = State::Held;
        self.since = now();
        self.rss_held_bytes = rss_held_bytes;
    }

    /// How much less of it is resident while held; 0: not known yet.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        match self.state {
            State::Storing => 0,
            State::Dropping if self.rss_held_bytes == 0 => 0,
            _ => self.rss_before_bytes.saturating_sub(self.rss_held_bytes),
        }
    }

    /// Seconds since [`Record::since`]; 0 if the clock was set back.
    #[must_use]
    pub fn age_secs(&self) -> u64 {
        now().saturating_sub(self.since)
    }

    /// What somebody at the terminal has to know should memcr crash now.
    pub(super) fn last_words(&self) -> String {
        let pid = self.pid;
        let fate = match (self.state, &self.guard) {
            (State::Storing, _) => format!("process {pid} runs on, nothing of it was taken"),
            (_, Some(_)) => {
                format!("process {pid} is held: `memcr recover {pid}` gives it its memory back")
            }
            (_, None) => format!("`memcr recover {pid}` ends the session with process {pid}"),
        };
        format!("memcr: crashed, most likely in a stage plugin; {fate}\n")
    }

    /// Whether there still is the process that this is about.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let boot_id = match procfs::boot_id() {
            Ok(boot_id) => boot_id,
            Err(error) => return Standing::Unknown(format!("the boot id is not known: {error}")),
        };
        if boot_id != self.boot_id {
            return Standing::Gone;
        }
        if !self.namespaces.may_be(Namespaces::ours()) {
            let why = "the journal was written in another pid or time namespace";
            return Standing::Unknown(why.into());
        }
        self.standing_now()
    }

    /// In this boot, and with numbers that mean here what they meant there.
    fn standing_now(&self) -> Standing {
        match Stat::read(self.pid) {
            Ok(stat) if stat.start_time != self.start_time || has_ended(self.pid) => Standing::Gone,
            Ok(_) => Standing::Same,
            Err(_) if !exists(self.pid) => Standing::Gone,
            // A /proc may hide the processes of others (hidepid).
            Err(error) => Standing::Unknown(format!("its /proc is not readable: {error}")),
        }
    }

    /// Reads the record in `bytes`, which must be of process `pid`.
    pub(super) fn parse(bytes: &[u8], pid: i32) -> Result<Self, Unread> {
        // First, since of a newer version nothing else need be understood.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let no_journal =
            |error: serde_json::Error| Unread::Damaged(format!("is no journal: {error}"));
        let mut head = serde_json::Deserializer::from_slice(bytes);
        let head = Head::deserialize(&mut head).map_err(no_journal)?;
        if head.version > VERSION {
            return Err(Unread::Newer(head.version));
        }
        let mut values = serde_json::Deserializer::from_slice(bytes);
        let mut record = Self::deserialize(&mut values).map_err(no_journal)?;
        while values.end().is_err() {
            match Reached::deserialize(&mut values) {
                Ok(reached) => record.reach(reached),
                // Cut short: its writer has gone no further.
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(no_journal(error)),
            }
        }
        record.check(pid).map_err(Unread::Damaged)?;
        Ok(record)
    }

    /// The image is written further.
    pub(super) fn reach(&mut self, reached: Reached) {
        if let Some(image) = &mut self.image {
            (image.len_bytes, image.n_chunks) = (reached.len_bytes, Some(reached.n_chunks));
        }
        self.huge.extend(reached.huge);
    }

    /// What types do not say.
    fn check(&self, pid: i32) -> Result<(), String> {
        if self.pid != pid {
            return Err(format!("is of process {}, not {pid}", self.pid));
        }
        if let Some(guard) = &self.guard {
            if guard.fd < 0 {
                return Err(format!("says that the guard has descriptor {}", guard.fd));
            }
            check_ranges(&guard.ranges)?;
        }
        check_ranges(&self.huge)
    }
}

fn check_ranges(ranges: &[(u64, u64)]) -> Result<(), String> {
    let bad = |&&(start, len): &&(u64, u64)| len == 0 || start.checked_add(len).is_none();
    match ranges.iter().find(bad) {
        None => Ok(()),
        Some((start, len)) => Err(format!("has the range {start:#x}+{len:#x}, which is none")),
    }
}

impl Namespaces {
    /// Those of this process.
    #[must_use]
    pub fn ours() -> Self {
        let number = |path| std::fs::metadata(path).map_or(0, |ns| ns.ino());
        Self {
            pid: number("/proc/self/ns/pid"),
            time: number("/proc/self/ns/time"),
        }
    }

    /// Nothing speaks against their being the same.
    fn may_be(self, other: Self) -> bool {
        let same = |a: u64, b: u64| a == b || a == 0 || b == 0;
        same(self.pid, other.pid) && same(self.time, other.time)
    }
}

impl From<&PipelineSpec> for PipelineRecord {
    fn from(spec: &PipelineSpec) -> Self {
        let stage = |stage: &StageSpec| StageRecord {
            alias: stage.alias.clone(),
            plugin: stage.plugin.clone(),
            params: stage.params.clone(),
        };
        Self {
            stages: spec.stages.iter().map(stage).collect(),
            workers: spec.workers,
            chunk_len_bytes: spec.chunk_len_bytes,
            stall_limit_secs: spec.stall_limit.map_or(0, |limit| limit.as_secs().max(1)),
        }
    }
}

impl From<&PipelineRecord> for PipelineSpec {
    fn from(record: &PipelineRecord) -> Self {
        let stage = |stage: &StageRecord| StageSpec {
            alias: stage.alias.clone(),
            plugin: stage.plugin.clone(),
            params: stage.params.clone(),
        };
        Self {
            stages: record.stages.iter().map(stage).collect(),
            workers: record.workers,
            chunk_len_bytes: record.chunk_len_bytes,
            stall_limit: (record.stall_limit_secs > 0)
                .then(|| Duration::from_secs(record.stall_limit_secs)),
        }
    }
}

fn default_stall_limit() -> u64 {
    DEFAULT_STALL_LIMIT.as_secs()
}

/// Seconds since 1970.
fn now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock before 1970 knows nothing.
    since_epoch.map_or(0, |time| time.as_secs())
}

/// Every thread is dead; the parent has not noticed yet. Of the first thread alone that
/// would not be the end.
fn has_ended(pid: i32) -> bool {
    let is_dead = |tid: i32| {
        let status = Status::of_thread(pid, tid);
        status.map_or(true, |status| matches!(status.state(), 'Z' | 'X'))
    };
    procfs::tids(pid).map_or(true, |tids| tids.into_iter().all(is_dead))
}

/// There is some process with this pid.
pub(super) fn exists(pid: i32) -> bool {
    let gone = rustix::io::Errno::SRCH;
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(gone))
}
