//! Diagnostics on stderr: how much of them, and in what form. One event, one line.

use std::fmt;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use memcr_text::{diagnose, harmless};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::args::{Args, LogFormat, Verb};
use super::failure::Failure;

/// Sends diagnostics to stderr: warnings, with `-v` what is done, with `-vv` every
/// detail, with `-q` errors only. A daemon says what it does without being asked.
pub(super) fn init(args: &Args) {
    let is_daemon = matches!(args.verb, Some(Verb::Daemon)) || !args.job.listen.is_empty();
    let level = match (args.common.quiet, args.common.verbose + u8::from(is_daemon)) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        // A line that cannot be written would be told of with `eprintln!`.
        .log_internal_errors(false)
        .event_format(Line(args.common.log_format))
        .finish();
    // It fails only where one is set already, as in tests: that one does.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Says why a command, or a part of one, did not work: with `-q` too.
pub(super) fn complain(failure: &Failure, form: LogFormat) {
    match form {
        LogFormat::Text => diagnose(failure.message()),
        LogFormat::Json => {
            let mut others = Map::new();
            others.insert("exit_code".into(), failure.exit.code().into());
            others.insert("hint".into(), json!(failure.hint()));
            diagnose(object("error", &failure.causes().join(": "), others));
        }
    }
}

/// Says something that is for people, and that a script may wait for.
pub(super) fn remark(text: &str, form: LogFormat) {
    match form {
        LogFormat::Text => diagnose(text),
        LogFormat::Json => diagnose(object("info", text, Map::new())),
    }
}

fn object(level: &str, message: &str, others: Map<String, Value>) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut object = others;
    let now = now.map_or(0.0, |now| now.as_secs_f64());
    object.insert("time".into(), json!(now));
    object.insert("level".into(), json!(level));
    object.insert("message".into(), json!(message));
    Value::Object(object)
}

/// `memcr: text` as errors have it, warnings and details with their level; or an object
/// with time, level, message, and every number that belongs to the event.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        match self.0 {
            LogFormat::Text => writeln!(writer, "{}", text(event.metadata().level(), &fields)),
            LogFormat::Json => {
                let level = event.metadata().level().as_str().to_lowercase();
                let line = object(&level, &fields.message, fields.others);
                writeln!(writer, "{line}")
            }
        }
    }
}

fn text(level: &Level, fields: &Fields) -> String {
    let level = match *level {
        Level::ERROR => "error: ",
        Level::WARN => "warning: ",
        Level::INFO => "",
        Level::DEBUG | Level::TRACE => "debug: ",
    };
    // What a line has in numbers beside its words is for machines.
    format!("memcr: {level}{}", harmless(&fields.message))
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            _ => self.set(field, json!(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_its_words_are() {
        let fields = Fields {
            message: "the directory /x\nmemcr: é is held\u{1b}[2J".into(),
            ..Fields::default()
        };
        assert_eq!(
            text(&Level::WARN, &fields),
            "memcr: warning: the directory /x\\nmemcr: é is held\\u{1b}[2J"
        );
    }
}
