//! `docs/plugin-abi.md` shows code that is compiled and loaded, and names what exists.
#![allow(clippy::unwrap_used, clippy::expect_used)]

const DOCS: &str = include_str!("../../docs/plugin-abi.md");
const EXAMPLE: &str = include_str!("../examples/invert.rs");
const HEADER: &str = include_str!("../include/memcr_stage.h");

#[test]
fn the_stage_in_the_docs_is_the_example() {
    let shown = DOCS.split("```rust\n").nth(1).unwrap();
    let shown = shown.split("```").next().unwrap();
    let code: Vec<_> = EXAMPLE
        .lines()
        .skip_while(|line| line.starts_with("//!") || line.is_empty())
        .collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), code);
}

/// Names of the header's constants with this prefix.
fn names(prefix: &str) -> Vec<&'static str> {
    let defines = HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define MEMCR_"));
    defines
        .filter_map(|rest| rest.strip_prefix(prefix)?.split(' ').next())
        .filter(|name| *name != "ALL")
        .collect()
}

#[test]
fn the_docs_explain_every_code_capability_and_thread_model() {
    for prefix in ["CODE_", "CAPABILITY_", "THREADS_"] {
        let names = names(prefix);
        assert!(names.len() >= 3, "{prefix}: {names:?}");
        for name in names {
            assert!(DOCS.contains(&format!("| `{name}` |")), "{prefix}{name}");
        }
    }
}
