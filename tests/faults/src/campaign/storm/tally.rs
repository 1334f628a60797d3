//! What was asked, and what came back.

use crate::subject::Outcome;
use memcr_client::{Answer, ClientError, Code};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many different troubles are told; the first ones say most.
const MAX_TROUBLES: usize = 40;

/// What came back.
#[derive(Debug)]
pub(super) enum Said {
    /// An exit code, or a code of the old protocol, and the reason if there is one.
    Code(i32, String),
    /// The connection was refused, or ended.
    Gone(String),
    /// Nothing, for so long that somebody must have forgotten about it.
    Nothing(Duration),
    /// What no daemon says.
    Odd(String),
}

impl Said {
    /// In our own protocol.
    pub(super) fn own(result: &Result<Answer, ClientError>) -> Self {
        match result {
            Ok(answer) => Self::Code(answer.exit_code.into(), String::new()),
            Err(ClientError::NotDone(answer)) => {
                let reason = answer.error.as_ref().map(|it| it.message.clone());
                Self::Code(answer.exit_code.into(), reason.unwrap_or_default())
            }
            Err(error) => Self::failed(error),
        }
    }

    /// In the old one.
    pub(super) fn old(result: &Result<Code, ClientError>) -> Self {
        match result {
            Ok(code) => Self::Code(i32::from_ne_bytes(code.to_bytes()), String::new()),
            Err(error) => Self::failed(error),
        }
    }

    fn failed(error: &ClientError) -> Self {
        let text = || match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        match error {
            ClientError::Connect { .. }
            | ClientError::Send(_)
            | ClientError::Receive(_)
            | ClientError::Closed => Self::Gone(text()),
            ClientError::Late { waited } => Self::Nothing(*waited),
            _ => Self::Odd(text()),
        }
    }

    fn word(&self) -> String {
        match self {
            Self::Code(code, _) => code.to_string(),
            Self::Gone(_) => "gone".into(),
            Self::Nothing(_) => "nothing".into(),
            Self::Odd(_) => "odd".into(),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code, reason) => write!(f, "{code} {reason}"),
            Self::Gone(why) => write!(f, "gone though the daemon lives: {why}"),
            Self::Nothing(waited) => write!(f, "nothing for {} s", waited.as_secs()),
            Self::Odd(what) => f.write_str(what),
        }
    }
}

/// All of it; everybody in the storm counts here.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By kind of request: answers by code.
    answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Restarts of each kind, and the longest time until a new daemon answered.
    deeds: BTreeMap<&'static str, (u64, Duration)>,
    n_sessions_killed: usize,
    targets_killed: Vec<String>,
    /// What must not be, without the numbers in it, and the first one with them.
    troubles: BTreeMap<String, (u64, String)>,
    restores: Vec<Duration>,
}

/// What may come back for a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fair {
    /// Codes that are always right.
    pub(super) codes: &'static [i32],
    /// The same daemon was there all the time: it does not hang up, and does not say
    /// that it is ending.
    pub(super) is_steady: bool,
    /// The target lives: nothing else was said of it.
    pub(super) lives: bool,
}

/// How the daemon says that a child of its was killed, as we do.
const WE_KILLED: [&str; 2] = [
    "the session's process",
    "the process that was asked was ended",
];

impl Fair {
    fn allows(self, said: &Said) -> bool {
        match said {
            Said::Code(15, _) if !self.is_steady => true,
            Said::Code(4 | 5 | 9, _) if !self.lives => true,
            Said::Code(1, reason) => WE_KILLED.iter().any(|what| reason.contains(what)),
            Said::Code(code, _) => self.codes.contains(code),
            Said::Gone(_) => !self.is_steady,
            Said::Nothing(_) | Said::Odd(_) => false,
        }
    }
}

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counts of a thread that has panicked are as good as others.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer.
    pub(super) fn answered(&self, kind: &'static str, said: &Said, fair: Fair) {
        let mut counts = self.counts();
        let words = counts.answers.entry(kind).or_default();
        *words.entry(said.word()).or_default() += 1;
        if !fair.allows(said) {
            counts.trouble(format!("{kind}: {said}"));
        }
    }

    /// Counts what nobody waits for an answer to.
    pub(super) fn did(&self, kind: &'static str, how: &str) {
        let mut counts = self.counts();
        let words = counts.answers.entry(kind).or_default();
        *words.entry(how.to_owned()).or_default() += 1;
    }

    /// Counts a restart.
    pub(super) fn struck(&self, deed: &'static str, took: Duration) {
        let mut counts = self.counts();
        let (n, longest) = counts.deeds.entry(deed).or_default();
        *n += 1;
        *longest = took.max(*longest);
    }

    /// Counts a kill of a session's process.
    pub(super) fn session_killed(&self) {
        self.counts().n_sessions_killed += 1;
    }

    /// Counts a target that the kernel killed with its session's process.
    pub(super) fn target_killed(&self, name: String) {
        self.counts().targets_killed.push(name);
    }

    /// How many session's processes were killed.
    pub(super) fn n_killed(&self) -> usize {
        self.counts().n_sessions_killed
    }

    /// What became of the targets whose session's processes were killed.
    pub(super) fn kills(&self) -> Vec<Outcome> {
        let counts = self.counts();
        let killed = counts.targets_killed.iter().cloned().map(Outcome::Killed);
        let n_right = counts.n_sessions_killed.saturating_sub(killed.len());
        killed.chain((0..n_right).map(|_| Outcome::Right)).collect()
    }

    /// How long a restore took.
    pub(super) fn restored(&self, within: Duration) {
        self.counts().restores.push(within);
    }

    /// Each kind of trouble once.
    pub(super) fn troubles(&self) -> Vec<String> {
        let counts = self.counts();
        let told = counts.troubles.values().take(MAX_TROUBLES);
        told.map(|(n, what)| format!("{n} times: {what}")).collect()
    }

    /// So far, in a few words.
    pub(super) fn line(&self) -> String {
        let counts = self.counts();
        let n_answers: u64 = counts.answers.values().flat_map(BTreeMap::values).sum();
        let n_troubles: u64 = counts.troubles.values().map(|(n, _)| n).sum();
        let n_restores = counts.restores.len();
        format!("{n_answers} requests so far, {n_restores} restores, {n_troubles} troubles")
    }
}

impl Counts {
    fn trouble(&mut self, what: String) {
        let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.troubles.entry(kind).or_insert((0, what)).0 += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = self.counts();
        let mut n_all = 0;
        for (kind, words) in &counts.answers {
            let n: u64 = words.values().sum();
            n_all += n;
            let words = words.iter().map(|(word, n)| format!("{word}: {n}"));
            let words = words.collect::<Vec<_>>().join(", ");
            writeln!(f, "  {kind:22} {n:7}   {words}")?;
        }
        writeln!(f, "  {:22} {n_all:7}", "together")?;
        let n_killed = counts.targets_killed.len();
        let n = counts.n_sessions_killed;
        writeln!(
            f,
            "  {:22} {n:7}   {n_killed} targets with them",
            "SIGKILL of a session"
        )?;
        for (deed, (n, longest)) in &counts.deeds {
            let longest = longest.as_secs_f64();
            writeln!(f, "  {deed:22} {n:7}   a new one within {longest:.1} s")?;
        }
        counts.restores.sort();
        let restores = &counts.restores;
        // The least one that so many of a hundred do not exceed.
        let rank =
            |percent: usize| restores.get((restores.len() * percent).div_ceil(100).max(1) - 1);
        let millis = |percent| rank(percent).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        write!(
            f,
            "  restores as clients saw them: {}, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            restores.len(),
            millis(50),
            millis(99),
            millis(100)
        )
    }
}
