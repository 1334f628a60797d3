//! Plugins that come out of a file, as a user has them: in C and in Rust.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use abi_stable::library::lib_header_from_path;
use libloading::Library;

use super::super::StageModuleRef;
use crate::abi::{ENTRY_SYMBOL, EntryFn, StageTable};
use crate::testkit::{Conformance, Loaded};

/// Compiles `source` of this crate to a plugin in `dir`.
fn compile(dir: &Path, source: &str, flags: &[&str]) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plugin = dir.join("plugin.so");
    let output = Command::new("cc")
        .args([
            "-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I",
        ])
        .arg(here.join("include"))
        .args(flags)
        .arg("-o")
        .args([&plugin, &here.join(source)])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    plugin
}

/// The table of a plugin through the C door.
fn table(path: &Path) -> &'static StageTable {
    // SAFETY: the plugins of these tests have no initialisers.
    let library = unsafe { Library::new(path) }.unwrap();
    // Never unloaded, as the host never does: the table lives as long as the process.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: a symbol of this name is of this type, by the interface.
    let entry = unsafe { library.get::<EntryFn>(ENTRY_SYMBOL.to_bytes_with_nul()) }.unwrap();
    // SAFETY: the function demands nothing and answers a table as old as the process.
    unsafe { entry().as_ref() }.unwrap()
}

fn suite(plugin: &Path) -> Conformance {
    // SAFETY: the plugin was compiled from sources of this crate, whose texts end and
    // whose arrays are as long as said.
    Conformance::new(unsafe { Loaded::new(table(plugin)) })
}

#[test]
fn the_example_in_c_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = compile(dir.path(), "examples/xor.c", &["-pedantic"]);
    suite(&plugin).run();
    suite(&plugin).param("with", "0").run();
}

#[test]
fn the_example_in_rust_conforms_and_both_its_doors_lead_to_one_table() {
    // Cargo builds the examples of a crate before it runs the crate's tests.
    let exe = std::env::current_exe().unwrap();
    let target = exe.parent().and_then(Path::parent).unwrap();
    let plugin = target.join("examples/libinvert.so");
    assert!(
        plugin.exists(),
        "{} is missing: run cargo test -p memcr-plugin-api",
        plugin.display()
    );
    suite(&plugin).run();
    let header = lib_header_from_path(&plugin).unwrap();
    let module = header.init_root_module::<StageModuleRef>().unwrap();
    // SAFETY: the function demands nothing.
    let through_module = unsafe { module.table()() };
    assert_eq!(through_module, std::ptr::from_ref(table(&plugin)));
}

/// What the suite says of `tests/sick.c` with a fault.
fn problems(fault: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    // Faults that the compiler sees too are there on purpose.
    let flags = [
        &format!("-DFAULT={fault}"),
        "-Wno-array-bounds",
        "-Wno-cast-qual",
    ];
    suite(&compile(dir.path(), "tests/sick.c", &flags)).problems()
}

#[test]
fn nothing_is_wrong_with_a_healthy_stage_in_c() {
    assert_eq!(problems("HEALTHY"), [""; 0]);
}

macro_rules! finds {
    ($($name:ident: $fault:ident, $words:literal;)*) => {$(
        #[test]
        fn $name() {
            let problems = problems(stringify!($fault));
            assert!(problems.iter().any(|problem| problem.contains($words)), "{problems:#?}");
        }
    )*};
}

finds! {
    a_write_behind_the_buffer: WRITES_BEHIND, "encode wrote behind the end of its buffer";
    a_write_before_the_buffer: WRITES_BEFORE, "encode wrote before its buffer";
    an_input_that_is_changed: CHANGES_INPUT, "encode changed its input";
    a_length_beside_a_failure: LENGTH_BESIDE_FAILURE, "failed but wrote a length";
    a_failure_without_a_reason: SAYS_NOTHING, "did not say why";
    a_message_without_an_end: ENDLESS_MESSAGE, "a message without a NUL";
    a_message_that_is_no_text: NOT_UTF8, "a message that is not UTF-8";
    an_unknown_code: UNKNOWN_CODE, "answered the unknown code -99";
    a_pass_where_there_is_none: PASSES_IN_DECODE, "decode answered PASS, which only encode may";
    half_a_pair_of_functions: HALF_A_PAIR, "one of worker_create and worker_destroy without the other";
    a_missing_function: WITHOUT_BOUND, "no function bound, which its kind needs";
    a_table_that_is_too_short: SHORT_TABLE, "the table says it has 64 bytes";
    a_name_that_no_file_may_have: BAD_NAME, "the name Some(\"Sick-Stage\") is not";
    a_capability_that_nobody_knows: UNKNOWN_CAPABILITY, "unknown capability bits 0x10000000000";
    a_default_that_is_not_allowed: BAD_DEFAULT, "`level` has a default that it does not allow";
    limits_that_are_swapped: SWAPPED_LIMITS, "`level` has its limits swapped";
    a_value_that_nobody_checks: TAKES_ANY_VALUE, "create takes level = \"10\"";
}
