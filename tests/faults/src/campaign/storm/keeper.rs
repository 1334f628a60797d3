//! The targets, and the threads that ask them all the time how they are.

use super::{Mark, World};
use crate::random::Random;
use crate::subject::Outcome;
use memcr_harness::{Result, Trouble, Victim, proc};
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Sizes of the targets, MiB.
const SIZES_MIB: [u64; 4] = [4, 6, 10, 16];

/// One in so many has threads that read all of its memory all the time; two CPUs would
/// not bear more. The others check it when they are asked, and get other content.
const PATROL_EVERY: usize = 10;

/// Longest time between two questions of a keeper: all of them together take a quarter of
/// a CPU.
const PAUSE_MILLIS: u64 = 300;

/// A process whose memory is taken and given back, again and again.
pub(super) struct Target {
    victim: Victim,
    kind: &'static str,
    size_mib: u64,
    /// Of the times its tracer was killed: those after which it was well.
    n_survived: u64,
    /// What was wrong first.
    wrong: Option<Trouble>,
}

/// Starts so many.
pub(super) fn start(n: usize, random: &mut Random) -> Result<Vec<Target>> {
    let one = |i: usize| {
        let kind = match i % PATROL_EVERY {
            0 => "patrol",
            _ => "memory",
        };
        let size_mib = SIZES_MIB[random.below(SIZES_MIB.len() as u64) as usize];
        Target::start(kind, size_mib)
    };
    (0..n).map(one).collect()
}

impl Target {
    fn start(kind: &'static str, size_mib: u64) -> Result<Self> {
        let size = format!("size={size_mib}M");
        Ok(Self {
            victim: Victim::start(kind, &[&size, "threads=1"])?,
            kind,
            size_mib,
            n_survived: 0,
            wrong: None,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        // Below 2^22 on every Linux.
        self.victim.pid().cast_signed()
    }

    pub(super) fn name(&self) -> String {
        format!("{} {} of {} MiB", self.kind, self.pid(), self.size_mib)
    }

    /// Does something with it. If it was killed with a process that traced it, another
    /// one takes its place.
    pub(super) fn look_after(&mut self, world: &World, mark: &Mark, act: impl FnOnce(&mut Self)) {
        if self.wrong.is_some() {
            return;
        }
        let n_struck = mark.n_struck.load(Ordering::Acquire);
        act(self);
        // What it survived does not excuse what comes later.
        let is_struck = mark.n_struck.load(Ordering::Acquire) > self.n_survived;
        if self.wrong.is_none() {
            self.n_survived = n_struck;
        } else if is_struck && self.was_killed() {
            world.tally.target_killed(self.name());
            match Self::start(self.kind, self.size_mib) {
                Ok(new) => *self = new,
                Err(trouble) => self.wrong = Some(trouble),
            }
            self.n_survived = mark.n_struck.load(Ordering::Acquire);
            mark.pid.store(self.pid(), Ordering::Release);
        }
        if let Some(trouble) = &self.wrong {
            // At once: what the daemon says about it stands near in its log.
            eprintln!("{}: {trouble}", self.name());
        }
    }

    fn was_killed(&mut self) -> bool {
        let is_gone = !proc::lives(self.victim.pid());
        let status = is_gone.then(|| self.victim.exit_status());
        let signal = status.and_then(|status| status.ok()?.signal());
        signal == Some(Signal::KILL.as_raw())
    }

    /// Lets it look at every byte. Waits while it is held.
    pub(super) fn verify(&mut self) {
        self.try_it(|victim| victim.verify().map(drop));
    }

    fn refill(&mut self, seed: u64) {
        self.try_it(|victim| victim.ask(&format!("refill {seed}")).map(drop));
    }

    fn try_it(&mut self, act: impl FnOnce(&mut Victim) -> Result) {
        if self.wrong.is_none() {
            self.wrong = act(&mut self.victim).err();
        }
    }

    /// The verdict; every byte was looked at last when the storm was over.
    pub(super) fn judge(&mut self) -> Outcome {
        self.verify();
        match self.wrong.take() {
            None => Outcome::Right,
            Some(trouble) if trouble.to_string().contains("WRONG") => {
                Outcome::Wrong(trouble.to_string())
            }
            Some(trouble) => Outcome::Lost(trouble.to_string()),
        }
    }
}

/// Asks `targets`, which have these `marks`, until the storm is over.
pub(super) fn run(world: &World, mut random: Random, targets: &mut [Target], marks: &[Mark]) {
    let n = targets.len() as u64;
    while !world.is_over() {
        let at = random.below(n) as usize;
        let (target, mark) = (&mut targets[at], &marks[at]);
        let seed = random.below(1 << 20);
        target.look_after(world, mark, |target| match random.below(3) {
            0 if target.kind == "memory" => target.refill(seed),
            _ => target.verify(),
        });
        // Not synchronisation: the machine has more to do than this.
        std::thread::sleep(Duration::from_millis(random.below(PAUSE_MILLIS)));
    }
}
