//! Mode `memory`: plain memory of some size and content, with threads at work.
//!
//! Options: `size=64M content=dense seed=1 threads=0 stack=0 comm=NAME freed=0 sealed=0`, and
//! those of [`Hardship`]. What is `freed` (MADV_FREE) the kernel may take away, page by page; it
//! lies above the rest, and may only be read if it is `sealed`.

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
    let (len, n_threads, stack_len, freed_len) = (
        opts.len("size", 64 << 20),
        opts.len("threads", 0),
        opts.len("stack", 0),
        opts.len("freed", 0),
    );
    let is_sealed = opts.number("sealed", 0) != 0;
    let (comm, hardship) = (opts.text("comm", ""), Hardship::parse(opts));
    opts.done();
    if !comm.is_empty() {
        crate::sys::set_comm(&comm);
    }
    hardship.move_away()?;
    // First: the kernel maps from the top down.
    let freed = match freed_len {
        0 => None,
        len => Some(freed(len, rule, is_sealed)?),
    };
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
        freed,
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

fn paged_out(words: &str) -> io::Result<u64> {
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    let numbers: Option<Vec<u64>> = words.split(' ').map(number).collect();
    match numbers.as_deref() {
        Some(&[pid, addr, len]) => crate::sys::page_out(pid as i32, addr, len),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A region filled by `rule`.
fn filled(len: usize, rule: Rule) -> io::Result<Region> {
    let mut region = Region::anon(len)?;
    region.fill(rule);
    Ok(region)
}

/// One that the kernel may take away.
fn freed(len: usize, rule: Rule, is_sealed: bool) -> io::Result<Region> {
    let region = filled(len, rule)?;
    region.advise(libc::MADV_FREE)?;
    if is_sealed {
        region.protect(libc::PROT_READ)?;
    }
    Ok(region)
}

struct Memory {
    rule: Rule,
    regions: Vec<Region>,
    freed: Option<Region>,
    crew: Crew,
    touched: u64,
}

impl Victim for Memory {
    fn verify(&mut self) -> Result<u64, Wrong> {
        let mut len_bytes = 0;
        for region in &self.regions {
            len_bytes += region.check(self.rule)?;
        }
        for page in self.freed.iter().flat_map(|freed| freed.every(0, 1)) {
            if page.bytes().iter().any(|&byte| byte != 0) {
                len_bytes += page.check(self.rule)?;
            }
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
            "freed" => Some(
                self.freed
                    .map_or("nowhere".into(), |r| format!("{:#x}", r.addr())),
            ),
            // Pages of another process, `PID ADDR LEN`, that it can do without.
            "pageout" => Some(match paged_out(rest) {
                Ok(n) => format!("{n} bytes"),
                Err(error) => format!("WRONG at 0x0: pageout {rest}: {error}"),
            }),
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
