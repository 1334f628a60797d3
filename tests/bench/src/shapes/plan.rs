//! Which shapes there are, and which of them are compared.

use clap::ValueEnum;
use memcr_harness::{Result, Victim, ensure};

use crate::args::Args;
use crate::bound::Volumes;
use crate::case::{Case, Sink};
use crate::cycle::{Cycle, start_victim};

/// What a sleeping thread of the victim has touched of its stack, KiB.
const STACK_KIB: u64 = 8;
/// Memory that must be available for a target, as a multiple of its size, in tenths: the
/// target, the pages that are warmed before it comes back, and the image.
const ROOM_TENTHS: u64 = 22;

/// What a series is measured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Frozen time apart from moving bytes.
    Fixed,
    /// Cost per byte of memory in pieces.
    Fragments,
    /// Cost per byte by size.
    Sizes,
}

/// A target.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As people call it.
    pub(super) name: String,
    /// Memory that is there, MiB.
    pub(super) size_mib: u64,
    /// Options of the victim's mode `shape`; `None`: plain memory as everywhere else here.
    words: Option<Vec<String>>,
    /// At least so many threads and mappings must memcr have seen.
    n_threads: u64,
    n_vmas: u64,
}

impl Shape {
    fn new(name: String, size_mib: u64, words: Vec<String>) -> Self {
        Self {
            name,
            size_mib,
            words: Some(words),
            n_threads: 1,
            n_vmas: 1,
        }
    }

    /// One mapping, one thread.
    fn whole(size_mib: u64) -> Self {
        Self::threads(size_mib, 1)
    }

    /// `n` threads, whose stacks are among the `size_mib`; all but the first sleep.
    fn threads(size_mib: u64, n: u64) -> Self {
        let size_kib = (size_mib << 10).saturating_sub((n - 1) * STACK_KIB);
        let words = vec![format!("size={size_kib}K"), format!("sleepers={}", n - 1)];
        let plural = if n == 1 { "" } else { "s" };
        Self {
            n_threads: n,
            ..Self::new(
                format!("{size_mib} MiB, {n} thread{plural}"),
                size_mib,
                words,
            )
        }
    }

    /// Single pages at equal distances all over `span_gib`, reserved without a charge.
    fn sparse(size_mib: u64, span_gib: u64) -> Self {
        let words = vec![format!("size={size_mib}M"), format!("span={span_gib}G")];
        let name = format!("{size_mib} MiB scattered over {span_gib} GiB");
        Self::new(name, size_mib, words)
    }

    /// Every other page.
    fn holes(size_mib: u64) -> Self {
        let words = vec![
            format!("size={size_mib}M"),
            format!("span={}M", size_mib * 2),
        ];
        let name = format!("{size_mib} MiB, every other page");
        Self::new(name, size_mib, words)
    }

    /// `n` mappings that the kernel cannot merge.
    fn mappings(size_mib: u64, n: u64) -> Self {
        let words = vec![format!("size={size_mib}M"), format!("vmas={n}")];
        Self {
            n_vmas: n,
            ..Self::new(format!("{size_mib} MiB in {n} mappings"), size_mib, words)
        }
    }

    /// Plain memory, in huge pages where the machine has them.
    fn plain(size_mib: u64) -> Self {
        Self {
            words: None,
            ..Self::new(format!("{size_mib} MiB"), size_mib, Vec::new())
        }
    }

    /// Starts a target of this shape, filled with `content`.
    ///
    /// # Errors
    /// When it cannot be started: too few threads or mappings are allowed, perhaps.
    pub(super) fn start(&self, content: &str) -> Result<Victim> {
        let Some(words) = &self.words else {
            return start_victim(self.size_mib, content);
        };
        let content = format!("content={content}");
        let words = words.iter().map(String::as_str).chain([&*content]);
        Victim::start("shape", &words.collect::<Vec<_>>())
    }

    /// Whether memcr has met what it was to meet.
    ///
    /// # Errors
    /// What was missing: figures would be those of another shape.
    pub(super) fn expect(&self, cycle: &Cycle) -> Result {
        let volumes = Volumes::of(&cycle.report)?;
        let taken = volumes.raw_bytes + volumes.zero_bytes;
        // Stacks are estimated.
        let enough = (self.size_mib << 20) / 10 * 9;
        ensure(taken >= enough, || {
            format!("{}: {taken} bytes were taken", self.name)
        })?;
        let least = [("n_threads", self.n_threads), ("n_vmas", self.n_vmas)];
        least.iter().try_for_each(|&(key, least)| {
            let n = cycle.report["checkpoint"][key].as_u64();
            ensure(n.is_some_and(|n| n >= least), || {
                format!("{}: {key} is {n:?}, not {least} or more", self.name)
            })
        })
    }
}

/// Shapes that are compared with the first one of them.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) part: Part,
    pub(super) shapes: Vec<Shape>,
    pub(super) cases: Vec<Case>,
}

/// All that is to be measured.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) groups: Vec<Group>,
    /// What is not, and why.
    pub(super) skipped: Vec<String>,
}

impl Plan {
    /// The figures of `docs/performance.md`, as far as there is memory for them.
    pub(super) fn full(args: &Args) -> Self {
        let threads = |n| Shape::threads(64, n);
        let fixed = [
            vec![Shape::whole(0)],
            vec![Shape::whole(64), threads(200), threads(1000), threads(5000)],
            vec![Shape::whole(2048)],
            vec![Shape::whole(16), Shape::sparse(16, 1024)],
        ];
        let fragments = vec![
            Shape::whole(512),
            Shape::holes(256),
            Shape::mappings(320, 5000),
            // Of 65,530 that a process may have by default.
            Shape::mappings(320, 60_000),
        ];
        let mut sizes = [512, 64, 2048, 8192].map(Shape::plain).to_vec();
        let (cases, one) = (args.cases(), one_case(args));
        let skipped = match args.shapes.contains(&Part::Sizes) {
            true => skip(&mut sizes, available_mib()),
            false => Vec::new(),
        };
        let mut groups = groups(fixed.into(), fragments, sizes, &cases, &one);
        groups.retain(|group| args.shapes.contains(&group.part));
        Self { groups, skipped }
    }

    /// The same in small, into one sink: what shapes do is up to no stage.
    pub(super) fn small(args: &Args) -> Self {
        let fixed = vec![
            vec![Shape::whole(0)],
            vec![Shape::whole(4), Shape::threads(4, 8)],
            vec![Shape::whole(1), Shape::sparse(1, 4)],
        ];
        let fragments = vec![Shape::whole(4), Shape::holes(2), Shape::mappings(4, 10)];
        let sizes = [4, 2].map(Shape::plain).to_vec();
        let cases = one_case(args);
        Self {
            groups: groups(fixed, fragments, sizes, &cases, &cases),
            skipped: Vec::new(),
        }
    }
}

/// The default pipeline into a tmpfs, or the first case given. The largest target takes
/// longer than all the rest, so that its part has only this one.
fn one_case(args: &Args) -> Vec<Case> {
    let all = args.cases();
    let usual = |case: &&Case| case.name() == "lz4" && case.sink == Sink::Tmpfs;
    let one = all.iter().find(usual).or(all.first());
    one.cloned().into_iter().collect()
}

fn groups(
    fixed: Vec<Vec<Shape>>,
    fragments: Vec<Shape>,
    sizes: Vec<Shape>,
    cases: &[Case],
    of_sizes: &[Case],
) -> Vec<Group> {
    let group = |part, shapes, cases: &[Case]| Group {
        part,
        shapes,
        cases: cases.to_vec(),
    };
    let fixed = fixed.into_iter();
    let mut groups: Vec<Group> = fixed
        .map(|shapes| group(Part::Fixed, shapes, cases))
        .collect();
    groups.push(group(Part::Fragments, fragments, cases));
    groups.push(group(Part::Sizes, sizes, of_sizes));
    groups
}

/// Takes away what there is not memory enough for, and answers a note about each. The
/// first one stays: without it there is nothing to compare with.
fn skip(shapes: &mut Vec<Shape>, available_mib: u64) -> Vec<String> {
    let mut notes = Vec::new();
    let reference = shapes.first().map(|shape| shape.size_mib);
    shapes.retain(|shape| {
        let needed_mib = shape.size_mib * ROOM_TENTHS / 10;
        let fits = needed_mib <= available_mib || Some(shape.size_mib) == reference;
        if !fits {
            let name = &shape.name;
            notes.push(format!(
                "{name}: needs {needed_mib} MiB of memory, {available_mib} are available"
            ));
        }
        fits
    });
    notes
}

/// Memory that can be had without swapping, MiB; 0 when the kernel does not tell.
fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memcr_harness::proc::kib(&text, "MemAvailable").unwrap_or(0) >> 10
}

#[cfg(test)]
mod tests {
    use super::{Shape, skip};

    #[test]
    fn what_does_not_fit_is_noted() {
        let mut shapes = [512, 64, 2048].map(Shape::plain).to_vec();
        let notes = skip(&mut shapes, 1000);
        let left: Vec<u64> = shapes.iter().map(|shape| shape.size_mib).collect();
        assert_eq!(left, [512, 64]);
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn stacks_are_part_of_the_size() {
        let words = |shape: Shape| shape.words.unwrap_or_default();
        assert_eq!(words(Shape::whole(1)), ["size=1024K", "sleepers=0"]);
        assert_eq!(words(Shape::threads(1, 8)), ["size=968K", "sleepers=7"]);
    }
}
