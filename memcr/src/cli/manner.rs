//! A command line that is wrong, and how it wants to be told so.

use std::ffi::OsString;

use super::args::LogFormat;
use super::exit::Exit;
use super::failure::Failure;
use super::log;
use memcr_text::usage::{Misuse, in_name_of};
use memcr_text::{Out, diagnose};

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
        let Misuse { what, tip } = Misuse::of(&text);
        let failure = Failure::new(Exit::Usage, what).with_hint(tip.as_deref());
        if self.as_json {
            let mut out = Out::default();
            out.json(&failure.to_json());
            // The code tells of the command line, as it does without --json.
            let _ = out.finish();
        }
        match self.form {
            LogFormat::Text => diagnose(in_name_of("memcr", &text)),
            LogFormat::Json => log::complain(&failure, self.form),
        }
        failure.exit
    }
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
}
