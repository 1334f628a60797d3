//! What a checkpoint and a restore did, in lines for people.

use std::fmt::Display;

use crate::checkpoint::CheckpointReport;
use crate::pipeline::LinkDescription;
use crate::restore::RestoreReport;
use crate::session::Phase;
use memcr_text::Out;
use memcr_text::units;

/// Prints what a checkpoint did.
pub(super) fn checkpoint(report: &CheckpointReport, stages: &[LinkDescription], out: &mut Out) {
    let words =
        [("thread", report.n_threads), ("mapping", report.n_vmas)].map(|(word, n)| count(n, word));
    out.line(format_args!(
        "process {} is held after {} of standing still ({})",
        report.pid,
        units::millis(report.frozen_millis),
        words.join(", "),
    ));
    fact(
        out,
        "RSS",
        format_args!(
            "{} before, {} held",
            units::bytes(report.rss_before_bytes),
            units::bytes(report.rss_held_bytes)
        ),
    );
    fact(
        out,
        "stored",
        format_args!(
            "{} as {}, ratio {:.2}; {} of zeros not stored",
            units::bytes(report.raw_bytes),
            units::bytes(report.image_bytes),
            report.ratio,
            units::bytes(report.zero_bytes),
        ),
    );
    let stages: Vec<&str> = stages.iter().map(|stage| stage.alias.as_str()).collect();
    fact(
        out,
        "image",
        format_args!("{} ({})", report.image, stages.join(",")),
    );
    if report.dropped_file_bytes > 0 {
        fact(
            out,
            "dropped",
            format_args!(
                "{} of clean file pages",
                units::bytes(report.dropped_file_bytes)
            ),
        );
    }
    let left: Vec<String> = report
        .left_bytes
        .iter()
        .filter(|(_, len_bytes)| **len_bytes > 0)
        .map(|(reason, len_bytes)| format!("{} {}", units::bytes(*len_bytes), reason.describe()))
        .collect();
    if !left.is_empty() {
        fact(out, "left", left.join(", "));
    }
    if !report.guarded {
        let what = "none is to be had: should memcr be killed, so is the process";
        fact(out, "guard", what);
    }
    phases(out, &report.phases);
}

/// Prints what a restore did.
pub(super) fn restore(report: &RestoreReport, out: &mut Out) {
    let total: f64 = report.phases.iter().map(|phase| phase.millis).sum();
    out.line(format_args!(
        "process {} is restored after {}",
        report.pid,
        units::millis(total)
    ));
    fact(
        out,
        "RSS",
        format_args!("{} after", units::bytes(report.rss_after_bytes)),
    );
    phases(out, &report.phases);
}

/// Says what somebody should look at after a restore that worked.
pub(super) fn remarks(report: &RestoreReport) {
    if report.truncated_bytes > 0 {
        tracing::warn!(
            "{} of process {} are behind the end of their file now, which was cut short",
            units::bytes(report.truncated_bytes),
            report.pid
        );
    }
    if let Some(left) = &report.image_left {
        tracing::warn!("something of the session stays behind: {left}");
    }
}

fn phases(out: &mut Out, phases: &[Phase]) {
    let words: Vec<String> = phases
        .iter()
        .map(|phase| format!("{} {}", phase.name, units::millis(phase.millis)))
        .collect();
    fact(out, "phases", words.join(", "));
}

fn fact(out: &mut Out, name: &str, text: impl Display) {
    out.line(format_args!("  {name:8} {text}"));
}

fn count(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}
