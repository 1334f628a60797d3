//! Which processes are one: a process and its descendants, or those of a cgroup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memcr_wire::Subject;

use crate::sys::procfs::{self, Stat, Status};

/// Longest chain of parents that is followed: more than processes can have in turn would be
/// a circle, as /proc shows one while pids are used again.
const MAX_DEPTH: usize = 4096;

/// What [`Subject::group`] has named so.
pub(super) fn subject_of(name: &str) -> Option<Subject> {
    match name.split_once(':')? {
        ("tree", pid) => pid.parse().ok().map(Subject::Tree),
        ("cgroup", path) => Some(Subject::Cgroup(path.to_owned())),
        _ => None,
    }
}

/// The processes that are `subject` now, parents before their children.
///
/// # Errors
/// There is no such cgroup, or /proc is not readable.
pub(super) fn of(subject: &Subject) -> io::Result<Vec<i32>> {
    match subject {
        Subject::Pid(pid) => Ok(vec![*pid]),
        Subject::Tree(root) => Ok(in_order(tree(*root, &parents()?))),
        Subject::Cgroup(path) => Ok(in_order(cgroup(path)?)),
    }
}

/// Each process with its parent.
fn parents() -> io::Result<BTreeMap<i32, i32>> {
    let pids = procfs::pids()?;
    let parent = |pid: i32| Some((pid, Stat::read(pid).ok()?.parent));
    Ok(pids.into_iter().filter_map(parent).collect())
}

/// `root` and its descendants.
fn tree(root: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut members = BTreeSet::from([root]);
    // Children may have lower pids than their parents, once these were used up.
    loop {
        let before = members.len();
        let born = parents
            .iter()
            .filter(|(_, parent)| members.contains(parent));
        let born: Vec<i32> = born.map(|(&pid, _)| pid).collect();
        members.extend(born);
        if members.len() == before {
            break;
        }
    }
    members
        .into_iter()
        .filter(|pid| parents.contains_key(pid))
        .collect()
}

/// The processes of a cgroup and of those below it (Documentation/admin-guide/cgroup-v2.rst).
fn cgroup(path: &str) -> io::Result<Vec<i32>> {
    let dir = cgroup_dir(path).ok_or_else(|| {
        let what = format!("there is no cgroup {path} below /sys/fs/cgroup");
        io::Error::new(io::ErrorKind::NotFound, what)
    })?;
    let mut members = Vec::new();
    collect(&dir, &mut members)?;
    Ok(members)
}

fn collect(dir: &Path, members: &mut Vec<i32>) -> io::Result<()> {
    let procs = fs::read_to_string(dir.join("cgroup.procs"))?;
    members.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match collect(&entry.path(), members) {
                // Removed meanwhile: then nobody is in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// The directory of a cgroup in the unified hierarchy, else in the first one of version 1
/// that has it.
fn cgroup_dir(path: &str) -> Option<PathBuf> {
    const HIERARCHIES: [&str; 6] = ["", "unified", "memory", "pids", "freezer", "systemd"];
    let relative = path.trim_start_matches('/');
    let is_plain = |part: &str| part != ".." && part != ".";
    if relative.is_empty() || !relative.split('/').all(is_plain) {
        return None;
    }
    let root = Path::new("/sys/fs/cgroup");
    let dirs = HIERARCHIES.iter().map(|it| root.join(it).join(relative));
    dirs.into_iter()
        .find(|dir| dir.join("cgroup.procs").is_file())
}

/// Parents first, and without those that have ended and wait for their parent only.
fn in_order(mut members: Vec<i32>) -> Vec<i32> {
    members.retain(|&pid| {
        let status = Status::of_process(pid);
        status.is_ok_and(|status| !matches!(status.state(), 'Z' | 'X'))
    });
    let parents = parents().unwrap_or_default();
    let mut keyed: Vec<(usize, i32)> = members
        .into_iter()
        .map(|pid| (depth(pid, &parents), pid))
        .collect();
    keyed.sort_unstable();
    keyed.dedup();
    keyed.into_iter().map(|(_, pid)| pid).collect()
}

fn depth(pid: i32, parents: &BTreeMap<i32, i32>) -> usize {
    let chain = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
    chain.take(MAX_DEPTH).count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn descendants_are_found_whatever_their_pids() {
        let parents = BTreeMap::from([(1, 0), (50, 1), (20, 50), (10, 20), (60, 1), (7, 60)]);
        assert_eq!(tree(50, &parents), [10, 20, 50]);
        assert_eq!(tree(99, &parents), [0; 0]);
        assert!(depth(10, &parents) > depth(20, &parents));
    }

    #[test]
    fn a_circle_of_parents_ends() {
        assert_eq!(depth(1, &BTreeMap::from([(1, 2), (2, 1)])), MAX_DEPTH);
    }

    #[test]
    fn names_go_both_ways() {
        for subject in [Subject::Tree(4711), Subject::Cgroup("/a:b/c".into())] {
            assert_eq!(subject_of(&subject.group().unwrap()), Some(subject));
        }
        assert_eq!(subject_of("tree:x"), None);
    }

    #[test]
    fn no_path_leads_out_of_the_cgroups() {
        for path in ["", "/", "/..", "/a/../../../etc", "/./a"] {
            assert_eq!(cgroup_dir(path), None, "{path}");
        }
    }
}
