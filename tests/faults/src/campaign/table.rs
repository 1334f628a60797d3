//! What became of the targets, counted.

use crate::subject::Outcome;
use memcr_harness::Trouble;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Outcomes of trials of one kind.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    right: usize,
    killed: usize,
    altered: usize,
    wrong: usize,
    lost: usize,
}

/// All trials by kind.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: BTreeMap<String, Counts>,
    /// Rows of trials on a machine that was kept busy on purpose.
    busy: BTreeSet<String>,
    n_broken: usize,
}

/// Least share of targets that live on with every byte right, in percent.
const MIN_RIGHT_PERCENT: usize = 99;
/// The same for a machine that is kept busy. The moments in which the kernel is told to
/// kill the target with memcr are some changes to and fro between the two: microseconds,
/// but milliseconds where ten others wait for the CPU as well.
const MIN_RIGHT_PERCENT_BUSY: usize = 80;

impl Table {
    /// Counts a trial of the kind `row`; `what` names it, should it have failed.
    pub(crate) fn count(&mut self, row: &str, what: &str, outcome: &Outcome) {
        let counts = self.rows.entry(row.to_owned()).or_default();
        match outcome {
            Outcome::Right => counts.right += 1,
            Outcome::Killed(_) => counts.killed += 1,
            Outcome::Altered(_) => counts.altered += 1,
            Outcome::Wrong(_) => counts.wrong += 1,
            Outcome::Lost(_) => counts.lost += 1,
        }
        if !matches!(outcome, Outcome::Right) {
            println!("--- {row}: {what}: {outcome}");
        }
    }

    /// Trials of the kind `row` were made on a machine that was kept busy.
    pub(crate) fn was_busy(&mut self, row: &str) {
        self.busy.insert(row.to_owned());
    }

    /// A mode that could not be run to its end.
    pub(crate) fn broken(&mut self, mode: &str, trouble: &Trouble) {
        self.n_broken += 1;
        println!("--- {mode} broke off: {trouble}");
    }

    fn total(&self) -> Counts {
        self.rows.values().copied().collect()
    }

    /// Whether memcr keeps its promise.
    pub(crate) fn is_good(&self) -> bool {
        let of = |busy: bool| -> Counts {
            let rows = self.rows.iter();
            let rows = rows.filter(|(name, _)| self.busy.contains(*name) == busy);
            rows.map(|(_, counts)| *counts).collect()
        };
        self.n_broken == 0
            && self.total().n_failed() == 0
            && of(false).lives_on(MIN_RIGHT_PERCENT)
            && of(true).lives_on(MIN_RIGHT_PERCENT_BUSY)
    }

    /// In the form of other test programs, for whoever counts.
    pub(crate) fn closing_line(&self) -> String {
        let (total, good) = (self.total(), self.is_good());
        let n_failed = (total.n_failed() + self.n_broken).max(usize::from(!good));
        format!(
            "test result: {}. {} passed; {n_failed} failed; 0 ignored",
            if good { "ok" } else { "FAILED" },
            total.right + total.killed,
        )
    }
}

impl Counts {
    fn n_failed(self) -> usize {
        self.altered + self.wrong + self.lost
    }

    fn lives_on(self, percent: usize) -> bool {
        self.right * 100 >= (self.right + self.killed) * percent
    }
}

impl FromIterator<Counts> for Counts {
    fn from_iter<T: IntoIterator<Item = Self>>(all: T) -> Self {
        all.into_iter().fold(Self::default(), |sum, row| Self {
            right: sum.right + row.right,
            killed: sum.killed + row.killed,
            altered: sum.altered + row.altered,
            wrong: sum.wrong + row.wrong,
            lost: sum.lost + row.lost,
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.rows.keys().map(String::len).max().unwrap_or(0).max(8);
        let heads = ["right", "killed", "altered", "wrong", "lost"];
        write!(f, "{:widest$}", "")?;
        heads.iter().try_for_each(|head| write!(f, " {head:>8}"))?;
        let total = ("together".to_owned(), self.total());
        let rows = self.rows.iter().map(|(name, counts)| (name, *counts));
        for (name, counts) in rows.chain([(&total.0, total.1)]) {
            write!(
                f,
                "\n{name:widest$} {:8} {:8} {:8} {:8} {:8}",
                counts.right, counts.killed, counts.altered, counts.wrong, counts.lost
            )?;
        }
        Ok(())
    }
}
