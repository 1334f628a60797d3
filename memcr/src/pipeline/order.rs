//! Which stages may follow which.
//!
//! | rule | why |
//! |---|---|
//! | exactly one sink, last | frames must end somewhere, and nothing comes behind it |
//! | at most 16 stages | the pass mask of a chunk has 16 bits |
//! | no compressing behind an encrypting stage | encrypted bytes do not get shorter; the user meant the other order |
//!
//! Allowed on purpose: a checksum anywhere (behind `encrypt` it guards what the sink
//! got), two compressing stages, a pipeline of nothing but a sink.

use memcr_plugin_api::abi::capability;

use crate::pipeline::{PipelineError, Result, StageDescription, StageKind};
use crate::sink::layout::limit;

/// Checks the order of stages given as alias and description.
pub(super) fn check(stages: &[(&str, &StageDescription)]) -> Result<()> {
    if stages.len() > limit::STAGES {
        return refuse(
            format!("{} stages are more than {}", stages.len(), limit::STAGES),
            "",
        );
    }
    check_sink(stages)?;
    let mut encrypting = None;
    for (alias, stage) in stages {
        if let Some(before) = encrypting.filter(|_| stage.can(capability::COMPRESSES)) {
            let what = format!(
                "`{alias}` compresses behind `{before}`, which encrypts: encrypted bytes do not get shorter"
            );
            return refuse(what, &format!("put `{alias}` before `{before}`"));
        }
        if stage.can(capability::ENCRYPTS) {
            encrypting = Some(alias);
        }
    }
    Ok(())
}

fn check_sink(stages: &[(&str, &StageDescription)]) -> Result<()> {
    let Some(((last, description), others)) = stages.split_last() else {
        return refuse(
            "the pipeline has no stage".into(),
            "it needs a sink at least, such as `file`",
        );
    };
    if let Some((alias, _)) = others
        .iter()
        .find(|(_, stage)| stage.kind == StageKind::Sink)
    {
        return match description.kind {
            StageKind::Sink => refuse(
                format!("`{alias}` and `{last}` are both sinks"),
                "a pipeline has one sink, at its end",
            ),
            _ => refuse(
                format!("`{last}` follows the sink `{alias}`"),
                &format!("put `{alias}` at the end"),
            ),
        };
    }
    match description.kind {
        StageKind::Sink => Ok(()),
        _ => refuse(
            format!("the pipeline ends with `{last}`, which is no sink"),
            "add a sink, such as `file`",
        ),
    }
}

fn refuse(what: String, hint: &str) -> Result<()> {
    Err(PipelineError::Config {
        what,
        hint: hint.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pipeline::{Door, ThreadModel};

    fn stage(kind: StageKind, capability_bits: u64) -> StageDescription {
        StageDescription {
            name: "x".into(),
            kind,
            version: "1".into(),
            abi_version: (1, 0),
            threads: ThreadModel::Parallel,
            capabilities: Vec::new(),
            summary: String::new(),
            params: Vec::new(),
            path: "/x".into(),
            door: Door::C,
            capability_bits,
        }
    }

    fn verdict(aliases: &str) -> String {
        let lz4 = stage(StageKind::Transform, capability::COMPRESSES);
        let aes = stage(StageKind::Transform, capability::ENCRYPTS);
        let md5 = stage(StageKind::Checksum, 0);
        let file = stage(StageKind::Sink, 0);
        let find = |alias: &str| match alias {
            "lz4" => &lz4,
            "aes" => &aes,
            "md5" => &md5,
            _ => &file,
        };
        let stages: Vec<_> = aliases
            .split_terminator(',')
            .map(|alias| (alias, find(alias)))
            .collect();
        match check(&stages) {
            Ok(()) => "ok".into(),
            Err(e) => format!("{e} / {}", e.hint().unwrap_or_default()),
        }
    }

    #[test]
    fn good_orders() {
        for good in [
            "file",
            "lz4,file",
            "lz4,aes,file",
            "md5,lz4,aes,md5,file",
            "lz4,lz4,file",
        ] {
            assert_eq!(verdict(good), "ok", "{good}");
        }
    }

    #[test]
    fn bad_orders_say_what_to_do() {
        let cases = [
            (
                "",
                "the pipeline has no stage / it needs a sink at least, such as `file`",
            ),
            (
                "lz4",
                "the pipeline ends with `lz4`, which is no sink / add a sink, such as `file`",
            ),
            (
                "file,lz4",
                "`lz4` follows the sink `file` / put `file` at the end",
            ),
            (
                "file,tmpfs",
                "`file` and `tmpfs` are both sinks / a pipeline has one sink, at its end",
            ),
            (
                "aes,md5,lz4,file",
                "`lz4` compresses behind `aes`, which encrypts: encrypted bytes do not get shorter / put `lz4` before `aes`",
            ),
        ];
        for (aliases, message) in cases {
            assert_eq!(verdict(aliases), message);
        }
        let many = format!("{}file", "md5,".repeat(16));
        assert_eq!(verdict(&many), "17 stages are more than 16 / ");
        assert_eq!(verdict(&many[4..]), "ok");
    }
}
