//! Descriptions that the host would refuse do not compile; here, they panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::catch_unwind;

use super::super::{info::blank_table, validate};
use crate::abi::{kind, param};
use crate::stage::{ParamKind, ParamSpec, StageInfo, Threads};

const GOOD: StageInfo = StageInfo {
    name: "good_1",
    version: "1.0",
    summary: "is good",
    threads: Threads::Serial,
    capabilities: 0,
    params: &[],
};
const PARAM: ParamSpec = ParamSpec {
    name: "level",
    kind: ParamKind::Integer { min: 1, max: 9 },
    default: Some("5"),
    required: false,
    recorded: true,
    help: "how much",
};

/// Whether `register_stage!` takes it.
fn compiles(info: StageInfo) -> bool {
    catch_unwind(|| validate(&info)).is_ok()
}

fn compiles_with(spec: ParamSpec) -> bool {
    let params = Box::leak(Box::new([spec]));
    compiles(StageInfo { params, ..GOOD })
}

#[test]
fn a_good_description_compiles() {
    assert!(compiles(GOOD));
    assert!(compiles_with(PARAM));
    let name = "a2345678901234567890123456789012";
    assert!(compiles(StageInfo { name, ..GOOD }));
}

#[test]
fn a_bad_description_does_not() {
    for name in [
        "",
        "Big",
        "a-b",
        "a/b",
        "ä",
        "a23456789012345678901234567890123",
    ] {
        assert!(!compiles(StageInfo { name, ..GOOD }), "{name}");
        assert!(!compiles_with(ParamSpec { name, ..PARAM }), "{name}");
    }
    assert!(!compiles(StageInfo {
        capabilities: 1 << 60,
        ..GOOD
    }));
    assert!(!compiles(StageInfo {
        version: "",
        ..GOOD
    }));
    assert!(!compiles(StageInfo {
        summary: "a\0b",
        ..GOOD
    }));
    assert!(!compiles_with(ParamSpec {
        required: true,
        ..PARAM
    }));
    let swapped = ParamKind::Integer { min: 9, max: 1 };
    assert!(!compiles_with(ParamSpec {
        kind: swapped,
        ..PARAM
    }));
    let negative = ParamKind::Size { min: -1, max: 1 };
    assert!(!compiles_with(ParamSpec {
        kind: negative,
        ..PARAM
    }));
    for words in [&[][..], &["a", ""], &["a|b"], &["a\0"]] {
        let kind = ParamKind::Choice(words);
        assert!(!compiles_with(ParamSpec { kind, ..PARAM }), "{words:?}");
    }
}

#[test]
fn a_parameter_keeps_everything_in_its_c_form() {
    let choice = ParamSpec {
        name: "cipher",
        kind: ParamKind::Choice(&["gcm", "cbc"]),
        default: None,
        required: true,
        recorded: false,
        help: "which",
    };
    let info = StageInfo {
        params: Box::leak(Box::new([PARAM, choice])),
        ..GOOD
    };
    let table = blank_table(kind::SINK, &info);
    // SAFETY: the table and its parameters were just made by this crate.
    let plugin = unsafe { super::super::Loaded::new(Box::leak(Box::new(table))) };
    let params = plugin.params();
    let texts = |i: usize| {
        let of = params[i];
        [of.name, of.default_value, of.choices, of.help].map(|text| plugin.text(text))
    };
    assert_eq!(texts(0), [Some("level"), Some("5"), None, Some("how much")]);
    assert_eq!(
        (params[0].kind, params[0].flags),
        (param::INTEGER, param::RECORDED)
    );
    assert_eq!((params[0].min, params[0].max), (1, 9));
    assert_eq!(
        texts(1),
        [Some("cipher"), None, Some("gcm|cbc"), Some("which")]
    );
    assert_eq!(
        (params[1].kind, params[1].flags),
        (param::CHOICE, param::REQUIRED)
    );
}
