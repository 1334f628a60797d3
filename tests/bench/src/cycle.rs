//! One checkpoint and one restore, timed from outside.
//!
//! ```text
//!   start memcr ──────▶ "press enter to restore"   checkpoint
//!   say a word to the target, which hears it when it runs
//!   Enter ────────────▶ the target answers         restore
//!   Enter ────────────▶ memcr has exited           exit
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use memcr_harness::lines::Lines;
use memcr_harness::memcr::PROMPT;
use memcr_harness::{Context, Result, Trouble, Victim, place, proc};
use serde_json::Value;

use crate::args::Args;
use crate::case::Case;
use crate::cost::{Cost, Held, Meter};
use crate::stat::millis;
use crate::stolen;
use crate::warm::warm;

/// A memcr to measure.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Where its stages are; `None`: it finds them itself.
    stages: Option<PathBuf>,
}

impl Program {
    /// The one the user names, or the one built with this program.
    ///
    /// # Errors
    /// When it does not exist.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let Some(path) = given else {
            let (path, stages) = (place::memcr()?, place::stages()?);
            return Ok(Self { path, stages });
        };
        let path = path.canonicalize().context(path.display())?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        // An installation has its stages where it looks for them; cargo puts them beside.
        let installed = dir.join("../lib/memcr/stages").is_dir();
        let stages = (!installed).then(|| dir.to_owned());
        Ok(Self { path, stages })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // What the developer has configured must not decide over figures.
        command
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", "/nonexistent");
        if let Some(dir) = &self.stages {
            command.env("MEMCR_STAGE_PATH", dir);
        }
        command
    }

    /// A command of the harness, with this program.
    pub(crate) fn run_by(&self, memcr: memcr_harness::Memcr) -> memcr_harness::Memcr {
        let memcr = memcr.program(&self.path);
        match &self.stages {
            Some(dir) => memcr.env("MEMCR_STAGE_PATH", dir),
            None => memcr,
        }
    }

    /// What it says its version is.
    pub(crate) fn version(&self) -> String {
        let output = self.command().arg("--version").output();
        output.map_or_else(
            |error| format!("{}: {error}", self.path.display()),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    }
}

/// What one cycle took.
#[derive(Debug, Clone)]
pub(crate) struct Cycle {
    /// From the start of memcr until the target was held.
    pub(crate) checkpoint_millis: f64,
    /// From Enter until the target ran.
    pub(crate) restore_millis: f64,
    /// What every CPU lost to a host during the one and the other.
    stolen_millis: [f64; 2],
    /// From Enter until memcr had exited.
    pub(crate) exit_millis: f64,
    /// Most that memcr had resident.
    pub(crate) peak_rss_kib: u64,
    /// RAM and CPU.
    pub(crate) cost: Cost,
    /// What memcr reported.
    pub(crate) report: Value,
}

impl Cycle {
    /// What was stolen of every CPU, ms: 0 out, 1 back.
    pub(crate) fn stolen(&self, leg: usize) -> f64 {
        self.stolen_millis[leg]
    }
}

/// Checkpoints and restores a target of its own, of `size_mib`.
///
/// # Errors
/// When anything fails, up to a wrong byte in the target.
pub(crate) fn run(program: &Program, case: &Case, size_mib: u64, args: &Args) -> Result<Cycle> {
    run_on(program, case, size_mib, args, || {
        start_victim(size_mib, args.content())
    })
}

/// As [`run`], with a target that `start` makes, of which `size_mib` are there.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_on(
    program: &Program,
    case: &Case,
    size_mib: u64,
    args: &Args,
    start: impl FnOnce() -> Result<Victim>,
) -> Result<Cycle> {
    let mut victim = start()?;
    let room = (size_mib << 20) as usize;
    // The image, in RAM or in the page cache.
    warm(room)?;
    let meter = Meter::start(victim.pid())?;
    let stolen_before = stolen::millis_per_cpu()?;
    let begin = Instant::now();
    let mut memcr = Memcr::start(program, victim.pid(), &case.words(args))?;
    memcr.until_held()?;
    let checkpoint_millis = millis(begin.elapsed());
    let stolen_out = stolen::millis_per_cpu()? - stolen_before;

    let held = meter.held(memcr.pid(), &case.image(victim.pid(), args))?;
    let peak_held = memcr.peak_rss_kib().unwrap_or(0);
    // The pages of the target.
    warm(room)?;
    // Any question will do; this one is answered without touching the memory.
    victim.tell("where")?;
    let stolen_before = stolen::millis_per_cpu()?;
    let begin = Instant::now();
    memcr.enter()?;
    victim.answer()?;
    let restore_millis = millis(begin.elapsed());
    let stolen_back = stolen::millis_per_cpu()? - stolen_before;
    // memcr is about to remove the image, which takes longer than this look; where it
    // was faster, its peak until it held the target must do.
    let peak_restored = memcr.peak_rss_kib().unwrap_or(0);
    let (report, cost) = memcr.finish_metered(held)?;
    let exit_millis = millis(begin.elapsed());
    if !args.no_verify {
        victim.verify()?;
    }
    Ok(Cycle {
        checkpoint_millis,
        restore_millis,
        stolen_millis: [stolen_out, stolen_back],
        exit_millis,
        peak_rss_kib: peak_held.max(peak_restored),
        cost,
        report,
    })
}

/// A target filled with `content`.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start_victim(size_mib: u64, content: &str) -> Result<Victim> {
    let (size, content) = (format!("size={size_mib}M"), format!("content={content}"));
    Victim::start("memory", &[&size, &content])
}

/// A memcr at work; killed on drop.
pub(crate) struct Memcr {
    child: Child,
    output: Option<Lines>,
    errors: Lines,
}

impl Memcr {
    /// Begins to checkpoint `pid`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(program: &Program, pid: u32, words: &[std::ffi::OsString]) -> Result<Self> {
        let mut command = program.command();
        command.args(["-p", &pid.to_string(), "--json"]).args(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context(program.path.display())?;
        let output = child.stdout.take().map(Lines::of);
        let errors = child.stderr.take().map(Lines::of);
        Ok(Self {
            child,
            output,
            errors: errors.ok_or("a child without stderr")?,
        })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it holds the target.
    ///
    /// # Errors
    /// When it ends without.
    pub(crate) fn until_held(&mut self) -> Result {
        // With `--json` the question for Enter goes to stderr.
        match self.errors.until(PROMPT)? {
            Some(_) => Ok(()),
            None => Err(self.failure("never held the target")),
        }
    }

    /// Has it restore the target.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn enter(&mut self) -> Result {
        let input = self.child.stdin.as_mut().ok_or("its input is closed")?;
        writeln!(input).context("press Enter")
    }

    /// `None` when it has exited.
    fn peak_rss_kib(&self) -> Option<u64> {
        // Not what wait4(2) tells: that counts what this program had when it forked.
        proc::kib(&proc::text(self.child.id(), "status").ok()?, "VmHWM").ok()
    }

    /// Waits for its end; answers its report.
    ///
    /// # Errors
    /// When it failed.
    pub(crate) fn finish(mut self) -> Result<Value> {
        let output = self.output()?;
        self.report(&output)
    }

    /// The same, and what the cycle took.
    fn finish_metered(mut self, held: Held) -> Result<(Value, Cost)> {
        let output = self.output()?;
        let cost = held.over(&self.child)?;
        Ok((self.report(&output)?, cost))
    }

    fn output(&mut self) -> Result<String> {
        self.output.take().map_or(Ok(String::new()), Lines::all)
    }

    fn report(&mut self, output: &str) -> Result<Value> {
        let status = self.child.wait().context("wait for memcr")?;
        if !status.success() {
            return Err(self.failure(&format!("{status}, {output}")));
        }
        serde_json::from_str(output).context(format!("the report of memcr, `{output}`"))
    }

    fn failure(&self, what: &str) -> Trouble {
        Trouble::Failed(format!("memcr: {what}; it said:\n{}", self.errors.text()))
    }
}

impl Drop for Memcr {
    fn drop(&mut self) {
        // A cycle that failed half way: its target dies with it. Errors: both are gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
