//! Options of a mode: `key=value` words.

use std::cell::RefCell;

/// The options given, and which of them were asked for.
pub(crate) struct Opts {
    pairs: Vec<(String, String)>,
    used: RefCell<Vec<String>>,
}

impl Opts {
    /// Takes words of the form `key=value`; a word without `=` is a key with value `1`.
    ///
    /// # Errors
    /// A key given twice.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((&word, "1"));
            if pairs.iter().any(|(k, _)| k == key) {
                return Err(format!("option `{key}` given twice"));
            }
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self {
            pairs,
            used: RefCell::new(Vec::new()),
        })
    }

    /// The text of `key`, or `default`.
    pub(crate) fn text(&self, key: &str, default: &str) -> String {
        self.used.borrow_mut().push(key.to_owned());
        let found = self.pairs.iter().find(|(k, _)| k == key);
        found.map_or(default, |(_, v)| v).to_owned()
    }

    /// The number of `key`, with a suffix `K`, `M` or `G` for powers of 1024, or `default`.
    pub(crate) fn number(&self, key: &str, default: u64) -> u64 {
        let text = self.text(key, "");
        if text.is_empty() {
            return default;
        }
        let (digits, shift) = match text.as_bytes()[text.len() - 1] {
            b'K' => (&text[..text.len() - 1], 10),
            b'M' => (&text[..text.len() - 1], 20),
            b'G' => (&text[..text.len() - 1], 30),
            _ => (&text[..], 0),
        };
        match digits.parse::<u64>() {
            Ok(n) => n << shift,
            Err(_) => crate::talk::die(&format!("option `{key}`: not a number: `{text}`")),
        }
    }

    /// `number` as a length in bytes.
    pub(crate) fn len(&self, key: &str, default: usize) -> usize {
        // 64-bit only: usize and u64 are the same size.
        self.number(key, default as u64) as usize
    }

    /// Whether the switch `key` was given and is not `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.number(key, 0) != 0
    }

    /// Ends the victim if an option was given that nobody asked for: a misspelt option
    /// would silently weaken a test.
    pub(crate) fn done(&self) {
        let used = self.used.borrow();
        if let Some((key, _)) = self.pairs.iter().find(|(k, _)| !used.contains(k)) {
            crate::talk::die(&format!("unknown option `{key}`"));
        }
    }
}
