//! A command line that is wrong, and how it wants to be told so.

use std::ffi::OsString;

use super::args::LogFormat;
use super::exit::Exit;
use super::failure::Failure;
use super::log;
use memcr_text::Out;

/// What the words say of the form of answers. clap is of no help: it has stopped at the
/// first mistake, which may stand before them.
pub(super) struct Manner {
    /// One object on stdout.
    as_json: bool,
    /// Of the lines on stderr.
    pub(super) form: LogFormat,
}

impl Manner {
    pub(super) fn of(words: &[OsString]) -> Self {
        let words: Vec<_> = words.iter().take_while(|word| *word != "--").collect();
        let is_json = words.iter().any(|word| *word == "--log-format=json")
            || words
                .windows(2)
                .any(|two| two[0] == "--log-format" && two[1] == "json");
        let form = match is_json {
            true => LogFormat::Json,
            false => LogFormat::Text,
        };
        let as_json = words.iter().any(|word| *word == "--json");
        Self { as_json, form }
    }

    /// Says what is wrong with the command line.
    pub(super) fn complain(&self, error: &clap::Error) -> Exit {
        let text = error.to_string();
        let failure = failure(&text);
        if self.as_json {
            let mut out = Out::default();
            out.json(&failure.to_json());
            // The code tells of the command line, as it does without --json.
            let _ = out.finish();
        }
        match self.form {
            LogFormat::Text => log::line(in_our_name(&text)),
            LogFormat::Json => log::complain(&failure, self.form),
        }
        failure.exit
    }
}

/// How clap begins a usage error, but not the help that it gives instead of one.
const CLAPS_PREFIX: &str = "error: ";

/// As all our other lines begin.
fn in_our_name(text: &str) -> String {
    let text = text.trim_end();
    match text.strip_prefix(CLAPS_PREFIX) {
        Some(what) => format!("memcr: {what}"),
        None => text.to_owned(),
    }
}

/// What clap has put into paragraphs for people.
fn failure(text: &str) -> Failure {
    let text = text.strip_prefix(CLAPS_PREFIX).unwrap_or(text);
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = text.split("\n\n").map(one_line);
    let what = paragraphs.next().unwrap_or_default();
    let tip = paragraphs.find_map(|text| text.strip_prefix("tip: ").map(str::to_owned));
    Failure::new(Exit::Usage, what).with_hint(tip.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_tell_the_form() {
        for (line, want) in [
            ("memcr --bogus --log-format json", LogFormat::Json),
            ("memcr --log-format=json -p", LogFormat::Json),
            ("memcr -- --log-format=json", LogFormat::Text),
            ("memcr --log-format text", LogFormat::Text),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(Manner::of(&words).form, want, "{line}");
            assert!(!Manner::of(&words).as_json, "{line}");
        }
        assert!(Manner::of(&["memcr".into(), "--json".into()]).as_json);
    }

    #[test]
    fn paragraphs_become_a_line_and_a_hint() {
        let failure = failure(
            "error: invalid value 'std' for '-z'\n  [possible values: lz4, zstd]\n\n  \
             tip: a similar value exists: 'zstd'\n\nFor more information, try '--help'.\n",
        );
        assert_eq!(
            failure.message(),
            "memcr: invalid value 'std' for '-z' [possible values: lz4, zstd]\n\
             hint: a similar value exists: 'zstd'"
        );
    }
}
