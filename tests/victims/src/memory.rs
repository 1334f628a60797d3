//! Mode `memory`: plain memory of some size and content, with threads at work.
//!
//! Options: `size=64M content=dense seed=1 threads=0 stack=0 comm=NAME`, and those of
//! [`Hardship`].

use crate::crew::{Crew, Work};
use crate::fill::{Content, Rule};
use crate::hardship::Hardship;
use crate::opts::Opts;
use crate::region::Region;
use crate::regs::Level;
use crate::talk::{Victim, Wrong, serve, verdict};
use std::io;

/// Sleep of a crew thread between checks, µs, for up to 5 threads; more threads sleep
/// longer, so that 500 do not starve the machine.
const NAP_US: u64 = 1000;

/// Runs the mode.
///
/// # Errors
/// When memory, threads or limits cannot be had.
pub(crate) fn run(opts: &Opts) -> io::Result<()> {
    let rule = Rule {
        content: Content::parse(&opts.text("content", "dense")),
        seed: opts.number("seed", 1),
    };
    let (len, n_threads, stack_len) = (
        opts.len("size", 64 << 20),
        opts.len("threads", 0),
        opts.len("stack", 0),
    );
    let (comm, hardship) = (opts.text("comm", ""), Hardship::parse(opts));
    opts.done();
    if !comm.is_empty() {
        crate::sys::set_comm(&comm);
    }
    hardship.move_away()?;
    let regions = if len == 0 {
        Vec::new()
    } else {
        vec![filled(len, rule)?]
    };
    let nap_us = NAP_US.max(n_threads as u64 * 200);
    let crew = Crew::start(
        n_threads,
        Work {
            level: Level::best(),
            n_spins: 20_000,
            nap_us,
        },
    )?;
    let _fds = hardship.tighten()?;
    let mut memory = Memory {
        rule,
        regions,
        crew,
        touched: 0,
    };
    if stack_len == 0 {
        serve(&mut memory);
    } else {
        serve_deep(&mut memory, rule, stack_len);
    }
    Ok(())
}

/// A region filled by `rule`.
fn filled(len: usize, rule: Rule) -> io::Result<Region> {
    let mut region = Region::anon(len)?;
    region.fill(rule);
    Ok(region)
}

struct Memory {
    rule: Rule,
    regions: Vec<Region>,
    crew: Crew,
    touched: u64,
}

impl Victim for Memory {
    fn verify(&mut self) -> Result<u64, Wrong> {
        let mut len_bytes = 0;
        for region in &self.regions {
            len_bytes += region.check(self.rule)?;
        }
        self.crew.progress()?;
        Ok(len_bytes)
    }

    fn command(&mut self, word: &str, rest: &str) -> Option<String> {
        match word {
            "progress" => Some(verdict(self.crew.progress())),
            // Other content everywhere: a stale image would show.
            "refill" => {
                self.rule.seed = rest.parse().ok()?;
                self.regions
                    .iter_mut()
                    .for_each(|region| region.fill(self.rule));
                Some("refilled".into())
            }
            // Where the memory is, for a test that changes it behind our back.
            "where" => Some(
                self.regions
                    .first()
                    .map_or("nowhere".into(), |r| format!("{:#x}", r.addr())),
            ),
            // Each page once, and no more than that: what its return costs.
            "read" => Some(format!("read {} pages", self.read())),
            // New VMAs and pages beside the old ones.
            "grow" => {
                let len = rest.parse().ok()?;
                self.touched += 1;
                match filled(len, self.rule) {
                    Ok(region) => self.regions.push(region),
                    Err(err) => return Some(format!("WRONG at 0x0: grow by {len}: {err}")),
                }
                Some("grown".into())
            }
            _ => None,
        }
    }
}

impl Memory {
    /// Reads a byte of every page; answers the number of pages.
    fn read(&self) -> usize {
        let mut n_pages = 0;
        for region in &self.regions {
            for byte in region.bytes().iter().step_by(crate::sys::page_len()) {
                // The compiler must not know that nobody wants the byte.
                std::hint::black_box(*byte);
                n_pages += 1;
            }
        }
        n_pages
    }
}

/// Talks from below a filled stack frame, so that the main stack has grown and is live.
fn serve_deep(memory: &mut Memory, rule: Rule, stack_len: usize) {
    const STEP: usize = 64 << 10;
    let mut frame = [0u8; STEP];
    let addr = frame.as_ptr().addr();
    rule.fill(addr as u64, &mut frame);
    if stack_len > STEP {
        serve_deep(memory, rule, stack_len - STEP);
    } else {
        serve(memory);
    }
    if let Err(wrong) = rule.check(addr as u64, addr, &frame) {
        crate::talk::die(&format!("{wrong} (main stack)"));
    }
}
