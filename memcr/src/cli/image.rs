//! `inspect` and `verify`: what an image holds, and whether it holds together.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::failure::Failure;
use crate::pipeline::{Cancel, Pipeline, Progress, SearchPath, StageSpec};
use crate::sink::{self, ImageSummary};
use memcr_text::Out;
use memcr_text::units;

/// Prints what an image says of itself. No plugin is loaded.
pub(super) fn inspect(path: &Path, as_json: bool, out: &mut Out) -> Result<(), Failure> {
    let summary = sink::inspect(path)?;
    if as_json {
        out.json(&summary);
    } else {
        describe(&summary, out);
    }
    Ok(())
}

/// Reads every byte of an image through the pipeline that it describes.
pub(super) fn verify(
    path: &Path,
    search: &SearchPath,
    overrides: &[StageSpec],
    as_json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let image = Pipeline::open_file(path, search, overrides)?;
    let stats = image.verify(Cancel::new(), Arc::new(Progress::default()))?;
    if as_json {
        out.json(&json!({ "ok": true, "image": path, "verified": stats }));
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

fn describe(image: &ImageSummary, out: &mut Out) {
    let facts = &image.facts;
    out.line(format_args!(
        "image     {} (format {}.{})",
        facts.image_id, facts.version.0, facts.version.1
    ));
    out.line(format_args!(
        "target    pid {} {} ({})",
        image.pid, image.comm, image.exe
    ));
    out.line(format_args!(
        "created   {} seconds after 1970-01-01 UTC",
        facts.created
    ));
    let stages: Vec<String> = image
        .pipeline
        .iter()
        .map(|stage| {
            let params: Vec<String> = stage
                .params
                .iter()
                .map(|(key, value)| format!(" {key}={value}"))
                .collect();
            format!(
                "{} ({} {}{})",
                stage.alias,
                stage.name,
                stage.version,
                params.concat()
            )
        })
        .collect();
    out.line(format_args!("pipeline  {}", stages.join(", ")));
    out.line(format_args!(
        "pages     {} stored, {} of zeros, page size {}",
        facts.n_pages,
        facts.n_zero_pages,
        units::bytes(facts.page_size.into())
    ));
    out.line(format_args!(
        "bytes     {} as {} in {} chunks, ratio {:.2}; whole image {}",
        units::bytes(facts.raw_bytes),
        units::bytes(facts.stored_bytes),
        facts.n_chunks,
        image.ratio,
        units::bytes(facts.image_bytes)
    ));
    out.line(format_args!("mappings  {}", facts.n_vmas));
    image
        .vmas
        .iter()
        .for_each(|vma| out.line(format_args!("  {vma}")));
}
