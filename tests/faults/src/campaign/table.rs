//! What became of the targets, counted.

use crate::subject::Outcome;
use memcr_harness::Trouble;
use std::collections::BTreeMap;
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
    n_broken: usize,
}

/// Least share of targets that live on with every byte right, in percent.
const MIN_RIGHT_PERCENT: usize = 99;

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

    /// A mode that could not be run to its end.
    pub(crate) fn broken(&mut self, mode: &str, trouble: &Trouble) {
        self.n_broken += 1;
        println!("--- {mode} broke off: {trouble}");
    }

    fn total(&self) -> Counts {
        self.rows
            .values()
            .fold(Counts::default(), |sum, row| Counts {
                right: sum.right + row.right,
                killed: sum.killed + row.killed,
                altered: sum.altered + row.altered,
                wrong: sum.wrong + row.wrong,
                lost: sum.lost + row.lost,
            })
    }

    /// Whether memcr keeps its promise.
    pub(crate) fn is_good(&self) -> bool {
        let total = self.total();
        self.n_broken == 0
            && total.n_failed() == 0
            && total.right * 100 >= (total.right + total.killed) * MIN_RIGHT_PERCENT
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
