//! The target of the trials, and the verdict on each.

use memcr_harness::wait::within;
use memcr_harness::{Allow, Finished, Result, Rig, Snapshot, Trouble, Victim, proc};
use rustix::process::Signal;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::time::Duration;

/// How long a target may stand still when memcr has ended. Only the slowness of a busy
/// machine is left then.
const GOES_ON: Duration = Duration::from_secs(10);

/// What became of a target.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It lives, every byte is right, it is as before, and nothing is left of memcr.
    Right,
    /// It was killed on purpose, and memcr said so.
    Killed(String),
    /// It lives and its bytes are right, but something else is not as it should be.
    Altered(String),
    /// It ran on a byte that was not its own.
    Wrong(String),
    /// It is dead or stands still, and nobody has said why.
    Lost(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => f.write_str("right"),
            Self::Killed(why) => write!(f, "killed, and said so: {why}"),
            Self::Altered(why) => write!(f, "altered: {why}"),
            Self::Wrong(why) => write!(f, "WRONG MEMORY: {why}"),
            Self::Lost(why) => write!(f, "lost: {why}"),
        }
    }
}

/// What kind of target, and how it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) pipeline: String,
    /// The victim's mode and options.
    pub(crate) mode: &'static str,
    pub(crate) args: &'static [&'static str],
    /// Facts, by prefix, that change without memcr: it maps and unmaps all the time.
    pub(crate) changing: &'static [&'static str],
    /// So does its resident memory.
    pub(crate) rss_changes: bool,
}

impl Kind {
    /// 64 MiB under patrol.
    pub(crate) fn usual(pipeline: &str) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            mode: "patrol",
            args: &["size=64M"],
            changing: &[],
            rss_changes: false,
        }
    }

    /// The same with less memory: where the number of trials matters more.
    pub(crate) fn small(pipeline: &str) -> Self {
        Self {
            args: &["size=8M", "threads=3"],
            ..Self::usual(pipeline)
        }
    }
}

/// A target under patrol.
pub(crate) struct Subject {
    pub(crate) rig: Rc<Rig>,
    pub(crate) victim: Victim,
    /// Where the patrols write what they see; a directory of the target's own.
    own: Rig,
    before: Snapshot,
    kind: Kind,
}

impl Subject {
    /// Starts one with a place of its own.
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let rig = Rc::new(Rig::with(&kind.pipeline)?);
        Self::beside(rig, kind)
    }

    /// Starts one that is stored where others are.
    pub(crate) fn beside(rig: Rc<Rig>, kind: Kind) -> Result<Self> {
        let own = Rig::new()?;
        let dir = format!("dir={}", own.dir_text());
        let mut args = kind.args.to_vec();
        if kind.mode == "patrol" {
            args.push(&dir);
        }
        let mut victim = Victim::start(kind.mode, &args)?;
        victim.verify()?;
        Ok(Self {
            before: Snapshot::take(victim.pid())?,
            rig,
            victim,
            own,
            kind,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.victim.pid()
    }

    /// A new target in the place of this one, with a place of its own.
    fn renew(&mut self) -> Result {
        *self = Self::start(self.kind.clone())?;
        Ok(())
    }

    /// One trial: what memcr said last decides, with the target itself. `codes`: with
    /// which memcr may end when the target lives.
    ///
    /// After anything but `Right` the next trial gets a new target: what one has suffered
    /// must not be counted twice.
    pub(crate) fn trial(
        &mut self,
        codes: &[i32],
        act: impl FnOnce(&mut Self) -> Result<Finished>,
    ) -> Result<Outcome> {
        let outcome = match act(self) {
            Ok(said) => self.judge(&said, codes),
            Err(trouble) => Outcome::Lost(trouble.to_string()),
        };
        if !matches!(outcome, Outcome::Right) {
            self.renew()?;
        }
        Ok(outcome)
    }

    /// The same for a trial in which the target is ended on purpose: nothing may be left.
    pub(crate) fn last_trial(
        &mut self,
        codes: &[i32],
        act: impl FnOnce(&mut Self) -> Result<Finished>,
    ) -> Result<Outcome> {
        let outcome = match act(self) {
            Ok(said) => self.obituary(&said, codes),
            Err(trouble) => Outcome::Lost(trouble.to_string()),
        };
        self.renew()?;
        Ok(outcome)
    }

    /// The verdict on a target that ought to live.
    pub(crate) fn judge(&mut self, said: &Finished, codes: &[i32]) -> Outcome {
        let pid = self.pid();
        let goes_on = || (!matches!(proc::state(pid, pid), Some('t' | 'T'))).then_some(());
        if within(GOES_ON, "it to go on", goes_on).is_err() {
            return Outcome::Lost(format!("it stands still\n{said}"));
        }
        if let Some(addr) = self.seen() {
            return Outcome::Wrong(format!("{addr:#x} was seen wrong\n{said}"));
        }
        if !proc::lives(pid) {
            return self.post_mortem(said);
        }
        if let Err(trouble) = self.victim.verify() {
            return match proc::lives(pid) {
                _ if trouble.to_string().contains("WRONG") => {
                    Outcome::Wrong(format!("{trouble}\n{said}"))
                }
                true => Outcome::Lost(format!("{trouble}\n{said}")),
                // It was on its way out when we looked; how it went decides.
                false => self.post_mortem(said),
            };
        }
        match self.same(said, codes) {
            Ok(()) => Outcome::Right,
            Err(trouble) => Outcome::Altered(format!("{trouble}\n{said}")),
        }
    }

    /// Everything but its bytes.
    fn same(&self, said: &Finished, codes: &[i32]) -> Result {
        let allow = Allow {
            // Pages of code that nobody has run again stay away.
            less_rss: true,
            any_rss: self.kind.rss_changes,
            facts: self.kind.changing,
            ..Allow::default()
        };
        self.before.still(self.pid(), allow)?;
        self.nothing_left()?;
        expect_one_of(said, codes)
    }

    /// Only SIGKILL can come from memcr: a target that found itself wrong exits, one that
    /// ran on wrong code or pointers crashes.
    fn post_mortem(&mut self, said: &Finished) -> Outcome {
        let status = match self.victim.exit_status() {
            Ok(status) => status,
            Err(trouble) => return Outcome::Lost(trouble.to_string()),
        };
        let told = matches!(said.code, Some(5 | 9 | 10 | 12));
        match status.signal() == Some(Signal::KILL.as_raw()) {
            true if told => Outcome::Killed(said.to_string()),
            true => Outcome::Lost(format!("it was killed, and nobody said so\n{said}")),
            false => Outcome::Wrong(format!("it ended with {status}\n{said}")),
        }
    }

    /// The verdict on a target that was ended on purpose.
    fn obituary(&self, said: &Finished, codes: &[i32]) -> Outcome {
        if let Some(addr) = self.seen() {
            return Outcome::Wrong(format!("{addr:#x} was seen wrong\n{said}"));
        }
        match self
            .nothing_left()
            .and_then(|()| expect_one_of(said, codes))
        {
            Ok(()) => Outcome::Right,
            Err(trouble) => Outcome::Altered(format!("{trouble}\n{said}")),
        }
    }

    /// No image and no journal of this target.
    fn nothing_left(&self) -> Result {
        let pid = self.pid().to_string();
        let mut left = self.rig.left();
        // Where others are stored too, theirs are none of its business.
        left.retain(|name| Rc::strong_count(&self.rig) == 1 || name.contains(&pid));
        match left.is_empty() {
            true => Ok(()),
            false => Err(Trouble::Failed(format!("left behind: {left:?}"))),
        }
    }

    /// The address that a patrol has seen wrong.
    fn seen(&self) -> Option<u64> {
        let bytes = std::fs::read(self.own.dir().join("seen")).ok()?;
        let word = u64::from_ne_bytes(*bytes.first_chunk()?);
        (word != 0).then_some(word)
    }
}

fn expect_one_of(said: &Finished, codes: &[i32]) -> Result {
    match said.code.is_some_and(|code| codes.contains(&code)) {
        true => Ok(()),
        false => Err(Trouble::Failed(format!("want an exit code of {codes:?}"))),
    }
}
