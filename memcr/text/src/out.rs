//! stdout, for results; stderr is for diagnostics and belongs to `log`.
//!
//! A reader that has gone away (`memcr check | head -1`) must neither break a restore
//! nor make noise: output then goes nowhere, quietly. Any other failure (a full disk
//! behind `> report.json`) is kept and told at the end, when the target is safe.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Number, Value};

/// stdout, line by line, also into a pipe.
#[derive(Debug, Default)]
pub struct Out {
    failed: Option<io::Error>,
}

impl Out {
    /// Writes one line and flushes it: who waits for "press enter" waits for the line.
    pub fn line(&mut self, line: impl fmt::Display) {
        if self.failed.is_none() {
            let mut stdout = io::stdout().lock();
            self.failed = writeln!(stdout, "{line}")
                .and_then(|()| stdout.flush())
                .err();
        }
    }

    /// Writes `value` as one JSON object, indented: people read these too, and so numbers
    /// have as many digits as they are good for.
    pub fn json(&mut self, value: &impl serde::Serialize) {
        let text = serde_json::to_value(value).and_then(|mut value| {
            round(&mut value, "");
            serde_json::to_string_pretty(&value)
        });
        match text {
            Ok(text) => self.line(text),
            Err(error) => self.failed = Some(error.into()),
        }
    }

    /// Whether everything arrived, as far as anybody wanted it.
    ///
    /// # Errors
    /// The first failure to write, unless the reader had gone away.
    pub fn finish(self) -> io::Result<()> {
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

/// Milliseconds to the microsecond, ratios to four digits. `key` is that of `value`.
fn round(value: &mut Value, key: &str) {
    match value {
        Value::Object(object) => object.iter_mut().for_each(|(key, value)| round(value, key)),
        Value::Array(list) => list.iter_mut().for_each(|value| round(value, key)),
        Value::Number(number) if number.is_f64() => {
            let digits = match key {
                "ratio" => 1e4,
                key if key.ends_with("millis") => 1e3,
                _ => return,
            };
            let rounded = number
                .as_f64()
                .map(|number| (number * digits).round() / digits);
            if let Some(rounded) = rounded.and_then(Number::from_f64) {
                *number = rounded;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::round;
    use serde_json::json;

    #[test]
    fn numbers_have_the_digits_that_they_are_good_for() {
        let mut value = json!({
            "ratio": 2.345_678_9,
            "frozen_millis": 0.000_070_000_000_000_000_01,
            "phases": [{ "name": "drop", "millis": 12.345_678 }],
            "pid": 4711,
            "since": 1.234_567_8,
        });
        round(&mut value, "");
        assert_eq!(
            value.to_string(),
            r#"{"frozen_millis":0.0,"phases":[{"millis":12.346,"name":"drop"}],"pid":4711,"ratio":2.3457,"since":1.2345678}"#
        );
    }
}
