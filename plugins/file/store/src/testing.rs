//! Helpers of tests. What a test needs and this machine has not, it says here.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Uid;
use tempfile::TempDir;

/// Says that a test cannot run here. The built-in test harness counts it as passed; with
/// `MEMCR_TEST_REQUIRE=all` it fails instead.
///
/// # Panics
/// With `MEMCR_TEST_REQUIRE=all`.
pub fn skip(reason: &str) {
    assert!(
        std::env::var("MEMCR_TEST_REQUIRE").as_deref() != Ok("all"),
        "skipped, but required: {reason}"
    );
    eprintln!("skipped: {reason}");
}

/// Whether the test runs as root; says so when it is skipped for it.
#[must_use]
pub fn is_root(why: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(&format!("needs root: {why}"));
    }
    root
}

/// Runs `test` as a user without any rights, on a thread of its own.
///
/// # Panics
/// Without the right to become another user; when `test` panics.
#[allow(clippy::expect_used)] // See above: checked by `is_root`.
pub fn as_nobody<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let nobody = Uid::from_raw(54_321);
    std::thread::scope(|scope| {
        let run = || {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody)
                .expect("become another user");
            test()
        };
        scope
            .spawn(run)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A tmpfs of the test's own, unmounted at the end.
#[derive(Debug)]
pub struct TestTmpfs {
    dir: TempDir,
}

impl TestTmpfs {
    /// Mounts one with these options, such as `size=1m`; `None` (said) if it may not.
    ///
    /// # Panics
    /// If there is no temporary directory to mount it at.
    #[must_use]
    #[allow(clippy::expect_used)] // A test that cannot have a directory has failed.
    pub fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = CString::new(options).expect("options without NUL");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match rustix::mount::mount("memcr-test", dir.path(), "tmpfs", flags, data.as_c_str()) {
            Ok(()) => Some(Self { dir }),
            Err(e) => {
                skip(&format!("cannot mount a tmpfs with {options}: {e}"));
                None
            }
        }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for TestTmpfs {
    fn drop(&mut self) {
        // Detached, so that a failed test whose files are still open leaves nothing.
        let _ = rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}
