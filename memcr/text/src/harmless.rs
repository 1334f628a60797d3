//! Text that somebody else has chosen.

/// `text` without what a terminal would obey, or what would look like a line of ours: a
/// process may call itself what it likes.
pub fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn nothing_is_left_for_the_terminal() {
        assert_eq!(
            harmless("a\u{1b}[2J\n\u{9b}ü\\"),
            "a\\u{1b}[2J\\n\\u{9b}ü\\"
        );
    }
}
