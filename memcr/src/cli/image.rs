//! `inspect` and `verify`: what an image holds, and whether it holds together.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::failure::Failure;
use crate::pipeline::{Cancel, Pipeline, Progress, SearchPath, StageSpec};
use crate::sink::{self, ImageSummary, StageSummary};
use memcr_text::{Out, harmless, units};

/// Prints what an image says of itself. No plugin is loaded.
pub(super) fn inspect(path: &Path, as_json: bool, out: &mut Out) -> Result<(), Failure> {
    let summary = sink::inspect(path)?;
    if as_json {
        out.json(&summary);
    } else {
        out.line(Description(&summary));
    }
    Ok(())
}

/// Reads every byte of an image through the pipeline that it describes.
pub(super) fn verify(
    path: &Path,
    search: &SearchPath,
    overrides: &[StageSpec],
    workers: Option<NonZeroUsize>,
    as_json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let image = Pipeline::open_file(path, search, overrides)?.with_workers(workers);
    let stats = image.verify(Cancel::new(), Arc::new(Progress::default()))?;
    if as_json {
        out.json(&json!({ "ok": true, "image": path.to_string_lossy(), "verified": stats }));
    } else {
        out.line(format_args!(
            "{}: ok, {} in {} chunks, {} stored",
            path.display(),
            units::bytes(stats.raw_bytes),
            stats.n_chunks,
            units::bytes(stats.stored_bytes),
        ));
    }
    Ok(())
}

/// The summary for people, line by line: there may be many mappings.
struct Description<'a>(&'a ImageSummary);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = head(self.0).map(|line| harmless(&line));
        f.write_str(&head.join("\n"))?;
        let mut vmas = self.0.vmas.iter();
        vmas.try_for_each(|vma| write!(f, "\n{}", harmless(&format!("  {vma}"))))
    }
}

/// What stands before the mappings. What an image says, somebody else may have written.
fn head(image: &ImageSummary) -> [String; 7] {
    let facts = &image.facts;
    let stages: Vec<String> = image.pipeline.iter().map(stage).collect();
    [
        format!(
            "image     {} (format {}.{})",
            facts.image_id, facts.version.0, facts.version.1
        ),
        format!("target    pid {} {} ({})", image.pid, image.comm, image.exe),
        format!("created   {}", units::date(facts.created)),
        format!("pipeline  {}", stages.join(", ")),
        format!(
            "pages     {} stored, {} of zeros, page size {}",
            facts.n_pages,
            facts.n_zero_pages,
            units::bytes(facts.page_size.into())
        ),
        format!(
            "bytes     {} as {} in {} chunks, ratio {:.2}; whole image {}",
            units::bytes(facts.raw_bytes),
            units::bytes(facts.stored_bytes),
            facts.n_chunks,
            image.ratio,
            units::bytes(facts.image_bytes)
        ),
        format!("mappings  {}", facts.n_vmas),
    ]
}

fn stage(stage: &StageSummary) -> String {
    let params = stage.params.iter();
    let params: String = params
        .map(|(key, value)| format!(" {key}={value}"))
        .collect();
    format!("{} ({} {}{params})", stage.alias, stage.name, stage.version)
}

#[cfg(test)]
mod tests {
    use super::Description;
    use crate::sink::{ImageFacts, ImageSummary, Protection, StageSummary, VmaRecord, VmaTable};

    fn summary(text: &str) -> ImageSummary {
        let mut vmas = VmaTable::new();
        vmas.push(&VmaRecord {
            start: 0x1000,
            end: 0x2000,
            protection: Protection::default(),
            offset: 0,
            dev_major: 0,
            dev_minor: 0,
            inode: 0,
            name: text.as_bytes(),
        });
        ImageSummary {
            facts: ImageFacts::default(),
            writer: text.into(),
            pipeline: vec![StageSummary {
                alias: text.into(),
                name: "lz4".into(),
                version: text.into(),
                params: vec![(text.into(), text.into())],
            }],
            pid: 1,
            start_time: 0,
            boot_id: text.into(),
            comm: text.into(),
            exe: text.into(),
            vmas,
            ratio: 0.0,
        }
    }

    #[test]
    fn no_image_gives_the_terminal_orders() {
        let orders = "a\u{1b}]0;b\u{7}\r\n\u{9b}2J";
        let said = Description(&summary(orders)).to_string();
        let plain = Description(&summary("a")).to_string();
        assert_eq!(said.lines().count(), plain.lines().count(), "{said:?}");
        let is_order = |c: char| c.is_control() && c != '\n';
        assert!(!said.contains(is_order), "{said:?}");
        assert!(said.contains("a\\u{1b}]0;b"), "{said:?}");
    }
}
