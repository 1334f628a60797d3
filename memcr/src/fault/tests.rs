//! The table and the code say the same.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use super::POINTS;

#[test]
fn every_point_is_in_the_table_and_in_the_code() {
    let mut in_code = BTreeSet::new();
    names_in(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut in_code,
    );
    let in_table: BTreeSet<String> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(in_code, in_table);
    assert_eq!(in_table.len(), POINTS.len(), "a name is twice in the table");
}

#[test]
fn a_point_that_nobody_armed_does_nothing() {
    for (name, _) in POINTS {
        super::point(name).unwrap();
    }
}

/// The names in `fault::point("NAME")` and `pass("NAME")`, as modules call a function of
/// their own that makes an error of theirs, in all sources but those of this module.
fn names_in(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.ends_with("src/fault") || path.ends_with("src/fault.rs") {
            continue;
        }
        if path.is_dir() {
            names_in(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in ["fault::point(\"", "pass(\""] {
            let calls = text.split(call).skip(1);
            found.extend(calls.map(|call| call.split('"').next().unwrap().to_owned()));
        }
    }
}
