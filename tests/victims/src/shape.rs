//! Mode `shape`: memory that is not one full mapping, and threads that sleep.
//!
//! ```text
//!   size=16M span=64M     │█···│█···│█···│…    a page, then span/size − 1 that nobody touches
//!   size=16M vmas=4       │ rw │ r  │ rw │ r │ equal parts that the kernel cannot merge
//! ```
//!
//! Options: `size=64M span=SIZE vmas=1 sleepers=0 content=dense seed=1`. `size` is what
//! is there, `span` what is mapped. Nothing of it is in huge pages, so that the shapes
//! differ in what they are named for and in nothing else.

use crate::fill::{Content, Rule};
use crate::opts::Opts;
use crate::region::Region;
use crate::sleepers::Sleepers;
use crate::sys::page_len;
use crate::talk::{Victim, Wrong, die, serve};
use std::io;

/// Runs the mode.
///
/// # Errors
/// When memory or threads cannot be had.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: opts.number("seed", 1),
    };
    let len = opts.len("size", 64 << 20);
    let (span, n_vmas) = (opts.len("span", len), opts.len("vmas", 1));
    let n_sleepers = opts.len("sleepers", 0);
    opts.done();
    if span < len || n_vmas == 0 {
        die("a span holds the size, and has at least one mapping");
    }
    let comb = match span.checked_div(len) {
        Some(step) => {
            let comb = Comb::map(span, step)?;
            comb.teeth().for_each(|mut page| page.fill(rule));
            split(comb.region, n_vmas)?;
            Some(comb)
        }
        // A target with next to no memory.
        None => None,
    };
    let sleepers = Sleepers::start(n_sleepers)?;
    serve(&mut Shape {
        rule,
        comb,
        sleepers,
    });
    Ok(())
}

/// Pages that are there, at equal distances.
#[derive(Debug, Clone, Copy)]
struct Comb {
    region: Region,
    /// From one to the next, pages.
    step: usize,
}

impl Comb {
    fn map(span: usize, step: usize) -> io::Result<Self> {
        // Without a reservation, since most of it may never be used.
        let region = Region::map(
            span,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            None,
        )?;
        region.advise(libc::MADV_NOHUGEPAGE)?;
        Ok(Self { region, step })
    }

    fn teeth(self) -> impl Iterator<Item = Region> {
        self.region.every(0, self.step)
    }

    /// The pages right behind, which nobody has touched.
    fn gaps(self) -> impl Iterator<Item = Region> {
        let none = if self.step == 1 { usize::MAX } else { 1 };
        self.region.every(none, self.step)
    }

    /// Checks what is there, and that nothing is beside it.
    ///
    /// # Errors
    /// The first byte that differs.
    fn check(self, rule: Rule) -> Result<u64, Wrong> {
        let zero = Rule {
            content: Content::Zero,
            seed: 0,
        };
        let mut scratch = vec![0; page_len()];
        let mut check = |sum: u64, page: Region, rule: Rule| {
            let key = page.addr() as u64;
            let n = rule.check_with(key, page.addr(), page.bytes(), &mut scratch)?;
            Ok(sum + n)
        };
        let there = self
            .teeth()
            .try_fold(0, |sum, page| check(sum, page, rule))?;
        self.gaps()
            .try_fold(there, |sum, page| check(sum, page, zero))
    }
}

/// Makes `n` mappings of one, as equal as whole pages allow: alternating protection
/// keeps the kernel from merging them.
fn split(region: Region, n: usize) -> io::Result<()> {
    let n_pages = region.len() / page_len();
    let bound = |i: usize| i * n_pages / n * page_len();
    for i in (1..n).step_by(2) {
        let part = region.part(bound(i), bound(i + 1) - bound(i));
        part.protect(libc::PROT_READ)?;
    }
    Ok(())
}

struct Shape {
    rule: Rule,
    comb: Option<Comb>,
    sleepers: Sleepers,
}

impl Victim for Shape {
    fn verify(&mut self) -> Result<u64, Wrong> {
        let mut len_bytes = self.sleepers.check()?;
        if let Some(comb) = self.comb {
            len_bytes += comb.check(self.rule)?;
        }
        Ok(len_bytes)
    }

    fn command(&mut self, word: &str, _rest: &str) -> Option<String> {
        (word == "where").then(|| {
            let addr = self.comb.map(|comb| comb.region.addr());
            addr.map_or("nowhere".into(), |addr| format!("{addr:#x}"))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RULE: Rule = Rule {
        content: Content::Dense,
        seed: 1,
    };

    #[test]
    fn a_byte_in_a_gap_is_noticed() {
        let comb = Comb::map(8 * page_len(), 4).unwrap();
        comb.teeth().for_each(|mut page| page.fill(RULE));
        // Two pages, and the two behind them.
        assert_eq!(comb.check(RULE).unwrap(), 4 * page_len() as u64);
        let mut gap = comb.gaps().nth(1).unwrap();
        gap.bytes_mut()[7] = 1;
        assert_eq!(comb.check(RULE).unwrap_err().addr, gap.addr() + 7);
    }

    #[test]
    fn parts_have_protections_by_turns() {
        let comb = Comb::map(8 * page_len(), 1).unwrap();
        comb.teeth().for_each(|mut page| page.fill(RULE));
        split(comb.region, 4).unwrap();
        let addr = comb.region.part(2 * page_len(), page_len()).addr();
        let end = addr + 2 * page_len();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains(&format!("{addr:x}-{end:x} r--p")), "{maps}");
        comb.check(RULE).unwrap();
    }
}
