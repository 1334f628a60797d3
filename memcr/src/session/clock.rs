//! How long each phase took.

use std::time::{Duration, Instant};

use serde::Serialize;

/// A clock that is told when a phase ends.
#[derive(Debug)]
pub struct PhaseClock {
    last: Instant,
    phases: Vec<Phase>,
}

/// One phase and its length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Phase {
    /// Name of the phase.
    pub name: &'static str,
    /// Its length, milliseconds.
    pub millis: f64,
}

impl PhaseClock {
    /// Starts the first phase.
    #[must_use]
    pub fn start() -> Self {
        Self {
            last: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// Ends the phase that runs, under its name, and starts the next one.
    pub fn done(&mut self, name: &'static str) {
        self.done_at(name, Instant::now());
    }

    /// The same, for one that ended before `done` could be called.
    pub fn done_at(&mut self, name: &'static str, end: Instant) {
        self.phases.push(Phase {
            name,
            millis: millis(end.saturating_duration_since(self.last)),
        });
        self.last = end;
    }

    /// All phases that ended.
    #[must_use]
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Length of all phases from the one called `name` on, milliseconds.
    #[must_use]
    pub fn millis_since(&self, name: &str) -> f64 {
        self.phases
            .iter()
            .skip_while(|phase| phase.name != name)
            .map(|phase| phase.millis)
            .sum()
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
