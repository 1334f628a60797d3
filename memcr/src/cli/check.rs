//! `check`: what this kernel offers, and what memcr does without each.

use serde_json::json;

use crate::sys::features::{Feature, probe_all};
use memcr_text::Out;
use memcr_text::Table;

/// Prints every kernel feature that memcr knows of.
pub(super) fn run(as_json: bool, out: &mut Out) {
    let features = probe_all();
    let can_checkpoint = !features
        .iter()
        .any(|feature| feature.is_required && feature.missing.is_some());
    if as_json {
        return out.json(&json!({ "can_checkpoint": can_checkpoint, "features": features }));
    }
    let mut table = Table::new([
        "FEATURE",
        "STATE",
        "WHAT IT IS, AND WHAT MEMCR DOES WITHOUT IT",
    ]);
    for feature in &features {
        table.row([
            feature.name.into(),
            state(feature).into(),
            feature.what.into(),
        ]);
        let reason = feature.missing.as_ref().map(|reason| format!("{reason}; "));
        let without = format!(
            "  {}without: {}",
            reason.unwrap_or_default(),
            feature.without
        );
        table.row([String::new(), String::new(), without]);
    }
    out.line(table);
    if !can_checkpoint {
        out.line("memcr cannot checkpoint anything here");
    }
}

fn state(feature: &Feature) -> &'static str {
    match (&feature.missing, feature.is_required) {
        (None, _) => "ok",
        (Some(_), true) => "missing, needed",
        (Some(_), false) => "missing",
    }
}
