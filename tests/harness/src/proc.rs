//! Reading `/proc/PID`.

use crate::{Context, Result, Trouble};
use rustix::process::{Pid, Signal};

/// The text of a file of a process.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn text(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    let bytes = std::fs::read(&path).context(&path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A field of a file with lines of the form `Key: value`.
///
/// # Errors
/// When there is none.
pub fn field(text: &str, key: &str) -> Result<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
        .ok_or_else(|| Trouble::Failed(format!("no field `{key}` in:\n{text}")))
}

/// A field that is a number of KiB.
///
/// # Errors
/// When there is none.
pub fn kib(text: &str, key: &str) -> Result<u64> {
    let value = field(text, key)?;
    value
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .context(format!("field `{key}` = `{value}`"))
}

/// Resident memory as `smaps_rollup` counts it, KiB.
///
/// # Errors
/// When the process is gone.
pub fn rss_kib(pid: u32) -> Result<u64> {
    kib(&text(pid, "smaps_rollup")?, "Rss")
}

/// The state letter of a process or thread; `None` if it is gone.
#[must_use]
pub fn state(pid: u32, tid: u32) -> Option<char> {
    let stat = text(pid, &format!("task/{tid}/stat")).ok()?;
    // The name in parentheses may contain anything, also `) R`.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The scheduling policy of a process's first thread (sched(7)): field 41 of proc_pid_stat(5).
///
/// # Errors
/// When the process is gone.
pub fn policy(pid: u32) -> Result<i32> {
    let stat = text(pid, "stat")?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let policy = fields.split_whitespace().nth(41 - 3).unwrap_or_default();
    policy.parse().context(format!("policy in {stat}"))
}

/// The threads of a process; empty if it is gone.
#[must_use]
pub fn threads(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"));
    let names = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

/// How a thread is scheduled (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Its policy, as in sched_setscheduler(2).
    pub policy: u32,
    /// Its nice value.
    pub nice: i32,
}

impl Schedule {
    /// The policy SCHED_IDLE.
    pub const IDLE: u32 = 5;

    /// Of a thread of a process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32, tid: u32) -> Result<Self> {
        let stat = text(pid, &format!("task/{tid}/stat"))?;
        // Numbers as in proc(5), where the state, behind the name, is the third.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let field = |number: usize| {
            let word = fields.split_whitespace().nth(number - 3);
            word.ok_or_else(|| Trouble::Failed(format!("no field {number} in {stat}")))
        };
        Ok(Self {
            policy: field(41)?.parse().context(&stat)?,
            nice: field(19)?.parse().context(&stat)?,
        })
    }
}

/// Whether a process exists and is not a zombie.
#[must_use]
pub fn lives(pid: u32) -> bool {
    !matches!(state(pid, pid), None | Some('Z' | 'X')) || threads(pid).len() > 1
}

/// Sends a signal.
///
/// # Errors
/// When there is no such process.
pub fn send(pid: u32, signal: Signal) -> Result {
    rustix::process::kill_process(handle(pid)?, signal).context(format!("send {signal:?} to {pid}"))
}

/// A pid in the form that system calls take.
///
/// # Errors
/// When it is no pid.
pub fn handle(pid: u32) -> Result<Pid> {
    let raw = i32::try_from(pid).context(format!("pid {pid}"))?;
    Pid::from_raw(raw).ok_or_else(|| Trouble::Failed("pid 0".into()))
}
