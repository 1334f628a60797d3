//! What clap says of a command line that is wrong, without its paragraphs.

/// How clap begins a usage error, but not the help that it gives instead of one.
const CLAPS_PREFIX: &str = "error: ";

/// A usage error for programs.
#[derive(Debug, PartialEq, Eq)]
pub struct Misuse {
    /// What is wrong, in one line.
    pub what: String,
    /// What was perhaps meant.
    pub tip: Option<String>,
}

impl Misuse {
    /// What clap has put into paragraphs for people.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let text = text.strip_prefix(CLAPS_PREFIX).unwrap_or(text);
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut paragraphs = text.split("\n\n").map(one_line);
        let what = paragraphs.next().unwrap_or_default();
        let tip = paragraphs.find_map(|text| text.strip_prefix("tip: ").map(str::to_owned));
        Self { what, tip }
    }
}

/// The text for people, begun as all other lines of `program` are.
#[must_use]
pub fn in_name_of(program: &str, text: &str) -> String {
    let text = text.trim_end();
    match text.strip_prefix(CLAPS_PREFIX) {
        Some(what) => format!("{program}: {what}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_a_line_and_a_tip() {
        let text = "error: invalid value 'std' for '-z'\n  [possible values: lz4, zstd]\n\n  \
                    tip: a similar value exists: 'zstd'\n\nFor more information, try '--help'.\n";
        let want = Misuse {
            what: "invalid value 'std' for '-z' [possible values: lz4, zstd]".into(),
            tip: Some("a similar value exists: 'zstd'".into()),
        };
        assert_eq!(Misuse::of(text), want);
        assert!(in_name_of("memcr", text).starts_with("memcr: invalid value"));
        assert_eq!(in_name_of("memcr", "Usage: memcr\n"), "Usage: memcr");
    }
}
