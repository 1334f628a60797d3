//! How much the workers of a pipeline hold back while others want the CPU and the disk.
//!
//! ```text
//!   everybody else on the machine ─┐
//!   a restore, the tracer          ├─▶ Normal ─▶ Low: checkpoints of a daemon ─▶ Idle: --idle
//!   a checkpoint from a shell      ┘
//! ```
//!
//! Only threads that end with the checkpoint are set back, each by itself: a thread without
//! rights never comes forward again, and what it starts begins where it is. So the foreman
//! stays as he is, who outlives the checkpoint, and so does the tracer, in whose moments the
//! target must not be disturbed. A restore starts workers of its own.

use std::io;

use crate::sys::background::{idle_cpu, idle_io, step_back};

/// How workers are scheduled beside everybody else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Priority {
    /// As whoever starts them: restores always.
    #[default]
    Normal,
    /// Behind those of restores beside it: ten steps of nice(2).
    Low,
    /// Behind everybody else on the machine, for the CPU and for the disk.
    Idle,
}

/// How far [`Priority::Low`] is back: a thread beside one of these gets nine tenths of a CPU
/// for which both compete.
const LOW_STEPS: i32 = 10;

impl Priority {
    /// Sets the calling thread back, for the rest of its life.
    ///
    /// # Errors
    /// What the kernel refused; the rest is done all the same.
    pub(super) fn take(self) -> io::Result<()> {
        match self {
            Self::Normal => Ok(()),
            Self::Low => step_back(LOW_STEPS),
            Self::Idle => {
                let cpu = idle_cpu();
                idle_io().and(cpu)
            }
        }
    }
}
