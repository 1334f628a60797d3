//! Where a setting was made, so that a complaint about it can name the place.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a setting was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a configuration file.
    File {
        /// The file.
        path: Arc<PathBuf>,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// With this flag, as it was given.
    Flag(String),
}

impl Origin {
    /// Whether it is a place in this file.
    pub(crate) fn is_in(&self, file: Option<&Path>) -> bool {
        matches!(self, Self::File { path, .. } if Some(path.as_path()) == file)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A text and its name, to turn the spans of the parser into places.
#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
}

impl<'a> Text<'a> {
    pub(super) fn new(path: &Path, text: &'a str) -> Self {
        Self {
            path: Arc::new(path.to_owned()),
            text,
        }
    }

    /// The place at which `span` begins. A span beyond the text, or within a character,
    /// names the nearest place before.
    pub(super) fn place(&self, span: Range<usize>) -> Origin {
        let before = &self.text[..floor_char_boundary(self.text, span.start)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Origin::File {
            path: Arc::clone(&self.path),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let text = Text::new(Path::new("a.toml"), "ä = 1\nöö = 2\n");
        for (at, want) in [
            (0, "1:1"),
            (3, "1:3"),
            (7, "2:1"),
            (9, "2:2"),
            (8, "2:1"),
            (99, "3:1"),
        ] {
            assert_eq!(text.place(at..at).to_string(), format!("a.toml:{want}"));
        }
    }
}
