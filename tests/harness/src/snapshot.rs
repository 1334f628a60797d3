//! What must be the same before and after.

use crate::{Result, Trouble, proc};
use std::collections::BTreeMap;

/// Lines of `status` that a restore must leave as they were.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "VmLck",
    "VmPin",
    "Threads",
    "SigQ",
    "ShdPnd",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "THP_enabled",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
];
/// Lines of a thread's `status`.
const TASK_STATUS: &[&str] = &["Name", "SigPnd", "SigBlk", "Seccomp", "Cpus_allowed"];
/// Files compared as a whole.
const FILES: &[&str] = &[
    "limits",
    "personality",
    "coredump_filter",
    "oom_score_adj",
    "timers",
    "cgroup",
    "cwd",
    "exe",
];
/// Lines of each mapping's block in `smaps`. Not `Locked`: of file pages it is a share,
/// which changes with other processes; `VmLck` of `status` says how much is locked.
const SMAPS: &[&str] = &["VmFlags", "KernelPageSize", "MMUPageSize", "THPeligible"];

/// Pages that may appear or go whatever the size of the target: the few that the victim
/// itself touches between two looks, and code that runs for the first time.
const SLACK_KIB: u64 = 96;

/// The visible state of a process.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every compared fact by name.
    facts: BTreeMap<String, String>,
    rss_kib: u64,
    anon_pss_kib: u64,
    huge_kib: u64,
}

/// Differences that a test expects.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allow {
    /// Resident memory may be less than before (clean file pages were dropped, or pages
    /// that nobody has touched again).
    pub less_rss: bool,
    /// Resident memory comes and goes without memcr.
    pub any_rss: bool,
    /// Names of facts, by prefix, that may differ.
    pub facts: &'static [&'static str],
    /// Threads come and go: only the process as a whole is compared.
    pub threads: bool,
}

impl Snapshot {
    /// Looks at a process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn take(pid: u32) -> Result<Self> {
        let mut facts = BTreeMap::new();
        for (i, line) in proc::text(pid, "maps")?.lines().enumerate() {
            facts.insert(format!("maps {i:06}"), line.to_owned());
        }
        status(pid, &mut facts)?;
        files(pid, &mut facts);
        tasks(pid, &mut facts)?;
        descriptors(pid, &mut facts);
        mappings(&proc::text(pid, "smaps")?, &mut facts);
        let rollup = proc::text(pid, "smaps_rollup")?;
        Ok(Self {
            facts,
            rss_kib: proc::kib(&rollup, "Rss")?,
            anon_pss_kib: proc::kib(&rollup, "Pss_Anon")?,
            huge_kib: proc::kib(&rollup, "AnonHugePages")?,
        })
    }

    /// Resident memory, KiB.
    #[must_use]
    pub fn rss_kib(&self) -> u64 {
        self.rss_kib
    }

    /// Anonymous memory in transparent huge pages, KiB.
    #[must_use]
    pub fn huge_kib(&self) -> u64 {
        self.huge_kib
    }

    /// What differs between `self` (before) and `after`, one line each.
    #[must_use]
    pub fn differences(&self, after: &Self, allow: Allow) -> Vec<String> {
        let mut found = Vec::new();
        let names: std::collections::BTreeSet<&String> =
            self.facts.keys().chain(after.facts.keys()).collect();
        for name in names {
            let (was, is) = (self.facts.get(name), after.facts.get(name));
            let waived = allow.facts.iter().any(|prefix| name.starts_with(prefix))
                || allow.threads
                    && (name.starts_with("task ") || name.as_str() == "status Threads");
            if was != is && !waived {
                found.push(format!("{name}: was {was:?}, is {is:?}"));
            }
        }
        if allow.any_rss {
            return found;
        }
        found.extend(more("RSS", self.rss_kib, after.rss_kib));
        found.extend(more(
            "PSS of anonymous memory",
            self.anon_pss_kib,
            after.anon_pss_kib,
        ));
        if !allow.less_rss {
            found.extend(more("RSS, seen backwards,", after.rss_kib, self.rss_kib));
            found.extend(more(
                "huge pages, seen backwards,",
                after.huge_kib,
                self.huge_kib,
            ));
        }
        found
    }

    /// Fails if anything differs.
    ///
    /// # Errors
    /// The differences, the first forty of them.
    pub fn expect_same(&self, after: &Self, allow: Allow) -> Result {
        let found = self.differences(after, allow);
        if found.is_empty() {
            return Ok(());
        }
        let shown = found
            .iter()
            .take(40)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n  ");
        Err(Trouble::Failed(format!(
            "{} differences after the restore:\n  {shown}",
            found.len()
        )))
    }

    /// [`Snapshot::expect_same`] against the process as it is now.
    ///
    /// # Errors
    /// The differences, or that the process is gone.
    pub fn still(&self, pid: u32, allow: Allow) -> Result {
        self.expect_same(&Self::take(pid)?, allow)
    }
}

/// More than one percent more than before, slack aside.
fn more(what: &str, was: u64, is: u64) -> Option<String> {
    (is > was + was / 100 + SLACK_KIB).then(|| format!("{what} was {was} KiB, is {is} KiB"))
}

fn status(pid: u32, facts: &mut BTreeMap<String, String>) -> Result {
    let text = proc::text(pid, "status")?;
    for key in STATUS {
        // Not every kernel has every line.
        if let Ok(value) = proc::field(&text, key) {
            // `SigQ: used/limit`, the use is that of the whole user.
            let value = if *key == "SigQ" {
                value.split('/').next_back().unwrap_or("").to_owned()
            } else {
                value
            };
            facts.insert(format!("status {key}"), value);
        }
    }
    let stopped = matches!(proc::state(pid, pid), Some('T' | 't'));
    facts.insert("status stopped".into(), stopped.to_string());
    Ok(())
}

fn files(pid: u32, facts: &mut BTreeMap<String, String>) {
    for name in FILES {
        let link = std::fs::read_link(format!("/proc/{pid}/{name}"))
            .map(|path| path.display().to_string());
        let value = link
            .or_else(|_| proc::text(pid, name))
            .unwrap_or_else(|err| err.to_string());
        facts.insert(format!("file {name}"), value);
    }
}

fn tasks(pid: u32, facts: &mut BTreeMap<String, String>) -> Result {
    for tid in proc::threads(pid) {
        // A thread may end while we look: then it is no fact.
        let Ok(text) = proc::text(pid, &format!("task/{tid}/status")) else {
            continue;
        };
        for key in TASK_STATUS {
            facts.insert(format!("task {tid} {key}"), proc::field(&text, key)?);
        }
    }
    Ok(())
}

fn descriptors(pid: u32, facts: &mut BTreeMap<String, String>) {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    for name in entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
    {
        let name = name.to_string_lossy().into_owned();
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{name}"));
        let info = proc::text(pid, &format!("fdinfo/{name}")).unwrap_or_default();
        let flags = proc::field(&info, "flags").unwrap_or_default();
        facts.insert(format!("fd {name}"), format!("{link:?} flags {flags}"));
    }
}

/// The facts of `smaps`: per mapping, by its line in `maps`.
fn mappings(smaps: &str, facts: &mut BTreeMap<String, String>) {
    let mut current = String::new();
    for line in smaps.lines() {
        match line.split_once(':') {
            // `Key:   value`; header lines have no colon directly behind the first word.
            Some((key, value)) if !key.contains([' ', '-']) => {
                if SMAPS.contains(&key) {
                    facts.insert(format!("smaps {current} {key}"), value.trim().to_owned());
                }
            }
            _ => line
                .split(' ')
                .next()
                .unwrap_or("")
                .clone_into(&mut current),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_equals_itself() {
        let pid = std::process::id();
        let snapshot = Snapshot::take(pid).unwrap();
        assert!(snapshot.facts.len() > 50, "{:?}", snapshot.facts);
        assert!(snapshot.rss_kib() > 100);
        assert_eq!(
            snapshot.differences(&snapshot.clone(), Allow::default()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn more_and_less_memory_are_differences() {
        let before = Snapshot::take(std::process::id()).unwrap();
        let mut after = before.clone();
        after.rss_kib += before.rss_kib / 50 + SLACK_KIB;
        assert_eq!(before.differences(&after, Allow::default()).len(), 1);
        assert_eq!(after.differences(&before, Allow::default()).len(), 1);
        assert_eq!(
            after.differences(
                &before,
                Allow {
                    less_rss: true,
                    ..Allow::default()
                }
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_new_descriptor_and_a_new_mapping_are_differences() {
        let (before, mut after) = (
            Snapshot::take(std::process::id()).unwrap(),
            Snapshot::take(std::process::id()).unwrap(),
        );
        after = Snapshot {
            facts: before.facts.clone(),
            ..after
        };
        after
            .facts
            .insert("fd 77".into(), "\"/dev/null\" flags 02".into());
        after
            .facts
            .insert("maps 999999".into(), "0-1000 rw-p 00000000 00:00 0".into());
        let found = before.differences(
            &after,
            Allow {
                less_rss: true,
                ..Allow::default()
            },
        );
        assert!(found.len() >= 2, "{found:?}");
    }
}
