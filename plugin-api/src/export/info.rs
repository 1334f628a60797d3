//! From [`StageInfo`] to the constant part of a table.

use std::ffi::{CString, c_char};
use std::ptr;

use crate::abi::{self, StageTable, capability, param};
use crate::stage::{ParamKind, ParamSpec, StageInfo, is_name};

/// Fails to compile when a plugin describes itself in a way that the host would refuse.
///
/// # Panics
/// When evaluated at run time with such a description; `register_stage!` evaluates it at
/// compile time.
pub const fn validate(info: &StageInfo) {
    check_word(info.name);
    assert!(
        info.capabilities & !capability::ALL == 0,
        "unknown capability bits"
    );
    assert!(
        !has_nul(info.version) && !info.version.is_empty(),
        "the version is empty or holds a NUL"
    );
    assert!(!has_nul(info.summary), "the summary holds a NUL");
    let mut i = 0;
    while i < info.params.len() {
        check_param(&info.params[i]);
        i += 1;
    }
}

/// The table of a stage, without functions.
pub(super) fn blank_table(kind: u32, info: &StageInfo) -> StageTable {
    let params: Vec<abi::Param> = info.params.iter().map(c_param).collect();
    StageTable {
        // Tables are some hundred bytes, a plugin has a handful of parameters.
        struct_size: size_of::<StageTable>() as u32,
        abi_version: abi::ABI_VERSION,
        kind,
        threads: info.threads as u32,
        capabilities: info.capabilities,
        name: c_text(info.name),
        version: c_text(info.version),
        summary: c_text(info.summary),
        n_params: params.len() as u32,
        params: Box::leak(params.into_boxed_slice()).as_ptr(),
        param_size: size_of::<abi::Param>() as u32,
        create: None,
        destroy: None,
        worker_create: None,
        worker_destroy: None,
        get_extension: None,
        begin_encode: None,
        begin_decode: None,
        bound: None,
        encode: None,
        decode: None,
        finish_encode: None,
        finish_decode: None,
        sink_open: None,
        sink_write_at: None,
        sink_read_at: None,
        sink_len: None,
        sink_commit: None,
        sink_locator: None,
        sink_remove: None,
    }
}

fn c_param(spec: &ParamSpec) -> abi::Param {
    let (kind, choices, min, max) = match spec.kind {
        ParamKind::String | ParamKind::Name => (param::STRING, ptr::null(), 0, 0),
        ParamKind::Integer { min, max } => (param::INTEGER, ptr::null(), min, max),
        ParamKind::Bool => (param::BOOL, ptr::null(), 0, 0),
        ParamKind::Size { min, max } => (param::SIZE, ptr::null(), min, max),
        ParamKind::Choice(words) => (param::CHOICE, c_text(&words.join("|")), 0, 0),
        ParamKind::Path => (param::PATH, ptr::null(), 0, 0),
        ParamKind::Fd => (param::FD, ptr::null(), 0, 0),
    };
    let required = if spec.required { param::REQUIRED } else { 0 };
    let recorded = if spec.recorded { param::RECORDED } else { 0 };
    let place = if matches!(spec.kind, ParamKind::Name) {
        param::PLACE
    } else {
        0
    };
    abi::Param {
        name: c_text(spec.name),
        kind,
        flags: required | recorded | place,
        default_value: spec.default.map_or(ptr::null(), c_text),
        choices,
        min,
        max,
        help: c_text(spec.help),
    }
}

/// A NUL-terminated copy that is never freed: tables live as long as the process.
fn c_text(text: &str) -> *const c_char {
    // `validate` found no NUL in any text at compile time; one that got past it (a table
    // made without the macro) ends the text there, as it would for every reader in C.
    let bytes: Vec<u8> = text.bytes().take_while(|&byte| byte != 0).collect();
    CString::new(bytes).unwrap_or_default().into_raw()
}

const fn check_param(spec: &ParamSpec) {
    check_word(spec.name);
    assert!(!has_nul(spec.help), "the help of a parameter holds a NUL");
    assert!(
        !(spec.required && spec.default.is_some()),
        "a required parameter has a default"
    );
    if let Some(default) = spec.default {
        assert!(!has_nul(default), "the default of a parameter holds a NUL");
    }
    match spec.kind {
        ParamKind::Integer { min, max } => assert!(min <= max, "a parameter's limits are swapped"),
        ParamKind::Size { min, max } => assert!(
            0 <= min && min <= max,
            "a size parameter's limits are wrong"
        ),
        ParamKind::Choice(words) => assert!(!words.is_empty(), "a parameter has no choices"),
        ParamKind::String | ParamKind::Name | ParamKind::Bool | ParamKind::Path | ParamKind::Fd => {
        }
    }
}

const fn check_word(word: &str) {
    assert!(is_name(word), "a name is not 1 to 32 of [a-z0-9_]");
}

const fn has_nul(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == 0 {
            return true;
        }
        i += 1;
    }
    false
}
