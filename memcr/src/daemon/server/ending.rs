//! What becomes of everything when the daemon is told to end.
//!
//! ```text
//!   SIGTERM ─▶ no new clients, no new work; checkpoints under way are stopped
//!           ─▶ hold: park every target │ restore: a few at a time │ kill: every target
//!           ─▶ what cannot be restored is parked too, no child is left ─▶ the daemon ends
//!   a second SIGTERM ─▶ it ends at once; sessions then park their targets by themselves
//! ```

use std::time::Instant;

use super::Server;
use crate::cli::config::OnStop;

/// How far the end is.
#[derive(Debug)]
pub(super) struct Ending {
    on_stop: OnStop,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody wants it.
    No,
    /// What is under way comes to its end.
    Stopping,
    /// What is held is dealt with.
    Leaving,
    Over,
}

impl Ending {
    pub(super) fn new(on_stop: OnStop) -> Self {
        Self {
            on_stop,
            stage: Stage::No,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::No
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }
}

impl Server {
    /// A signal has come that ends the daemon.
    pub(super) fn told_to_end(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if self.ending.has_begun() {
                tracing::warn!(
                    "signal {} again: ending at once; targets stay held",
                    info.ssi_signo
                );
                self.ending.stage = Stage::Over;
            } else {
                let left = match self.ending.on_stop {
                    OnStop::Hold => "stay held",
                    OnStop::Restore => "are restored",
                    OnStop::Kill => "are killed",
                };
                tracing::info!(
                    "signal {} from process {}: ending; held targets {left}",
                    info.ssi_signo,
                    info.ssi_pid
                );
                self.begin_end();
            }
        }
    }

    /// From now on nothing new is begun.
    pub(in crate::daemon) fn begin_end(&mut self) {
        self.settings.say_stopping();
        self.ending.stage = Stage::Stopping;
        self.listeners.clear();
        self.desk.stop_all();
    }

    /// Goes on with the end, as far as nothing is waited for.
    pub(super) fn go_on_ending(&mut self, now: Instant) {
        if self.ending.stage == Stage::Stopping && !self.desk.is_working() {
            self.ending.stage = Stage::Leaving;
            match self.ending.on_stop {
                OnStop::Kill => self.desk.kill_all(now),
                OnStop::Hold | OnStop::Restore => {}
            }
        }
        if self.ending.stage != Stage::Leaving {
            return;
        }
        let n_left = match self.ending.on_stop {
            OnStop::Restore => {
                let n_at_once = self.settings.limits.n_checkpoints.max(2);
                self.desk.restore_some(n_at_once, now)
            }
            OnStop::Hold | OnStop::Kill => 0,
        };
        if n_left == 0 {
            self.desk.park_all();
        }
        let has_unsent = self.connections.values().any(|it| !it.is_idle());
        if n_left == 0 && !self.desk.is_busy() && !has_unsent {
            self.ending.stage = Stage::Over;
        }
    }
}
