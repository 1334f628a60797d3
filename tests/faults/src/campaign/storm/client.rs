//! Clients that want something of the daemon, each in its own way, one thing after the
//! other.

use super::World;
use super::raw;
use super::tally::{Fair, Said};
use crate::random::Random;
use memcr_client::{
    Answer, Ask, Choice, Client, ClientError, Command, Compress, Location, Patience, Subject,
    legacy,
};
use memcr_harness::proc;
use std::time::{Duration, Instant};

/// Nothing in a storm takes so long, unless it is forgotten.
pub(super) const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(20),
    answer: Some(Duration::from_secs(60)),
};

/// Longest time between two requests of a client.
const PAUSE_MILLIS: u64 = 60;

/// One of many.
pub(super) struct Guest<'a> {
    pub(super) world: &'a World,
    pub(super) random: Random,
}

/// Something that a client does, and how often it does beside the others.
type Act = (u64, fn(&mut Guest<'_>));

const ACTS: &[Act] = &[
    (24, |guest| guest.checkpoint()),
    (14, |guest| guest.restore()),
    (6, |guest| guest.abort()),
    (3, |guest| guest.tree()),
    (10, |guest| guest.old_checkpoint()),
    (6, |guest| guest.old_restore()),
    (5, |guest| guest.status()),
    (4, |guest| guest.list()),
    (1, |guest| guest.stages()),
    (2, raw::many_at_once),
    (6, raw::hang_up),
    (3, raw::rubbish),
    (1, raw::silence),
    (3, raw::half),
];

/// Asks until the storm is over.
pub(super) fn run(world: &World, random: Random) {
    let mut guest = Guest { world, random };
    let n_acts = ACTS.iter().map(|(n, _)| n).sum();
    while !world.is_over() {
        // Most wait for a new daemon; some find out what it is like without one.
        let is_patient = guest.random.below(4) > 0;
        while is_patient && !world.life().is_multiple_of(2) && !world.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut left = guest.random.below(n_acts);
        for (n, act) in ACTS {
            if left < *n {
                act(&mut guest);
                break;
            }
            left -= n;
        }
        // Not synchronisation: clients are not always at it.
        std::thread::sleep(Duration::from_millis(guest.random.below(PAUSE_MILLIS)));
    }
}

impl Guest<'_> {
    fn checkpoint(&mut self) {
        let ask = self.checkpoint_ask();
        self.own("checkpoint", &[0, 8, 13], ask);
    }

    fn restore(&mut self) {
        let timeout = self.timeout();
        let subject = Subject::Pid(self.pid());
        // Not done in time, if a time was said.
        let codes: &[i32] = if timeout.is_some() {
            &[0, 12, 14]
        } else {
            &[0, 14]
        };
        self.own("restore", codes, Ask::Restore { subject, timeout });
    }

    fn abort(&mut self) {
        let subject = Subject::Pid(self.pid());
        self.own("abort", &[0, 13, 14], Ask::Abort { subject });
    }

    /// A target has no children: as a group it is one.
    fn tree(&mut self) {
        let subject = Subject::Tree(self.pid());
        let ask = match self.random.below(3) {
            0 => Ask::Checkpoint {
                subject,
                choice: Choice::default(),
                timeout: self.timeout(),
            },
            1 => Ask::Restore {
                subject,
                timeout: None,
            },
            _ => Ask::Abort { subject },
        };
        self.own("checkpoint … of a tree", &[0, 8, 13, 14], ask);
    }

    fn status(&mut self) {
        let pid = (self.random.below(2) == 0).then(|| self.pid());
        self.own("status", &[0], Ask::Status { pid });
    }

    fn list(&mut self) {
        self.own("list", &[0], Ask::List);
    }

    fn stages(&mut self) {
        self.own("stages", &[0], Ask::Stages);
    }

    fn old_checkpoint(&mut self) {
        let (location, pid) = (self.location(), self.pid());
        let life = self.world.life();
        match self.random.below(2) {
            0 => {
                let said = legacy::v1(&location, PATIENCE, Command::Checkpoint, pid);
                self.old("v1 checkpoint", life, &said);
            }
            _ => {
                let compress = self.compress();
                let dir = self.dir().map(|dir| dir.to_string_lossy().into_owned());
                let dir = dir.as_ref().map(|dir| dir.as_bytes());
                let checkpoint = Command::Checkpoint;
                let said = legacy::v2(&location, PATIENCE, checkpoint, pid, dir, compress);
                self.old("v2 checkpoint", life, &said);
            }
        }
    }

    fn old_restore(&mut self) {
        let (location, pid) = (self.location(), self.pid());
        let life = self.world.life();
        match self.random.below(2) {
            0 => {
                let said = legacy::v1(&location, PATIENCE, Command::Restore, pid);
                self.old("v1 restore", life, &said);
            }
            _ => {
                let said = legacy::v2(&location, PATIENCE, Command::Restore, pid, None, None);
                self.old("v2 restore", life, &said);
            }
        }
    }

    fn old(&self, kind: &'static str, life: u64, said: &Result<memcr_client::Code, ClientError>) {
        let fair = Fair {
            // -1 gives no reason that could be looked at.
            codes: &[0, -1, -2],
            is_steady: self.world.is_steady_since(life),
            lives: true,
        };
        self.world.tally.answered(kind, &Said::old(said), fair);
    }

    /// Asks in our own protocol.
    fn own(&mut self, kind: &'static str, codes: &'static [i32], ask: Ask) {
        let life = self.world.life();
        let pid = pid_of(&ask);
        let mut begin = Instant::now();
        let said = Client::connect_with(&self.location(), PATIENCE).and_then(|mut client| {
            begin = Instant::now();
            client.ask(ask)
        });
        let took = begin.elapsed();
        if kind == "restore" && said.as_ref().is_ok_and(is_restored) {
            self.world.tally.restored(took);
        }
        let fair = Fair {
            codes,
            is_steady: self.world.is_steady_since(life),
            lives: pid.is_none_or(|pid| proc::lives(pid.cast_unsigned())),
        };
        self.world.tally.answered(kind, &Said::own(&said), fair);
    }

    /// A checkpoint with everything that can be said about one.
    pub(super) fn checkpoint_ask(&mut self) -> Ask {
        let pipeline = (self.random.below(4) == 0).then(|| "secret".to_owned());
        let compress = match pipeline {
            None => self.compress(),
            Some(_) => None,
        };
        Ask::Checkpoint {
            subject: Subject::Pid(self.pid()),
            choice: Choice {
                pipeline,
                dir: self.dir(),
                compress,
                idle: self.random.below(4) == 0,
            },
            timeout: self.timeout(),
        }
    }

    /// One of the targets.
    pub(super) fn pid(&mut self) -> i32 {
        let at = self.random.below(self.world.marks.len() as u64);
        self.world.marks[at as usize].pid()
    }

    pub(super) fn location(&mut self) -> Location {
        let at = self.random.below(self.world.locations.len() as u64);
        self.world.locations[at as usize].clone()
    }

    fn dir(&mut self) -> Option<std::path::PathBuf> {
        let at = self.random.below(3);
        self.world.dirs.get(at as usize).cloned()
    }

    fn compress(&mut self) -> Option<Compress> {
        [
            Some(Compress::None),
            Some(Compress::Lz4),
            Some(Compress::Zstd),
            None,
        ][self.random.below(4) as usize]
    }

    /// Most have time; some so little that it is not done.
    fn timeout(&mut self) -> Option<Duration> {
        (self.random.below(4) == 0).then(|| Duration::from_millis(1 + self.random.below(300)))
    }
}

fn pid_of(ask: &Ask) -> Option<i32> {
    match ask {
        Ask::Checkpoint { subject, .. } | Ask::Restore { subject, .. } | Ask::Abort { subject } => {
            match subject {
                Subject::Pid(pid) | Subject::Tree(pid) => Some(*pid),
                Subject::Cgroup(_) => None,
            }
        }
        Ask::Status { pid } => *pid,
        Ask::List | Ask::Stages => None,
    }
}

fn is_restored(answer: &Answer) -> bool {
    let outcome = answer.object.get("outcome");
    outcome.is_some_and(|outcome| outcome == "restored")
}
