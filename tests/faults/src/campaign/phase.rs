//! The commands of memcr, each with what has to be done before.

use crate::subject::Subject;
use memcr_harness::{Context, Memcr, Result};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A command that a target lives through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `memcr -p PID -n`.
    Whole,
    /// `memcr checkpoint PID`.
    Checkpoint,
    /// `memcr restore PID` of what `memcr checkpoint PID` has stored.
    Restore,
    /// `memcr recover PID` of what a killed `memcr -p PID` has left.
    Recover,
}

/// All of them.
pub(crate) const PHASES: [Phase; 4] = [
    Phase::Whole,
    Phase::Checkpoint,
    Phase::Restore,
    Phase::Recover,
];

impl Phase {
    /// The name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Whole => "-p",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
            Self::Recover => "recover",
        }
    }

    /// Brings a running target to where the command can begin.
    pub(crate) fn prepare(self, subject: &Subject) -> Result {
        let pid = subject.pid();
        match self {
            Self::Whole | Self::Checkpoint => Ok(()),
            Self::Restore => subject.rig.checkpoint(pid).run()?.expect(0),
            Self::Recover => {
                let held = subject.rig.memcr(pid).hold()?;
                held.signal(Signal::KILL)?;
                held.finish().map(drop)
            }
        }
    }

    /// The command.
    pub(crate) fn command(self, subject: &Subject) -> Memcr {
        let (rig, pid) = (&subject.rig, subject.pid());
        match self {
            Self::Whole => rig.memcr(pid).arg("-n"),
            Self::Checkpoint => rig.checkpoint(pid),
            Self::Restore => rig.restore(pid),
            Self::Recover => rig.recover(pid),
        }
    }

    /// Brings a target back that the command has left held.
    pub(crate) fn tidy(self, subject: &Subject) -> Result {
        match self {
            Self::Checkpoint => subject.rig.restore(subject.pid()).run()?.expect(0),
            _ => Ok(()),
        }
    }

    /// How long the command takes: the median of three.
    pub(crate) fn duration(self, subject: &Subject) -> Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..3 {
            self.prepare(subject)?;
            let begin = Instant::now();
            self.command(subject).run()?.expect(0)?;
            times.push(begin.elapsed());
            self.tidy(subject)?;
        }
        times.sort();
        Ok(times[1])
    }

    /// How often the command passes each fault point, those that it does not pass left out.
    pub(crate) fn passes(self, subject: &Subject) -> Result<Vec<(String, u64)>> {
        self.prepare(subject)?;
        let finished = self.command(subject).with_fault("count").run()?;
        finished.expect(0)?;
        self.tidy(subject)?;
        let mut passes = Vec::new();
        for line in finished.err.lines() {
            if let Some((name, n)) = line.split_once(' ')
                && name.contains('.')
                && let Ok(n) = n.parse::<u64>()
                && n > 0
            {
                passes.push((name.to_owned(), n));
            }
        }
        match passes.is_empty() {
            true => Err(format!("no counts of fault points\n{finished}")).context(self.name()),
            false => Ok(passes),
        }
    }
}
