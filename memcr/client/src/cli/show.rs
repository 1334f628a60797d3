//! Answers as tables and sentences. What a daemon of another version leaves out is shown
//! as `-`.

use std::time::{SystemTime, UNIX_EPOCH};

use memcr_client::{Answer, Ask, Subject};
use serde_json::{Map, Value};

use memcr_text::{Out, Table, diagnose, harmless, units};

type Object = Map<String, Value>;

/// Prints the answer to `ask`.
pub(super) fn answer(ask: &Ask, subject: Option<&Subject>, answer: &Object, out: &mut Out) {
    match ask {
        Ask::Status { pid: None } => daemon(answer, out),
        Ask::Status { pid: Some(pid) } => process(*pid, answer, out),
        Ask::List => list(answer, out),
        _ => {
            let subject = subject.map(Subject::to_string);
            let subject = subject.unwrap_or_default();
            out.line(format_args!("{}: {subject}: done", ask.verb()));
        }
    }
}

/// Says of which processes of a group it was not done, and why.
pub(super) fn failed_members(answer: &Answer) {
    let members = answer.object.get("members").and_then(Value::as_array);
    for member in members.into_iter().flatten() {
        if member["ok"] == false {
            let why = text(&member["error"]["message"]);
            diagnose(format_args!("process {}: {why}", text(&member["pid"])));
        }
    }
}

fn daemon(answer: &Object, out: &mut Out) {
    let get = |key: &str| answer.get(key).unwrap_or(&Value::Null);
    let ending = if get("stopping") == true {
        ", ending"
    } else {
        ""
    };
    out.line(format_args!(
        "memcr {}, process {}, up for {}{ending}",
        text(get("version")),
        text(get("pid")),
        number(get("uptime_seconds"), units::age),
    ));
    // In the order of their lives, then what a later version adds.
    let mut sessions = Vec::new();
    let known = ["queued", "storing", "held", "restoring"];
    for state in known {
        sessions.push(format!("{} {state}", text(&get("sessions")[state])));
    }
    for (state, n) in get("sessions").as_object().into_iter().flatten() {
        if !known.contains(&state.as_str()) {
            sessions.push(format!("{} {}", text(n), harmless(state)));
        }
    }
    fact(out, "sessions", &sessions.join(", "));
    fact(out, "saved", &number(get("saved_bytes"), units::bytes));
    let limits = get("limits");
    let limits = format!(
        "{} checkpoints at once, {} sessions",
        text(&limits["checkpoints"]),
        text(&limits["sessions"])
    );
    fact(out, "limits", &limits);
    counters(get("counters"), out);
}

fn counters(counters: &Value, out: &mut Out) {
    let mut table = Table::new(["COUNTER", "VALUE"]);
    let counters = counters.as_object().into_iter().flatten();
    let n_rows = counters
        .map(|(name, n)| table.row([harmless(name), text(n)]))
        .count();
    if n_rows > 0 {
        out.line(format_args!("\n{table}"));
    }
}

fn process(pid: i32, answer: &Object, out: &mut Out) {
    let state = answer.get("state").map_or_else(|| "-".into(), text);
    let state = if state == "none" {
        "no session".into()
    } else {
        state
    };
    let ended = answer.get("ended").filter(|ended| ended.is_object());
    let Some(ended) = ended else {
        return out.line(format_args!("process {pid}: {state}"));
    };
    out.line(format_args!(
        "process {pid}: {state}; the last one ended {} ago: {}",
        number(&ended["at"], |at| units::age(since(at))),
        text(&ended["how"]),
    ));
    if let Some(message) = ended["message"].as_str() {
        fact(out, "why", &harmless(message));
    }
}

fn list(answer: &Object, out: &mut Out) {
    let sessions = answer.get("sessions").and_then(Value::as_array);
    let sessions = sessions.map_or(&[][..], Vec::as_slice);
    if sessions.is_empty() {
        return out.line("no sessions");
    }
    let mut table = Table::new([
        "PID", "NAME", "STATE", "SINCE", "SAVED", "IMAGE", "PIPELINE", "GROUP",
    ]);
    for session in sessions {
        table.row([
            text(&session["pid"]),
            text(&session["name"]),
            text(&session["state"]),
            number(&session["age_seconds"], |age| {
                format!("{} ago", units::age(age))
            }),
            number(&session["rss_saved_bytes"], units::bytes),
            text(&session["image"]),
            text(&session["pipeline"]),
            text(&session["group"]),
        ]);
    }
    out.line(table);
}

fn fact(out: &mut Out, name: &str, text: &str) {
    out.line(format_args!("  {name:8} {text}"));
}

/// A value in a cell.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => harmless(text),
        Value::Array(values) => {
            let words: Vec<String> = values.iter().map(text).collect();
            words.join(",")
        }
        // The image of a session: where it is.
        Value::Object(object) => object.get("locator").map_or_else(|| "-".into(), text),
        Value::Number(number) if number.is_f64() => {
            format!("{:.3}", number.as_f64().unwrap_or_default())
        }
        value => value.to_string(),
    }
}

fn number(value: &Value, show: impl FnOnce(u64) -> String) -> String {
    // A daemon may have seconds with a fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = value
        .as_u64()
        .or_else(|| value.as_f64().map(|number| number as u64));
    whole.map_or_else(|| "-".into(), show)
}

fn since(unix_seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs().saturating_sub(unix_seconds))
}
