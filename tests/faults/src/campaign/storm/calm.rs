//! After the storm: everything restored, and nothing left.

use super::World;
use super::client::PATIENCE;
use super::daemon::{Daemon, ended_well, processes_of};
use memcr_client::{Answer, Choice, Client, ClientError, Subject};
use memcr_harness::wait::{until, until_some};
use memcr_harness::{Context, Result, ensure, proc};
use rustix::process::Signal;

/// Asks for every target until none is held, nor on its way there.
///
/// # Errors
/// When one stays held.
pub(super) fn restore_all(world: &World) -> Result {
    let mut client = connect(world)?;
    for pid in world.pids() {
        let mut last = String::new();
        until(&format!("process {pid} to be restored"), || {
            let said = client.restore(Subject::Pid(pid), None);
            last = said
                .as_ref()
                .map_or_else(told, |answer| format!("{:?}", answer.object));
            let status = client.status(Some(pid));
            let is_none = |it: Answer| it.object.get("state").is_some_and(|state| state == "none");
            status.is_ok_and(is_none) || !proc::lives(pid.cast_unsigned())
        })
        .context(&last)?;
    }
    Ok(())
}

/// Checkpoints every target.
///
/// # Errors
/// When one is not held then.
pub(super) fn hold_all(world: &World) -> Result {
    let mut client = connect(world)?;
    for pid in world.pids() {
        let said = client.checkpoint(Subject::Pid(pid), Choice::default(), None);
        said.map_err(|error| told(&error))?;
    }
    Ok(())
}

/// Waits until the daemon knows every target as held; answers how many it knows.
///
/// # Errors
/// When it does not come to know all.
pub(super) fn await_known(world: &World) -> Result<usize> {
    let mut client = connect(world)?;
    until_some("the new daemon to know what is held", || {
        let answer = client.list().ok()?;
        let sessions = answer.object.get("sessions")?.as_array()?;
        let n_held = sessions.iter().filter(|it| it["state"] == "held").count();
        (n_held >= world.marks.len()).then_some(n_held)
    })
}

/// No image and no journal. Those of sessions that a killed daemon had are looked at
/// every second.
///
/// # Errors
/// What is left.
pub(super) fn nothing_left(daemon: &Daemon) -> Result {
    let mut left = Vec::new();
    until("images and journals to be gone", || {
        left = daemon.place().left();
        left.is_empty()
    })
    .context(format!("{left:?}"))
}

/// Ends the daemon, which has nothing to do any more: no process of it is left.
///
/// # Errors
/// When it does not end well, or something is left.
pub(super) fn the_end(mut daemon: Daemon) -> Result {
    let status = daemon.end(Signal::TERM)?;
    ensure(ended_well(status), || {
        format!("told to end, the daemon ended with {status}")
    })?;
    let mut left = Vec::new();
    until("every process of the daemons to be gone", || {
        left = processes_of(daemon.place());
        left.is_empty()
    })
    .context(format!("{left:?}"))?;
    let panics = daemon.place().panics()?;
    ensure(panics.is_empty(), || format!("{panics:#?}"))?;
    nothing_left(&daemon)
}

/// Keys that memcr has in the kernel's keyrings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    /// Of images that are complete.
    n_lasting: usize,
    /// Of images in the making: the kernel removes those in a day.
    n_drafts: usize,
}

impl Keys {
    /// # Errors
    /// When they cannot be read.
    pub(super) fn now() -> Result<Self> {
        const FILE: &str = "/proc/keys";
        let text = std::fs::read_to_string(FILE).context(FILE)?;
        // serial, flags, usage, timeout, …
        let ours = text.lines().filter(|line| line.contains(" memcr:"));
        let timeouts: Vec<_> = ours.map(|line| line.split_whitespace().nth(3)).collect();
        let n_lasting = timeouts.iter().filter(|it| **it == Some("perm")).count();
        Ok(Self {
            n_lasting,
            n_drafts: timeouts.len() - n_lasting,
        })
    }

    /// No more than before, but for a draft for each session's process that was killed:
    /// nobody else knew of its key. The kernel takes its time to remove them.
    ///
    /// # Errors
    /// When some are left.
    pub(super) fn expect_none_left(self, n_killed: usize) -> Result {
        let mut now = Self::now()?;
        let what = "the keys of the images to be gone";
        until(what, || {
            now = Self::now().unwrap_or(now);
            now.n_lasting <= self.n_lasting && now.n_drafts <= self.n_drafts + n_killed
        })
        .context(format!(
            "{now:?} after {n_killed} kills, and {self:?} before"
        ))?;
        println!(
            "keys of killed sessions: {}",
            now.n_drafts.saturating_sub(self.n_drafts)
        );
        Ok(())
    }
}

fn connect(world: &World) -> Result<Client> {
    let location = world.locations.first().ok_or("no location")?;
    Client::connect_with(location, PATIENCE).map_err(|error| told(&error).into())
}

fn told(error: &ClientError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
