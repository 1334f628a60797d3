//! Counters as a text file that Prometheus reads (the format of its text exposition, for
//! the textfile collector of its node exporter): replaced as a whole, so that nobody ever
//! reads half of it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often the file is written.
const EVERY: Duration = Duration::from_secs(10);

/// The file.
#[derive(Debug)]
pub(super) struct Metrics {
    path: Option<PathBuf>,
    written: Option<Instant>,
    has_failed: bool,
}

impl Metrics {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            written: None,
            has_failed: false,
        }
    }

    /// Writes it, if it is time.
    pub(super) fn write(&mut self, now: Instant, status: impl FnOnce() -> Value) {
        if self
            .written
            .is_some_and(|last| now.duration_since(last) < EVERY)
        {
            return;
        }
        self.written = Some(now);
        self.write_now(status);
    }

    /// Writes it, for the last time.
    pub(super) fn write_now(&mut self, status: impl FnOnce() -> Value) {
        let Some(path) = &self.path else {
            return;
        };
        let done = replace(path, &text(&status()));
        // Said once, not every ten seconds.
        if let Err(error) = &done
            && !self.has_failed
        {
            tracing::warn!("cannot write the metrics to {}: {error}", path.display());
        }
        self.has_failed = done.is_err();
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    // What is there was left by one that died, or is somebody's link to another file: where
    // others may write, ours must be a new one.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::File::create_new(&beside)?;
    // Whoever collects it is another user, and the mask of modes that keeps images private (that
    // of memcr.service) is no matter here.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&beside, path)
}

/// The status of the daemon, a line for each number.
fn text(status: &Value) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, labels: &str, value: &Value| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# TYPE memcr_{name} {kind}\nmemcr_{name}{labels} {value}"
        );
    };
    metric("saved_bytes", "gauge", "", &status["saved_bytes"]);
    if let Some(counters) = status["counters"].as_object() {
        for (name, value) in counters {
            metric(&format!("{name}_total"), "counter", "", value);
        }
    }
    let _ = writeln!(text, "# TYPE memcr_sessions gauge");
    for (state, n) in status["sessions"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "memcr_sessions{{state=\"{state}\"}} {n}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_number_has_its_line() {
        let status = json!({
            "saved_bytes": 7,
            "counters": { "restores": 3 },
            "sessions": { "held": 2 },
        });
        assert_eq!(
            text(&status),
            "# TYPE memcr_saved_bytes gauge\nmemcr_saved_bytes 7\n\
             # TYPE memcr_restores_total counter\nmemcr_restores_total 3\n\
             # TYPE memcr_sessions gauge\nmemcr_sessions{state=\"held\"} 2\n"
        );
    }

    #[test]
    fn others_may_read_it_whatever_the_mask_is() {
        // That of this test alone: others run in threads beside it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.prom");
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        replace(&path, "text").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
    }

    #[test]
    fn no_link_leads_to_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("m.prom"), dir.path().join("other"));
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join("m.prom.new")).unwrap();
        replace(&path, "text").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert!(!path.is_symlink());
    }

    #[test]
    fn the_file_is_replaced_when_it_is_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.prom");
        let mut metrics = Metrics::new(Some(path.clone()));
        let now = Instant::now();
        metrics.write(now, || json!({ "saved_bytes": 1 }));
        metrics.write(now, || json!({ "saved_bytes": 2 }));
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .contains("memcr_saved_bytes 1\n")
        );
        metrics.write(now + EVERY, || json!({ "saved_bytes": 3 }));
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .contains("memcr_saved_bytes 3\n")
        );
    }
}
