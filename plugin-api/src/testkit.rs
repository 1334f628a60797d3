//! The conformance suite: what every stage must do, tried on its table.
//!
//! A plugin written in Rust runs it in one line, anywhere in its crate below
//! `register_stage!`:
//!
//! ```text
//! memcr_plugin_api::conformance!();
//! memcr_plugin_api::conformance!(|suite| suite.param("level", "19"));
//! memcr_plugin_api::conformance!(|suite| suite.dir_param("dir"));             // a sink
//! memcr_plugin_api::conformance!(|suite| suite.file_param("key_file", &[7; 32]));
//! ```
//!
//! The suite goes through the C table only, as the host does, so that it tries a plugin
//! written in C just the same: [`Loaded::new`] takes any table.
//!
//! | module | tries |
//! |---|---|
//! | `table` | sizes, names, capability bits, parameters and their defaults |
//! | `params` | that a bad value is refused, and the refusal described |
//! | `coder` | transforms and checksums: what goes in comes out, on the same handle and on a fresh one, in any order, from several threads |
//! | `hostile` | damaged frames, tags, states and trailers; buffers that are too small |
//! | `sink` | that an image lasts when committed, and is gone when not or when removed |
//!
//! Every call is watched besides: writes outside buffers, lengths that cannot be,
//! failures without a description, panics.

mod coder;
mod content;
mod hostile;
mod params;
mod scratch;
mod sink;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::abi::kind;
pub use crate::export::Loaded;
use crate::export::{Failed, Handle};
use scratch::Scratch;

/// The suite for one table. See the module.
pub struct Conformance {
    subject: Subject,
    dir_param: Option<String>,
    dir_under: Option<String>,
    files: Vec<(String, Vec<u8>)>,
}

impl Conformance {
    /// The suite for a plugin, with the defaults of its parameters.
    #[must_use]
    pub fn new(plugin: Loaded) -> Self {
        Self {
            subject: Subject {
                loaded: plugin,
                params: Vec::new(),
            },
            dir_param: None,
            dir_under: None,
            files: Vec::new(),
        }
    }

    /// Gives every handle this parameter.
    #[must_use]
    pub fn param(mut self, key: &str, value: impl Into<String>) -> Self {
        self.subject.set(key, value.into());
        self
    }

    /// Gives every handle a path of a file with these contents (mode 0600).
    #[must_use]
    pub fn file_param(mut self, key: &str, contents: &[u8]) -> Self {
        self.files.push((key.to_owned(), contents.to_vec()));
        self
    }

    /// Gives a sink's handles a fresh directory (mode 0700), in which nothing may stay
    /// behind.
    #[must_use]
    pub fn dir_param(mut self, key: &str) -> Self {
        self.dir_param = Some(key.to_owned());
        self
    }

    /// Where the directory of [`dir_param`](Self::dir_param) is made, if not in the
    /// directory for temporary files: a tmpfs for example.
    #[must_use]
    pub fn dir_under(mut self, parent: &str) -> Self {
        self.dir_under = Some(parent.to_owned());
        self
    }

    /// Runs everything.
    ///
    /// # Panics
    /// When the stage breaks a rule; the message lists every broken one.
    pub fn run(self) {
        let problems = self.problems();
        assert!(
            problems.is_empty(),
            "the stage breaks {} rules of the interface:\n  - {}",
            problems.len(),
            problems.join("\n  - ")
        );
    }

    /// Runs everything; answers the rules that the stage breaks.
    #[must_use]
    pub fn problems(mut self) -> Vec<String> {
        let dirs = self.prepare();
        if let Err(problem) = dirs {
            return vec![problem];
        }
        let subject = &mut self.subject;
        // The other checks read the table; they would stumble over one that is wrong.
        if !table::check(&subject.loaded) {
            return subject.loaded.noticed();
        }
        subject.set_defaults();
        params::check(subject);
        match subject.loaded.table().kind {
            kind::SINK => sink::check(
                subject,
                dirs.as_ref().ok().and_then(|(_, sink)| sink.as_ref()),
            ),
            _ => {
                coder::check(subject);
                hostile::check(subject);
            }
        }
        subject.loaded.noticed()
    }

    /// Makes files and directories; they live as long as the answer.
    fn prepare(&mut self) -> Result<(Scratch, Option<Scratch>), String> {
        let describe = |error| format!("the suite cannot make its directory: {error}");
        let tmp = std::env::temp_dir();
        let files = Scratch::new(&tmp).map_err(describe)?;
        for (key, contents) in std::mem::take(&mut self.files) {
            let path = files.file(&key, &contents).map_err(describe)?;
            self.subject.set(&key, path.to_string_lossy().into_owned());
        }
        let Some(key) = &self.dir_param else {
            return Ok((files, None));
        };
        let parent = self.dir_under.as_deref().map_or(tmp.as_path(), Path::new);
        let dir = Scratch::new(parent).map_err(describe)?;
        self.subject
            .set(key, dir.path().to_string_lossy().into_owned());
        Ok((files, Some(dir)))
    }
}

/// What is tried: a table and the parameters for its handles.
struct Subject {
    loaded: Loaded,
    params: Vec<(String, String)>,
}

impl Subject {
    fn set(&mut self, key: &str, value: String) {
        self.params.retain(|(existing, _)| existing != key);
        self.params.push((key.to_owned(), value));
    }

    /// Adds the default of every parameter that has no value, as the host does.
    fn set_defaults(&mut self) {
        for param in self.loaded.params() {
            let name = self.loaded.text(param.name).unwrap_or_default();
            let known = self.params.iter().any(|(key, _)| key == name);
            if let (false, Some(value)) = (known, self.loaded.text(param.default_value)) {
                self.params.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    fn has(&self, capability: u64) -> bool {
        self.loaded.table().capabilities & capability != 0
    }

    fn notice(&self, what: impl Into<String>) {
        self.loaded.notice(what);
    }

    /// The answer; a failure that should not have been is noticed.
    fn expect<T>(&self, doing: &str, answer: Result<T, Failed>) -> Option<T> {
        answer
            .inspect_err(|failed| {
                self.notice(format!(
                    "{doing} failed with code {}: {}",
                    failed.code, failed.message
                ));
            })
            .ok()
    }

    fn create(&self) -> Option<Handle<'_>> {
        self.expect("create", self.loaded.create(&self.params))
    }
}

/// Defines the test `conformance` for the stage of this crate; see [`crate::testkit`].
///
/// Goes below `register_stage!` in the same module, or where its `stage_table` is in
/// scope.
#[macro_export]
macro_rules! conformance {
    () => {
        $crate::conformance!(|suite| suite);
    };
    (|$suite:ident| $with:expr) => {
        #[cfg(test)]
        #[test]
        fn conformance() {
            // SAFETY: the table is one of `register_stage!`.
            #[allow(unsafe_code)]
            let plugin = unsafe { $crate::testkit::Loaded::new(stage_table()) };
            let $suite = $crate::testkit::Conformance::new(plugin);
            $with.run();
        }
    };
}
