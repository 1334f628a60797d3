//! Parameters of a stage against what its plugin declares.

use crate::pipeline::{ParamDescription, ParamType, PipelineError, Result, StageDescription};

/// Longest value, bytes: longer ones are mistakes, and images hold recorded values.
const MAX_VALUE_LEN: usize = 4096;

/// Checks `given` and answers what `create` gets: every parameter that was given (the
/// last value of a key counts) or has a default, sizes in plain bytes, in the order of
/// the declaration. `alias` names the stage in messages.
pub(super) fn resolve(
    alias: &str,
    stage: &StageDescription,
    given: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    for (key, _) in given {
        if !stage.params.iter().any(|param| param.name == *key) {
            return Err(unknown_key(alias, stage, key));
        }
    }
    let mut resolved = Vec::new();
    for param in &stage.params {
        let value = given
            .iter()
            .rev()
            .find(|(key, _)| *key == param.name)
            .map(|(_, value)| value);
        match value.or(param.default.as_ref()) {
            Some(value) => resolved.push((param.name.clone(), checked(alias, param, value)?)),
            None if param.required => return Err(missing(alias, stage, param)),
            None => {}
        }
    }
    Ok(resolved)
}

/// The value as the plugin gets it.
fn checked(alias: &str, param: &ParamDescription, value: &str) -> Result<String> {
    let wrong = |allowed: String| PipelineError::Param {
        stage: alias.to_owned(),
        key: param.name.clone(),
        what: format!(
            "parameter `{}` of stage `{alias}` is `{}`, allowed is {allowed}",
            param.name,
            value.escape_debug()
        ),
        hint: param.help.clone(),
    };
    if value.len() > MAX_VALUE_LEN || value.contains('\0') {
        return Err(wrong(format!(
            "at most {MAX_VALUE_LEN} bytes of text without a NUL"
        )));
    }
    let within = |n: Option<i64>, min: i64, max: i64| {
        n.filter(|n| (min..=max).contains(n)).map(|n| n.to_string())
    };
    let ok = || Some(value.to_owned());
    let (checked, allowed) = match &param.ty {
        ParamType::String => (ok(), String::new()),
        ParamType::Integer { min, max } => (
            within(value.parse().ok(), *min, *max),
            format!("an integer in {min}..={max}"),
        ),
        ParamType::Size { min, max } => (
            within(parse_size(value), *min, *max),
            format!("a length in {min}..={max} bytes, such as 65536, 64K or 64MiB"),
        ),
        ParamType::Bool => (
            ok().filter(|v| v == "true" || v == "false"),
            "true or false".into(),
        ),
        ParamType::Choice { choices } => (
            ok().filter(|v| choices.contains(v)),
            format!("one of {}", choices.join(", ")),
        ),
        ParamType::Path => (ok().filter(|v| !v.is_empty()), "a path".into()),
        ParamType::Fd => (
            within(value.parse().ok(), 0, i64::from(i32::MAX)),
            "the number of an open descriptor".into(),
        ),
    };
    checked.ok_or_else(|| wrong(allowed))
}

/// Bytes of `4096`, `64k`, `64K`, `64KiB`, `1MiB`, `2g`, …: all suffixes are powers of
/// 1024, as in `dd`, `mount` and systemd. Public for configuration values of the same form.
#[must_use]
pub fn parse_size(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix {
        "" | "B" => 0,
        "k" | "K" | "KiB" => 10,
        "m" | "M" | "MiB" => 20,
        "g" | "G" | "GiB" => 30,
        "t" | "T" | "TiB" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

fn unknown_key(alias: &str, stage: &StageDescription, key: &str) -> PipelineError {
    let keys: Vec<_> = stage
        .params
        .iter()
        .map(|param| param.name.as_str())
        .collect();
    let allowed = if keys.is_empty() {
        "it has none".into()
    } else {
        format!("it has {}", keys.join(", "))
    };
    PipelineError::Param {
        stage: alias.to_owned(),
        key: key.to_owned(),
        what: format!(
            "stage `{alias}` has no parameter `{}`: {allowed}",
            key.escape_debug()
        ),
        hint: help_hint(stage),
    }
}

fn missing(alias: &str, stage: &StageDescription, param: &ParamDescription) -> PipelineError {
    PipelineError::Param {
        stage: alias.to_owned(),
        key: param.name.clone(),
        what: format!(
            "stage `{alias}` needs the parameter `{}` ({})",
            param.name, param.help
        ),
        hint: help_hint(stage),
    }
}

fn help_hint(stage: &StageDescription) -> String {
    format!(
        "`memcr --stage-help {}` explains its parameters",
        stage.name
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pipeline::{Door, StageKind, ThreadModel};

    fn param(name: &str, ty: ParamType, default: Option<&str>) -> ParamDescription {
        let default = default.map(str::to_owned);
        ParamDescription {
            name: name.into(),
            ty,
            required: false,
            recorded: false,
            place: false,
            help: "helps".into(),
            default,
        }
    }

    fn stage() -> StageDescription {
        let choices = vec!["fast".to_owned(), "small".to_owned()];
        let mut key = param("key_file", ParamType::Path, None);
        key.required = true;
        StageDescription {
            name: "lz4".into(),
            kind: StageKind::Transform,
            version: "1".into(),
            abi_version: (1, 0),
            threads: ThreadModel::Parallel,
            capabilities: Vec::new(),
            summary: String::new(),
            params: vec![
                param("level", ParamType::Integer { min: 1, max: 9 }, Some("3")),
                param(
                    "block",
                    ParamType::Size {
                        min: 1,
                        max: 1 << 30,
                    },
                    None,
                ),
                param("mode", ParamType::Choice { choices }, None),
                param("sync", ParamType::Bool, None),
                key,
            ],
            path: "/x".into(),
            door: Door::C,
            capability_bits: 0,
        }
    }

    fn resolve_all(given: &[(&str, &str)]) -> std::result::Result<Vec<(String, String)>, String> {
        let given: Vec<_> = given
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        resolve("compress", &stage(), &given).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_sizes_and_the_last_value_of_a_key() {
        let resolved =
            resolve_all(&[("key_file", "a"), ("block", "64KiB"), ("key_file", "b")]).unwrap();
        let pairs: Vec<_> = resolved
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [("level", "3"), ("block", "65536"), ("key_file", "b")]
        );
    }

    #[test]
    fn every_refusal_says_what_is_allowed() {
        let cases = [
            (
                ("levle", "1"),
                "stage `compress` has no parameter `levle`: it has level, block, mode, sync, key_file",
            ),
            (
                ("level", "10"),
                "parameter `level` of stage `compress` is `10`, allowed is an integer in 1..=9",
            ),
            (
                ("level", "x"),
                "parameter `level` of stage `compress` is `x`, allowed is an integer in 1..=9",
            ),
            (
                ("mode", "big"),
                "parameter `mode` of stage `compress` is `big`, allowed is one of fast, small",
            ),
            (
                ("sync", "yes"),
                "parameter `sync` of stage `compress` is `yes`, allowed is true or false",
            ),
            (
                ("key_file", ""),
                "parameter `key_file` of stage `compress` is ``, allowed is a path",
            ),
            (
                ("block", "2GiB"),
                "parameter `block` of stage `compress` is `2GiB`, allowed is a length in 1..=1073741824 bytes, such as 65536, 64K or 64MiB",
            ),
        ];
        for (pair, message) in cases {
            assert_eq!(
                resolve_all(&[("key_file", "a"), pair]).unwrap_err(),
                message
            );
        }
        assert_eq!(
            resolve_all(&[]).unwrap_err(),
            "stage `compress` needs the parameter `key_file` (helps)"
        );
    }

    #[test]
    fn sizes() {
        let sizes = [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("64K", 65536),
            ("2MiB", 2 << 20),
            ("3G", 3 << 30),
        ];
        sizes
            .iter()
            .for_each(|(text, bytes)| assert_eq!(parse_size(text), Some(*bytes), "{text}"));
        for bad in ["", "k", "-1", "1KB", "1.5M", "99999999999G", " 1", "1 k"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
