//! Checks of the constant part of a table.

use std::collections::HashSet;

use crate::abi::{self, StageTable, capability, kind, param, threads};
use crate::export::Loaded;

/// Whether the rest of the suite can use the table.
pub(super) fn check(loaded: &Loaded) -> bool {
    let table = loaded.table();
    if (table.struct_size as usize) < size_of::<StageTable>() {
        let size = table.struct_size;
        loaded.notice(format!(
            "the table says it has {size} bytes, less than version 1.0"
        ));
        return false;
    }
    check_numbers(loaded, table);
    check_texts(loaded, table);
    let complete = check_functions(loaded, table);
    check_params(loaded, table) && complete && matches!(table.kind, kind::TRANSFORM..=kind::SINK)
}

fn check_numbers(loaded: &Loaded, table: &StageTable) {
    if table.abi_version >> 16 != abi::ABI_MAJOR {
        loaded.notice(format!(
            "the table is of ABI version {:#x}",
            table.abi_version
        ));
    }
    if !matches!(table.kind, kind::TRANSFORM..=kind::SINK) {
        loaded.notice(format!("the table is of the unknown kind {}", table.kind));
    }
    if !matches!(table.threads, threads::SERIAL..=threads::PARALLEL) {
        loaded.notice(format!(
            "the table has the unknown thread model {}",
            table.threads
        ));
    }
    let unknown = table.capabilities & !capability::ALL;
    if unknown != 0 {
        loaded.notice(format!(
            "the table has the unknown capability bits {unknown:#x}"
        ));
    }
    let foreign = table.capabilities & !suitable(table.kind);
    if unknown == 0 && foreign != 0 {
        loaded.notice(format!(
            "the table has capability bits of another kind: {foreign:#x}"
        ));
    }
}

/// The capabilities that mean something for a kind.
fn suitable(of: u32) -> u64 {
    use capability::{
        AUTHENTICATES, COMPRESSES, ENCRYPTS, IN_MEMORY, INDEPENDENT_CHUNKS, KEEPS_UNFINISHED,
        READ_BEFORE_COMMIT, WRITE_ANYWHERE,
    };
    match of {
        kind::TRANSFORM => INDEPENDENT_CHUNKS | COMPRESSES | ENCRYPTS | AUTHENTICATES,
        kind::CHECKSUM => INDEPENDENT_CHUNKS | AUTHENTICATES,
        _ => WRITE_ANYWHERE | READ_BEFORE_COMMIT | IN_MEMORY | KEEPS_UNFINISHED,
    }
}

fn check_texts(loaded: &Loaded, table: &StageTable) {
    match loaded.text(table.name) {
        Some(name) if is_word(name) => {}
        name => loaded.notice(format!("the name {name:?} is not 1 to 32 of [a-z0-9_]")),
    }
    if loaded.text(table.version).is_none_or(str::is_empty) {
        loaded.notice("the version is missing or no UTF-8");
    }
    match loaded.text(table.summary) {
        Some(summary) if !summary.is_empty() && !summary.contains('\n') => {}
        summary => loaded.notice(format!("the summary {summary:?} is not one line")),
    }
}

fn check_functions(loaded: &Loaded, table: &StageTable) -> bool {
    let missing: Vec<_> = functions(table)
        .into_iter()
        .filter(|&(_, needed_by, there)| needed_by.contains(&table.kind) && !there)
        .collect();
    for (name, ..) in &missing {
        loaded.notice(format!(
            "the table has no function {name}, which its kind needs"
        ));
    }
    for (name, one, other) in pairs(table) {
        if one != other {
            loaded.notice(format!("the table has one of {name} without the other"));
        }
    }
    missing.is_empty()
}

/// Name, the kinds that need it, whether it is there.
#[rustfmt::skip]
fn functions(table: &StageTable) -> [(&'static str, &'static [u32], bool); 12] {
    const EVERY: &[u32] = &[kind::TRANSFORM, kind::CHECKSUM, kind::SINK];
    const CODERS: &[u32] = &[kind::TRANSFORM, kind::CHECKSUM];
    const SINKS: &[u32] = &[kind::SINK];
    [
        ("create", EVERY, table.create.is_some()),
        ("destroy", EVERY, table.destroy.is_some()),
        ("bound", CODERS, table.bound.is_some()),
        ("encode", CODERS, table.encode.is_some()),
        ("decode", CODERS, table.decode.is_some()),
        ("sink_open", SINKS, table.sink_open.is_some()),
        ("sink_write_at", SINKS, table.sink_write_at.is_some()),
        ("sink_read_at", SINKS, table.sink_read_at.is_some()),
        ("sink_len", SINKS, table.sink_len.is_some()),
        ("sink_commit", SINKS, table.sink_commit.is_some()),
        ("sink_locator", SINKS, table.sink_locator.is_some()),
        ("sink_remove", SINKS, table.sink_remove.is_some()),
    ]
}

/// Functions that go together.
#[rustfmt::skip]
fn pairs(table: &StageTable) -> [(&'static str, bool, bool); 3] {
    [
        ("worker_create and worker_destroy", table.worker_create.is_some(), table.worker_destroy.is_some()),
        ("begin_encode and begin_decode", table.begin_encode.is_some(), table.begin_decode.is_some()),
        ("finish_encode and finish_decode", table.finish_encode.is_some(), table.finish_decode.is_some()),
    ]
}

/// Whether the array can be read.
fn check_params(loaded: &Loaded, table: &StageTable) -> bool {
    if table.n_params == 0 {
        return true;
    }
    if table.params.is_null() || (table.param_size as usize) < size_of::<abi::Param>() {
        loaded.notice("the table has parameters, but no array or one of too small elements");
        return false;
    }
    let mut names = HashSet::new();
    for param in loaded.params() {
        let name = loaded.text(param.name).unwrap_or_default();
        check_param(loaded, name, param);
        if !names.insert(name) {
            loaded.notice(format!("there are two parameters `{name}`"));
        }
    }
    true
}

fn check_param(loaded: &Loaded, name: &str, of: &abi::Param) {
    let wrong = |what: &str| loaded.notice(format!("parameter `{name}` {what}"));
    if !is_word(name) {
        wrong("has a name that is not 1 to 32 of [a-z0-9_]");
    }
    if !matches!(of.kind, param::STRING..=param::FD) {
        wrong("is of an unknown kind");
    }
    if of.flags & !(param::REQUIRED | param::RECORDED | param::PLACE) != 0 {
        wrong("has unknown flags");
    }
    if matches!(of.kind, param::INTEGER | param::SIZE) && of.min > of.max {
        wrong("has its limits swapped");
    }
    if of.kind == param::CHOICE
        && words(loaded, of).is_none_or(|words| words.iter().any(|word| word.is_empty()))
    {
        wrong("has no choices, or an empty one");
    }
    if loaded.text(of.help).is_none_or(str::is_empty) {
        wrong("has no help");
    }
    match loaded.text(of.default_value) {
        Some(_) if of.flags & param::REQUIRED != 0 => wrong("is required and has a default"),
        Some(value) if !allows(loaded, of, value) => wrong("has a default that it does not allow"),
        _ => {}
    }
}

/// Whether `value` is one that the host would hand on.
pub(super) fn allows(loaded: &Loaded, of: &abi::Param, value: &str) -> bool {
    let number =
        |range: std::ops::RangeInclusive<i64>| value.parse().is_ok_and(|n| range.contains(&n));
    match of.kind {
        param::INTEGER | param::SIZE => number(of.min..=of.max),
        param::BOOL => matches!(value, "true" | "false"),
        param::CHOICE => words(loaded, of).is_some_and(|words| words.contains(&value)),
        param::FD => number(0..=i64::from(i32::MAX)),
        param::PATH => !value.is_empty(),
        _ => true,
    }
}

fn words(loaded: &Loaded, of: &abi::Param) -> Option<Vec<&'static str>> {
    Some(loaded.text(of.choices)?.split('|').collect())
}

fn is_word(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}
