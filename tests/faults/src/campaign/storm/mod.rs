//! A storm of clients over one daemon, some of them mad; its sessions are killed
//! meanwhile, and so is the daemon itself.
//!
//! ```text
//!   clients ──requests, rubbish, silence──▶ daemon ──▶ sessions ──▶ targets ◀──verify── keepers
//!   chaos ──SIGKILL, SIGTERM, a new one───────┴───────────┘
//!
//!   with restarts ─▶ calm ─▶ all held, SIGKILL: all adopted ─▶ calm
//!                                                               │  one daemon from here on
//!   ┌───────────────────────────────────────────────────────────┘
//!   warm-up ─▶ calm: footprint ─▶ steady ─▶ calm: the same footprint ─▶ SIGTERM: nothing left
//! ```
//!
//! Calm: nobody asks for anything, everything is restored, and every target has checked
//! every byte. The targets check themselves in the storm too, and change what they hold:
//! an image of yesterday would show.
//!
//! | file | what |
//! |---|---|
//! | `client`, `raw` | clients that want something, and clients that do not know how |
//! | `chaos` | kills and restarts |
//! | `keeper` | the targets, and the threads that ask how they are |
//! | `daemon` | the daemon as a process: started, ended, measured |
//! | `calm` | everything restored, and nothing left |
//! | `tally` | what was asked and answered |

mod calm;
mod chaos;
mod client;
mod daemon;
mod keeper;
mod raw;
mod tally;

use crate::Campaign;
use crate::random::Random;
use crate::subject::Outcome;
use daemon::{Daemon, Footprint, Place};
use keeper::Target;
use memcr_client::Location;
use memcr_harness::{Result, Trouble, ensure};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;
use tally::Tally;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Scale {
    n_clients: usize,
    n_targets: usize,
    /// Of all three storms together.
    lasts: Duration,
}

const FULL: Scale = Scale {
    n_clients: 100,
    n_targets: 50,
    lasts: Duration::from_secs(300),
};
const QUICK: Scale = Scale {
    n_clients: 30,
    n_targets: 12,
    lasts: Duration::from_secs(20),
};

/// Threads that ask targets how they are.
const N_KEEPERS: usize = 4;

/// What may be more: what the allocator keeps of what was freed (M_TRIM_THRESHOLD, 128 KiB),
/// what the kernel's counters are late by (a batch of 64 KiB and more for each CPU), pages of
/// the program that were not run before. A leak of a hundred bytes a request is more in the
/// full storm, and a kept connection is a descriptor, of which there may be none.
const SLACK_KIB: u64 = 512;

/// What everybody in the storm knows.
struct World {
    locations: Vec<Location>,
    /// Where clients may want images to be.
    dirs: Vec<std::path::PathBuf>,
    marks: Vec<Mark>,
    tally: Tally,
    /// The storm is over.
    is_over: AtomicBool,
    /// Odd while there is no daemon, or one that is about to end.
    life: AtomicU64,
}

/// A target as others see it.
#[derive(Debug)]
struct Mark {
    /// It is another one when the first was killed.
    pid: AtomicI32,
    /// How often a process was killed that traced it. There are moments in which the
    /// kernel is told to kill the target too then.
    n_struck: AtomicU64,
}

impl Mark {
    fn new(pid: i32) -> Self {
        Self {
            pid: AtomicI32::new(pid),
            n_struck: AtomicU64::new(0),
        }
    }

    fn pid(&self) -> i32 {
        self.pid.load(Ordering::Acquire)
    }
}

impl World {
    fn pids(&self) -> impl Iterator<Item = i32> {
        self.marks.iter().map(Mark::pid)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// Whether the daemon that was there at `life` was there all the time.
    fn is_steady_since(&self, life: u64) -> bool {
        life.is_multiple_of(2) && self.life() == life
    }
}

/// Everything of this kind.
///
/// # Errors
/// When a target or the daemon cannot be started, or the storm does not calm down.
pub(crate) fn run(campaign: &mut Campaign) -> Result {
    let mut scale = campaign.args.choose(FULL, QUICK);
    if let Some(seconds) = campaign.args.seconds {
        scale.lasts = Duration::from_secs(seconds);
    }
    let place = Place::new()?;
    let mut targets = keeper::start(scale.n_targets, &mut campaign.random)?;
    let world = World {
        locations: place.locations(),
        dirs: place.dirs(),
        marks: targets.iter().map(|it| Mark::new(it.pid())).collect(),
        tally: Tally::default(),
        is_over: AtomicBool::new(false),
        life: AtomicU64::new(0),
    };
    let keys = calm::Keys::now()?;
    let daemon = Daemon::start(&place)?;
    let done = story(campaign, scale, &world, daemon, &mut targets);
    println!("{}", world.tally);
    let done = done.and_then(|()| keys.expect_none_left(world.tally.n_killed()));
    let row = "storm over a daemon";
    for what in world.tally.troubles() {
        campaign
            .table
            .count(row, "an answer", &Outcome::Altered(what));
    }
    for target in &mut targets {
        let outcome = target.judge();
        campaign.table.count(row, &target.name(), &outcome);
    }
    let row = "a session killed in it";
    campaign.table.was_busy(row);
    for outcome in world.tally.kills() {
        campaign.table.count(row, "one of them", &outcome);
    }
    if done.is_err() || !campaign.table.is_good() {
        println!("what the daemon said: {}", place.keep_log()?.display());
    }
    done
}

fn story(
    campaign: &mut Campaign,
    scale: Scale,
    world: &World,
    daemon: Daemon,
    targets: &mut [Target],
) -> Result {
    let part = |percent: u32| scale.lasts * percent / 100;
    let mut storm = Storm {
        random: Random::new(campaign.args.seed),
        scale,
        world,
        daemon,
        targets,
    };
    storm.blow(part(40), true)?;
    storm.calm("after the storm with restarts")?;
    storm.adoption()?;
    storm.calm("after the adoption")?;

    storm.blow(part(15), false)?;
    let before = storm.calm("after the warm-up")?;
    storm.blow(part(45), false)?;
    let after = storm.calm("after the storm")?;
    after.expect_like(&before, SLACK_KIB)?;
    calm::the_end(storm.daemon)
}

/// The storm, and what it blows over.
struct Storm<'a> {
    random: Random,
    scale: Scale,
    world: &'a World,
    daemon: Daemon,
    targets: &'a mut [Target],
}

impl Storm<'_> {
    /// Everybody at once, for so long.
    fn blow(&mut self, lasts: Duration, restarts: bool) -> Result {
        let (world, n_clients) = (self.world, self.scale.n_clients);
        world.is_over.store(false, Ordering::Release);
        let mut seed = || Random::new(self.random.below(u64::MAX));
        let clients: Vec<Random> = (0..n_clients).map(|_| seed()).collect();
        let keepers: Vec<Random> = (0..N_KEEPERS).map(|_| seed()).collect();
        let fate = seed();
        let (daemon, targets) = (&mut self.daemon, &mut *self.targets);
        let n_each = targets.len().div_ceil(N_KEEPERS);
        std::thread::scope(|scope| {
            for random in clients {
                scope.spawn(move || client::run(world, random));
            }
            let wards = targets.chunks_mut(n_each).zip(world.marks.chunks(n_each));
            for (random, (targets, marks)) in keepers.into_iter().zip(wards) {
                scope.spawn(move || keeper::run(world, random, targets, marks));
            }
            let chaos = scope.spawn(move || chaos::run(world, fate, daemon, restarts));
            // Not synchronisation: so long it lasts.
            std::thread::sleep(lasts);
            world.is_over.store(true, Ordering::Release);
            let joined = chaos.join();
            let result = joined.unwrap_or_else(|_| Err("chaos has panicked".into()));
            // Keepers may wait for a target that nobody restores any more.
            result.and_then(|()| calm::restore_all(world))
        })
    }

    /// Nothing is held, nothing is left, and every byte is right.
    fn calm(&mut self, when: &str) -> Result<Footprint> {
        calm::restore_all(self.world)?;
        calm::nothing_left(&self.daemon)?;
        for (target, mark) in self.targets.iter_mut().zip(&self.world.marks) {
            target.look_after(self.world, mark, Target::verify);
        }
        let footprint = self.daemon.footprint_at_rest()?;
        println!("{when}: {footprint}; {}", self.world.tally.line());
        Ok(footprint)
    }

    /// The daemon dies when everything is held: the next one knows of everything.
    fn adoption(&mut self) -> Result {
        calm::hold_all(self.world)?;
        chaos::kill_daemon(self.world, &mut self.daemon)?;
        let n_known = calm::await_known(self.world)?;
        ensure(n_known == self.targets.len(), || {
            let n = self.targets.len();
            Trouble::from(format!("the new daemon knows {n_known} of {n} targets")).to_string()
        })
    }
}
