//! CRIU, as a program: the target ends, its image goes to a tmpfs, another process with the
//! same pid comes of it.
//!
//! ```text
//!   bench ══pipe══▶ target ══pipe══▶ bench
//!     │ keeps the target's two ends open meanwhile, or the pipes would be gone …
//!     ├ criu dump ─────▶ the target ends, and is waited for: its pid is free
//!     └ criu restore ──▶ a child of ours; … and passes them on: --inherit-fd
//! ```

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use memcr_harness::{Context, Result, Trouble, ensure, proc};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use tempfile::TempDir;

use super::{Traveller, Trip};
use crate::args::Args;
use crate::stat::millis;

/// Lines of CRIU's messages that are shown.
const N_LINES: usize = 3;

/// Dumps and restores a target of its own.
pub(super) fn trip(program: &Path, size_mib: u64, args: &Args) -> Result<Trip> {
    let images = tempfile::Builder::new()
        .prefix("memcr-criu-")
        .tempdir_in(args.tmpfs_dir())?;
    let mut target = Traveller::ready(size_mib, args)?;
    let pid = target.victim.pid();
    let ends = [End::open(pid, 0)?, End::open(pid, 1)?];
    let begin = Instant::now();
    let mut dump = criu(program, "dump", &images);
    run(dump.args(["--tree", &pid.to_string()]))?;
    let status = target.victim.exit_status()?;
    let out_millis = millis(begin.elapsed());
    ensure(!status.success(), || format!("criu dump left it {status}"))?;

    let held_bytes = len_bytes(&images)?;
    let won_kib = target.away()?;
    let mut restore = criu(program, "restore", &images);
    restore.args(["--restore-detached", "--restore-sibling"]);
    for end in &ends {
        restore.args(["--inherit-fd", &end.word()]);
        // Only this program is to have it; the target gets it from there.
        fcntl_setfd(&end.file, FdFlags::empty()).context("pass a descriptor on")?;
    }
    target.call()?;
    let begin = Instant::now();
    let criu = restore
        .stderr(Stdio::piped())
        .spawn()
        .context("criu restore")?;
    drop(ends);
    let restored = Restored(proc::handle(pid)?);
    let back = target.back(begin);
    said_well(
        "criu restore",
        &criu.wait_with_output().context("criu restore")?,
    )?;
    let (word_millis, read_millis) = back?;
    target.verify(args)?;
    drop(restored);
    Ok(Trip {
        out_millis,
        word_millis,
        read_millis,
        held_bytes,
        won_kib,
    })
}

/// What it says its version is; `None` if it is not there.
pub(super) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).replace("Version:", "");
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Our own descriptor of a pipe's end that the target has.
struct End {
    file: File,
    /// As CRIU calls it: `pipe:[N]`.
    name: String,
}

impl End {
    fn open(pid: u32, fd: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let name = fs::read_link(&path).context(&path)?;
        let file = if fd == 0 {
            File::open(&path)
        } else {
            File::options().write(true).open(&path)
        };
        Ok(Self {
            file: file.context(&path)?,
            name: name.to_string_lossy().into_owned(),
        })
    }

    fn word(&self) -> String {
        format!("fd[{}]:{}", self.file.as_fd().as_raw_fd(), self.name)
    }
}

/// The process that CRIU has made: a child of ours, whose pid nobody else can get before we
/// have waited for it. Ended on drop.
struct Restored(Pid);

impl Drop for Restored {
    fn drop(&mut self) {
        // Errors: it never came to be, and no child of ours has this pid.
        if let Ok(None) = waitpid(Some(self.0), WaitOptions::NOHANG) {
            let _ = rustix::process::kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }
}

fn criu(program: &Path, verb: &str, images: &TempDir) -> Command {
    let mut command = Command::new(program);
    // Its session is ours, which does not go with it: that is a "shell job". Errors only.
    command
        .args([verb, "--shell-job", "-v1", "--images-dir"])
        .arg(images.path());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn run(command: &mut Command) -> Result {
    match command.output() {
        Ok(output) => said_well("criu dump", &output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let why = "criu is not installed (apt-get install criu)";
            Err(Trouble::Skipped(why.into()))
        }
        Err(error) => Err(Trouble::Failed(format!("criu: {error}"))),
    }
}

fn said_well(what: &str, output: &std::process::Output) -> Result {
    ensure(output.status.success(), || {
        let said = String::from_utf8_lossy(&output.stderr);
        let mut lines: Vec<&str> = said.lines().map(str::trim).collect();
        lines.dedup();
        lines.truncate(N_LINES);
        format!("{what}: {}: {}", output.status, lines.join("; "))
    })
}

/// RAM that the files in a tmpfs take.
fn len_bytes(images: &TempDir) -> Result<u64> {
    let mut len_bytes = 0;
    for file in fs::read_dir(images.path())? {
        len_bytes += file?.metadata()?.blocks() * 512;
    }
    Ok(len_bytes)
}
