//! The suite finds what is broken, and nothing in what is not.
//!
//! Each sick stage has one fault; the suite must name it. What only C can do wrong
//! (writing outside a buffer, lying about a failure) is tried with `tests/sick.c`, from
//! the tests of `export`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checksum;
mod sink;
mod transform;

use super::{Conformance, Loaded};

/// Runs the suite on a stage with a fault; it must say so in these words.
fn finds(fault: &str, plugin: Loaded, words: &str) {
    let problems = Conformance::new(plugin).problems();
    assert!(
        problems.iter().any(|problem| problem.contains(words)),
        "{fault}: nothing about {words:?} in {problems:#?}"
    );
}

/// Panics of the stages under test are not news.
fn quietly<R>(run: impl FnOnce() -> R) -> R {
    use std::sync::Once;
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<&str>();
            if text.is_none_or(|text| !text.starts_with("on purpose")) {
                usual(info);
            }
        }));
    });
    run()
}
