//! Answers of our own protocol: one JSON object in one line, of the shape that memcr
//! prints with `--json`.
//!
//! ```text
//!   {"memcr":1,"id":7,"ok":true,"exit_code":0, …what was asked for}
//!   {"memcr":1,"id":7,"ok":false,"exit_code":13,"meaning":"…",
//!    "error":{"message":"…","causes":["…"],"hint":null}}
//! ```
//!
//! `exit_code` is what memcr would end with, had it done the same from a shell. A client
//! ignores keys that it does not know: later versions of memcr add some.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::VERSION;
use crate::key::Id;
use crate::limit::MAX_ANSWER_LEN;

/// Exit code: done.
pub const EXIT_DONE: u8 = 0;
/// Exit code: an error that has no code of its own.
pub const EXIT_OTHER: u8 = 1;
/// Exit code: the request is wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: the daemon cannot be reached, refuses work for now, or is ending.
pub const EXIT_UNAVAILABLE: u8 = 15;

/// The answer to a request that was done. `fields` may be a list of pairs or a map.
pub fn done(
    id: Option<&Id>,
    fields: impl IntoIterator<Item = (impl Into<String>, Value)>,
) -> Value {
    let mut object = Map::new();
    object.insert("ok".into(), true.into());
    object.insert("exit_code".into(), EXIT_DONE.into());
    object.extend(fields.into_iter().map(|(key, value)| (key.into(), value)));
    addressed(id, Value::Object(object))
}

/// The answer to a request that was not done: the exit code and what it means, what went
/// wrong cause by cause, and what the user can do.
#[must_use]
pub fn failed(
    id: Option<&Id>,
    exit_code: u8,
    meaning: &str,
    causes: &[String],
    hint: Option<&str>,
) -> Value {
    let failure = json!({
        "ok": false,
        "exit_code": exit_code,
        "meaning": meaning,
        "error": { "message": causes.join(": "), "causes": causes, "hint": hint },
    });
    addressed(id, failure)
}

/// An answer that lacks nothing but the version and the `id`, as memcr prints it with
/// `--json`. What is no object becomes one, with the key `value`.
#[must_use]
pub fn addressed(id: Option<&Id>, answer: Value) -> Value {
    let mut object = match answer {
        Value::Object(object) => object,
        value => Map::from_iter([("value".to_owned(), value)]),
    };
    object.insert("memcr".into(), VERSION.into());
    if let Some(id) = id {
        object.insert("id".into(), json!(id));
    }
    Value::Object(object)
}

/// The line for an answer, with the `\n` at its end.
#[must_use]
pub fn to_line(answer: &Value) -> Vec<u8> {
    let mut line = answer.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// An answer as a client reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Of the request, if it had one.
    pub id: Option<Id>,
    /// Whether it was done.
    pub ok: bool,
    /// What memcr would end with.
    pub exit_code: u8,
    /// What the exit code says, if it was not done.
    pub meaning: Option<String>,
    /// Why it was not done.
    pub error: Option<Reason>,
    /// All of it.
    pub object: Map<String, Value>,
}

/// Why something was not done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Reason {
    /// All causes in one line.
    pub message: String,
    /// What failed, then cause by cause.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What the user can do about it.
    #[serde(default)]
    pub hint: Option<String>,
}

/// A line that is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// More bytes than an answer has.
    #[error("an answer has at most {MAX_ANSWER_LEN} bytes")]
    TooLong,
    /// Not a JSON object with the keys that every answer has.
    #[error("the answer is not understood")]
    Json(#[source] serde_json::Error),
    /// Another version.
    #[error("the answer is in version {0} of the protocol; version {VERSION} is spoken here")]
    Version(u64),
}

impl Answer {
    /// The answer in one line, with or without the `\n` at its end.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(line: &[u8]) -> Result<Self, AnswerError> {
        if line.len() > MAX_ANSWER_LEN {
            return Err(AnswerError::TooLong);
        }
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(AnswerError::Json)?;
        let value = Value::Object(object.clone());
        let known = Known::deserialize(value).map_err(AnswerError::Json)?;
        if known.memcr != VERSION {
            return Err(AnswerError::Version(known.memcr));
        }
        Ok(Self {
            id: known.id,
            ok: known.ok,
            exit_code: known.exit_code,
            meaning: known.meaning,
            error: known.error,
            object,
        })
    }
}

/// The keys that every answer has, or may have.
#[derive(Deserialize)]
struct Known {
    memcr: u64,
    #[serde(default)]
    id: Option<Id>,
    ok: bool,
    exit_code: u8,
    #[serde(default)]
    meaning: Option<String>,
    #[serde(default)]
    error: Option<Reason>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn there_and_back(answer: &Value) -> Answer {
        let line = to_line(answer);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        Answer::parse(&line).unwrap()
    }

    #[test]
    fn what_was_done_comes_with_its_fields() {
        let id = Id::from("a\nb");
        let answer = there_and_back(&done(Some(&id), [("pid", 7.into())]));
        assert!(answer.ok && answer.exit_code == 0 && answer.error.is_none());
        assert_eq!(answer.id, Some(id));
        assert_eq!(answer.object["pid"], 7);
        let none: [(String, Value); 0] = [];
        assert_eq!(
            done(None, none),
            json!({"memcr": 1, "ok": true, "exit_code": 0})
        );
    }

    #[test]
    fn what_was_not_done_comes_with_its_reason() {
        let causes = ["cannot".to_owned(), "disk full".to_owned()];
        let answer = there_and_back(&failed(None, 7, "undone", &causes, Some("make room")));
        assert!(!answer.ok && answer.id.is_none());
        assert_eq!(answer.exit_code, 7);
        assert_eq!(answer.meaning.as_deref(), Some("undone"));
        let want = Reason {
            message: "cannot: disk full".into(),
            causes: causes.to_vec(),
            hint: Some("make room".into()),
        };
        assert_eq!(answer.error, Some(want));
    }

    #[test]
    fn what_memcr_prints_becomes_an_answer() {
        let printed = json!({"ok": true, "exit_code": 0, "sessions": []});
        let answer = there_and_back(&addressed(Some(&7.into()), printed));
        assert_eq!(answer.id, Some(7.into()));
        assert!(answer.object["sessions"].is_array());
        assert_eq!(
            addressed(None, json!([1])),
            json!({"memcr": 1, "value": [1]})
        );
    }

    #[test]
    fn keys_of_later_versions_do_no_harm() {
        let line = br#"{"memcr":1,"ok":true,"exit_code":0,"new":{"deep":[]}}"#;
        assert!(Answer::parse(line).unwrap().ok);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for line in [
            &b""[..],
            b"\xff\xff\xff\xff",
            b"{}",
            b"[]",
            br#"{"memcr":1,"ok":true}"#,
            br#"{"memcr":1,"ok":true,"exit_code":256}"#,
            br#"{"memcr":1,"ok":1,"exit_code":0}"#,
            br#"{"memcr":1,"ok":true,"exit_code":0,"id":[]}"#,
        ] {
            let error = Answer::parse(line).unwrap_err();
            assert!(matches!(error, AnswerError::Json(_)), "{error}");
        }
        let error = Answer::parse(br#"{"memcr":2,"ok":true,"exit_code":0}"#).unwrap_err();
        assert!(matches!(error, AnswerError::Version(2)));
        let error = Answer::parse(&vec![b' '; MAX_ANSWER_LEN + 1]).unwrap_err();
        assert!(matches!(error, AnswerError::TooLong));
    }
}
