//! `list`: the processes that are held, and what became of sessions that nobody ended.
//!
//! | state | what it means |
//! |---|---|
//! | storing, dropping, held, restoring | a memcr works on it, and that is how far it is |
//! | held | (no memcr beside it) left so by `memcr checkpoint` |
//! | interrupted | its memcr died: `memcr recover` finishes the session |
//! | gone | the process has ended: `memcr recover` removes what it left |
//! | unknown, damaged | whose journal that is cannot be told; stderr says why |

use std::path::Path;

use serde_json::{Value, json};

use super::failure::Failure;
use crate::session::journal::{Entry, Record, Standing, State, StateDir};
use memcr_text::{Out, Table, harmless, units};

/// Prints every session that has a journal in `dir`.
pub(super) fn run(dir: &Path, as_json: bool, out: &mut Out) -> Result<(), Failure> {
    let entries = match StateDir::find(Some(dir))? {
        Some(dir) => dir.list()?,
        None => Vec::new(),
    };
    if as_json {
        let sessions: Vec<Value> = entries.iter().map(entry_json).collect();
        out.json(&json!({ "ok": true, "state_dir": dir.to_string_lossy(), "sessions": sessions }));
        return Ok(());
    }
    if entries.is_empty() {
        out.line(format_args!("nothing is held ({})", dir.display()));
        return Ok(());
    }
    out.line(table(&entries));
    for entry in &entries {
        if let Some(why) = trouble(entry) {
            tracing::warn!("process {}: {why}", entry.pid);
        }
    }
    Ok(())
}

/// With the group of each session, where one has any.
fn table(entries: &[Entry]) -> Table {
    let head = [
        "PID", "NAME", "STATE", "SINCE", "SAVED", "IMAGE", "PIPELINE",
    ];
    if !entries.iter().any(|entry| group(entry).is_some()) {
        let mut table = Table::new(head);
        entries.iter().for_each(|entry| table.row(row(entry)));
        return table;
    }
    let [pid, name, state, since, saved, image, pipeline] = head;
    let mut table = Table::new([pid, name, state, since, saved, image, pipeline, "GROUP"]);
    for entry in entries {
        let [pid, name, state, since, saved, image, pipeline] = row(entry);
        let group = group(entry).map_or_else(|| "-".into(), harmless);
        table.row([pid, name, state, since, saved, image, pipeline, group]);
    }
    table
}

/// `tree:PID` or `cgroup:PATH`, of which it is a member.
fn group(entry: &Entry) -> Option<&str> {
    let group = entry.record.as_ref().ok()?.group.as_ref();
    group.map(|group| group.name.as_str())
}

/// The user whose process it is, as its directory in /proc says.
pub(crate) fn uid_of(pid: i32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{pid}"))
        .ok()
        .map(|meta| meta.uid())
}

/// The word for a session; the head of the file has them all.
pub(crate) fn state(entry: &Entry) -> &'static str {
    let Ok(record) = &entry.record else {
        return "damaged";
    };
    match (&entry.standing, entry.owner) {
        (Standing::Gone, _) => "gone",
        (Standing::Unknown(_), _) => "unknown",
        (Standing::Same, Some(_)) => word(record.state),
        (Standing::Same, None) if record.parked => "held",
        (Standing::Same, None) => "interrupted",
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Storing => "storing",
        State::Dropping => "dropping",
        State::Held => "held",
        State::Restoring => "restoring",
    }
}

fn trouble(entry: &Entry) -> Option<String> {
    match (&entry.record, &entry.standing) {
        (Err(error), _) => Some(Failure::said(error)),
        (_, Standing::Unknown(why)) => Some(why.clone()),
        _ => None,
    }
}

fn row(entry: &Entry) -> [String; 7] {
    let dash = || String::from("-");
    let Ok(record) = &entry.record else {
        let mut row = [(); 7].map(|()| dash());
        row[0] = entry.pid.to_string();
        row[2] = state(entry).into();
        return row;
    };
    [
        entry.pid.to_string(),
        // A process may call itself what it likes: nothing of it is for the terminal.
        harmless(&record.name),
        state(entry).into(),
        format!("{} ago", units::age(record.age_secs())),
        units::bytes(record.saved_bytes()),
        record
            .image
            .as_ref()
            .map_or_else(dash, |image| image.locator.clone()),
        stages(record),
    ]
}

/// `compress,file`, as it would be given.
pub(crate) fn stages(record: &Record) -> String {
    let stages = &record.pipeline.stages;
    let aliases: Vec<&str> = stages.iter().map(|stage| stage.alias.as_str()).collect();
    aliases.join(",")
}

fn entry_json(entry: &Entry) -> Value {
    let record = match &entry.record {
        Ok(record) => record,
        Err(error) => {
            return json!({
                "pid": entry.pid,
                "state": state(entry),
                "error": Failure::said(error),
            });
        }
    };
    json!({
        "pid": entry.pid,
        "name": record.name,
        "state": state(entry),
        "phase": record.state,
        "parked": record.parked,
        "has_owner": entry.owner.is_some(),
        "owner": entry.owner.flatten(),
        "since": record.since,
        "age_seconds": record.age_secs(),
        "rss_before_bytes": record.rss_before_bytes,
        "rss_held_bytes": record.rss_held_bytes,
        "rss_saved_bytes": record.saved_bytes(),
        "image": record.image,
        "pipeline": stages(record),
        "group": group(entry),
        "error": trouble(entry),
    })
}
