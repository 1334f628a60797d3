//! A daemon for one request of its own user: many processes as one, from the command line.

use std::time::Instant;

use memcr_wire::Subject;
use serde_json::Value;

use super::child::{Checkpoint, Home};
use super::server::Server;
use super::settings::Settings;
use crate::cli::args::Args;
use crate::cli::config::{self, Config};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::pipeline::Priority;
use crate::session::journal::StateDir;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// All are to be held, with no memcr beside them.
    Checkpoint,
    /// All that were checkpointed as one are to run again.
    Restore,
}

/// Does it, and answers as the daemon would.
///
/// # Errors
/// It cannot be begun.
pub(crate) fn run(
    subject: &Subject,
    wish: Wish,
    args: &Args,
    config: &Config,
    home: Home,
) -> Result<Value, Failure> {
    let failed = |error| Failure::new(Exit::Internal, format!("memcr cannot go on: {error}"));
    let settings = Settings::alone(config, args);
    let choice = config::pipeline(config, &args.job, &args.common.set)?;
    let state_dir = StateDir::open(Some(&home.state_dir))?;
    let name = subject.group().unwrap_or_default();
    let mut server = Server::new(home, settings, state_dir).map_err(failed)?;
    server.be_alone();
    let now = Instant::now();
    let waiter = match wish {
        Wish::Checkpoint => {
            let template = Checkpoint {
                pid: 0,
                started: None,
                args: args.clone(),
                choice,
                // Nobody is restored beside it.
                priority: Priority::Normal,
                permit: None,
                group: None,
                parks: true,
            };
            server.checkpoint_own(subject, &name, template, now)?
        }
        Wish::Restore => server.restore_own(&name, now),
    };
    server.run_for(waiter).map_err(failed)
}
