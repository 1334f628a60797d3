//! Plans of page tables that are written as letters.
#![allow(clippy::unwrap_used)]
use super::drops::{ABSENT_PER_PAGE, DROP_LEN};
use super::*;
use crate::maps::details::VmFlags;
use crate::maps::vma;
use std::cell::Cell;

/// A page table from a string, one letter a page, from address 0x1000 on; counts how often
/// entries are read.
struct Letters(&'static str, Cell<usize>);

impl PageTable for Letters {
    fn occupied(&self, start: u64, end: u64, _: u64, regions: &mut Vec<Region>) -> io::Result<u64> {
        let mut addr = start;
        for letter in self.0[(start / 0x1000 - 1) as usize..(end / 0x1000 - 1) as usize].bytes() {
            let categories = match letter {
                b'.' => 0,
                b'H' => category::PRESENT | category::HUGE,
                b'Z' => category::PRESENT | category::PFNZERO,
                b'C' => category::PRESENT | category::FILE,
                b'S' | b'G' => category::SWAPPED,
                _ => category::PRESENT,
            };
            match regions.last_mut() {
                Some(last) if last.end == addr && last.categories == categories => {
                    last.end += 0x1000
                }
                _ if letter == b'.' => {}
                _ => regions.push(Region {
                    start: addr,
                    end: addr + 0x1000,
                    categories,
                }),
            }
            addr += 0x1000;
        }
        Ok(end)
    }

    fn entries(&self, addr: u64, out: &mut [u64]) -> io::Result<()> {
        self.1.set(self.1.get() + 1);
        let letters = &self.0.as_bytes()[(addr / 0x1000 - 1) as usize..];
        for (entry, letter) in out.iter_mut().zip(letters) {
            *entry = match letter {
                b'P' | b'H' => 1 << 63 | 1 << 56,
                b'F' | b'Z' => 1 << 63,
                b'C' => 1 << 63 | 1 << 61,
                b'S' => 1 << 62,
                b'G' => 1 << 62 | 1 << 58,
                _ => 0,
            };
        }
        Ok(())
    }
}

fn plan(
    letters: &'static str,
    line: &str,
    policy: Policy,
    chunk_pages: u64,
) -> (Vec<ChunkPlan>, PlanSummary) {
    plan_with(options(policy, chunk_pages), letters, line)
}

fn options(policy: Policy, chunk_pages: u64) -> PlanOptions {
    PlanOptions {
        policy,
        chunk_len_bytes: chunk_pages * 0x1000,
        page_len_bytes: 0x1000,
        force_proc_mem: false,
        keep: Vec::new(),
        batch_len_bytes: None,
    }
}

fn plan_with(
    options: PlanOptions,
    letters: &'static str,
    line: &str,
) -> (Vec<ChunkPlan>, PlanSummary) {
    let (planned, summary) = all_planned(options, letters, line);
    let chunks = planned.into_iter().map(|planned| match planned {
        Planned::Chunk(chunk) => chunk,
        Planned::Batch(batch) => unreachable!("{batch:?} although no batch was asked for"),
    });
    (chunks.collect(), summary)
}

fn all_planned(
    options: PlanOptions,
    letters: &'static str,
    line: &str,
) -> (Vec<Planned>, PlanSummary) {
    let some_shared = VmaDetails {
        rss_kib: 7,
        ..Default::default()
    };
    plan_table(
        options,
        &Letters(letters, Cell::default()),
        line,
        some_shared,
    )
}

fn plan_table(
    options: PlanOptions,
    table: &Letters,
    line: &str,
    details: VmaDetails,
) -> (Vec<Planned>, PlanSummary) {
    let mut all = Vec::new();
    let mut planner = Planner::new(options, u64::MAX, table, |planned| {
        all.push(planned);
        Ok::<(), io::Error>(())
    });
    let end = 0x1000 + table.0.len() * 0x1000;
    let vma = vma::parse(format!("1000-{end:x} {line}").as_bytes())
        .unwrap()
        .remove(0);
    planner.add(&vma, &details).unwrap();
    let summary = planner.finish().unwrap();
    (all, summary)
}

fn pages(runs: impl IntoIterator<Item = PageRun>) -> Vec<(u64, u64)> {
    runs.into_iter()
        .map(|run| (run.addr.0 / 0x1000 - 1, run.len_bytes / 0x1000))
        .collect()
}

const ANON: &str = "rw-p 0 00:00 0";
const FILE: &str = "rw-p 0 08:01 5 /lib/x";

#[test]
fn long_drops_come_in_parts_that_split_no_huge_page() {
    let drops_of = |runs: &[(u64, u64)]| -> Vec<(u64, u64)> {
        let mut open = OpenDrop::new(false, false, None);
        let mut drops = Vec::new();
        for &(start, end) in runs {
            let work = open.extend(run_of(start, end), &mut drops);
            assert!(work >= end - start);
        }
        open.close(&mut drops);
        let bounds = drops.iter().map(|drop| (drop.run.addr.0, drop.run.end().0));
        bounds.collect()
    };
    const PAGE: u64 = 0x1000;
    assert_eq!(drops_of(&[(0, DROP_LEN)]), [(0, DROP_LEN)]);
    assert_eq!(
        drops_of(&[(PAGE, 2 * DROP_LEN + PAGE)]),
        [(PAGE, 2 * DROP_LEN), (2 * DROP_LEN, 2 * DROP_LEN + PAGE)]
    );
    // What is not there counts for little.
    let far = DROP_LEN * ABSENT_PER_PAGE / 2;
    let scattered = [0, far, 2 * far, 3 * far].map(|at| (at, at + PAGE));
    assert_eq!(
        drops_of(&scattered),
        [(0, 2 * far + PAGE), (3 * far, 3 * far + PAGE)]
    );
}

#[test]
fn the_picture_above_holds() {
    let (chunks, summary) = plan("PPZP..PFPPSP", ANON, Policy::default(), 64);
    assert_eq!(chunks.len(), 1);
    assert_eq!(
        pages(chunks[0].runs.clone()),
        [(0, 2), (3, 1), (6, 1), (8, 2), (11, 1)]
    );
    let drops = pages(summary.rest.drops.iter().map(|drop| drop.run));
    // The zero page may be covered: giving it back changes nothing.
    assert_eq!(drops, [(0, 7), (8, 2), (11, 1)]);
    assert_eq!(summary.planned_bytes, 7 * 0x1000);
    assert_eq!(summary.left_bytes[&LeftBecause::ForkShared], 0x1000);
    assert_eq!(summary.left_bytes[&LeftBecause::Swapped], 0x1000);
}

#[test]
fn entries_are_read_only_where_they_tell_more() {
    let options = options(Policy::default(), 64);
    let unshared = VmaDetails {
        rss_kib: 24,
        is_private: true,
        ..Default::default()
    };
    let readings_of = |letters, details| {
        let table = Letters(letters, Cell::default());
        let (planned, summary) = plan_table(options.clone(), &table, ANON, details);
        let Planned::Chunk(chunk) = &planned[0] else {
            panic!("{planned:?}");
        };
        (pages(chunk.runs.clone()), summary.left_bytes, table.1.get())
    };
    let (runs, left, n_readings) = readings_of("PPZP..PHH", unshared);
    assert_eq!((runs, n_readings), (vec![(0, 2), (3, 1), (6, 1)], 0));
    assert!(left.is_empty(), "{left:?}");
    let (runs, left, n_readings) = readings_of("PPS.GP", unshared);
    assert_eq!((runs, n_readings), (vec![(0, 2), (5, 1)], 1));
    assert_eq!(left[&LeftBecause::Swapped], 0x1000);
    assert_eq!(left[&LeftBecause::Guard], 0x1000);
    let mergeable = VmaDetails {
        flags: VmFlags {
            mergeable: true,
            ..Default::default()
        },
        ..unshared
    };
    let (runs, left, _) = readings_of("PPFP", mergeable);
    assert_eq!(runs, [(0, 2), (3, 1)]);
    assert_eq!(left[&LeftBecause::ForkShared], 0x1000);
}

#[test]
fn the_page_table_is_not_asked_of_mappings_without_pages() {
    struct Mute;
    impl PageTable for Mute {
        fn occupied(&self, _: u64, _: u64, _: u64, _: &mut Vec<Region>) -> io::Result<u64> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn entries(&self, _: u64, _: &mut [u64]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
    let policy = Policy {
        drop_file_pages: true,
        override_protection: true,
        ..Default::default()
    };
    let add = |line: &str, details| {
        let mut planner = Planner::new(options(policy, 8), 0, &Mute, |_| Ok::<(), io::Error>(()));
        let vma = vma::parse(format!("10000000-1010000000 {line}").as_bytes()).unwrap();
        planner.add(&vma[0], &details)
    };
    let swapped = VmaDetails {
        has_swapped: true,
        ..Default::default()
    };
    for line in [ANON, FILE, "---p 0 00:00 0", "r-xp 0 08:01 5 /lib/x"] {
        add(line, VmaDetails::default()).unwrap();
        // Counted, if nothing else.
        add(line, swapped).unwrap_err();
    }
}

#[test]
fn chunks_are_cut_at_their_length_and_filled() {
    let (chunks, _) = plan("PPPPP.PP", ANON, Policy::default(), 3);
    let runs: Vec<_> = chunks
        .iter()
        .map(|chunk| pages(chunk.runs.clone()))
        .collect();
    assert_eq!(runs, [vec![(0, 3)], vec![(3, 2), (6, 1)], vec![(7, 1)]]);
}

#[test]
fn huge_and_small_pages_are_chunks_of_their_own() {
    let (chunks, summary) = plan("PHHP", ANON, Policy::default(), 8);
    assert_eq!(summary.rest.huge.len(), 1);
    let huge: Vec<_> = chunks.iter().filter(|chunk| chunk.class.huge).collect();
    assert_eq!(pages(huge[0].runs.clone()), [(1, 2)]);
    let small: Vec<_> = chunks.iter().filter(|chunk| !chunk.class.huge).collect();
    assert_eq!(pages(small[0].runs.clone()), [(0, 1), (3, 1)]);
}

#[test]
fn clean_file_pages_stay_unless_asked() {
    let (chunks, summary) = plan("CPPC", FILE, Policy::default(), 8);
    assert!(
        !chunks[0].class.elide_zero,
        "a dropped page of zeros would show the file"
    );
    assert_eq!(
        pages(summary.rest.drops.iter().map(|drop| drop.run)),
        [(1, 2)]
    );
    assert_eq!(summary.left_bytes[&LeftBecause::CleanFile], 2 * 0x1000);
    let all = Policy {
        drop_file_pages: true,
        ..Default::default()
    };
    let (chunks, summary) = plan("CPPC", FILE, all, 8);
    assert_eq!(pages(chunks[0].runs.clone()), [(1, 2)]);
    assert_eq!(
        pages(summary.rest.drops.iter().map(|drop| drop.run)),
        [(0, 4)]
    );
    assert_eq!(summary.drop_only_bytes, 2 * 0x1000);
}

#[test]
fn a_page_of_zeros_over_a_file_stays() {
    // KSM puts the shared page of zeros over a copied page that holds zeros: dropped,
    // the file would show.
    let (_, summary) = plan("PZP", FILE, Policy::default(), 8);
    let drops = pages(summary.rest.drops.iter().map(|drop| drop.run));
    assert_eq!(drops, [(0, 1), (2, 1)]);
}

#[test]
fn copied_pages_of_code_stay_and_clean_ones_go() {
    let policy = Policy {
        drop_file_pages: true,
        override_protection: true,
        ..Default::default()
    };
    let (chunks, summary) = plan("CPC", "r-xp 0 08:01 5 /lib/x", policy, 8);
    assert!(chunks.is_empty());
    let drops = pages(summary.rest.drops.iter().map(|drop| drop.run));
    assert_eq!(drops, [(0, 1), (2, 1)]);
    assert_eq!(summary.left_bytes[&LeftBecause::Code], 0x1000);
}

#[test]
fn guard_regions_are_counted_as_what_they_are() {
    let (_, summary) = plan("PGP", ANON, Policy::default(), 8);
    let drops = pages(summary.rest.drops.iter().map(|drop| drop.run));
    assert_eq!(drops, [(0, 1), (2, 1)]);
    assert_eq!(summary.left_bytes[&LeftBecause::Guard], 0x1000);
}

#[test]
fn a_mapping_that_stays_counts_with_its_resident_size() {
    let (chunks, summary) = plan(
        "PP",
        "rw-s 0 00:01 9 /memfd:x (deleted)",
        Policy::default(),
        8,
    );
    assert!(chunks.is_empty() && summary.rest.drops.is_empty());
    assert_eq!(summary.left_bytes[&LeftBecause::SharedMapping], 7 << 10);
}

#[test]
fn protection_decides_the_way_in() {
    let policy = Policy {
        override_protection: true,
        ..Default::default()
    };
    let (chunks, _) = plan("P", "---p 0 00:00 0", policy, 8);
    assert!(chunks[0].class.through_proc_mem);
    let (chunks, _) = plan("P", ANON, Policy::default(), 8);
    assert!(!chunks[0].class.through_proc_mem);
}

#[test]
fn runs_are_handed_out_behind_the_chunks_that_hold_them() {
    let options = PlanOptions {
        policy: Policy::default(),
        chunk_len_bytes: 3 * 0x1000,
        page_len_bytes: 0x1000,
        force_proc_mem: false,
        keep: Vec::new(),
        batch_len_bytes: Some(4 * 0x1000),
    };
    // Pages are those from 0x1000 on: the first multiple of the length is the page 3.
    let (planned, summary) = all_planned(options, "PPPPPPPP.PPPFP", ANON);
    let told: Vec<_> = planned
        .iter()
        .map(|planned| match planned {
            Planned::Chunk(chunk) => ("chunk", pages(chunk.runs.clone())),
            Planned::Batch(batch) => ("drops", pages(batch.drops.iter().map(|drop| drop.run))),
        })
        .collect();
    assert_eq!(
        told,
        [
            ("chunk", vec![(0, 3)]),
            ("chunk", vec![(3, 3)]),
            ("chunk", vec![(6, 1)]),
            ("drops", vec![(0, 7)]),
            ("chunk", vec![(7, 1), (9, 2)]),
            ("chunk", vec![(11, 1)]),
            ("drops", vec![(7, 5)]),
            ("chunk", vec![(13, 1)]),
        ]
    );
    let rest = pages(summary.rest.drops.iter().map(|drop| drop.run));
    assert_eq!(rest, [(13, 1)]);
}

#[test]
fn batches_become_shorter_towards_the_end() {
    struct Dense;
    impl PageTable for Dense {
        fn occupied(
            &self,
            start: u64,
            end: u64,
            _: u64,
            regions: &mut Vec<Region>,
        ) -> io::Result<u64> {
            regions.push(Region {
                start,
                end,
                categories: category::PRESENT,
            });
            Ok(end)
        }
        fn entries(&self, _: u64, _: &mut [u64]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
    const MIB: u64 = 1 << 20;
    let lens_when_expecting = |expected_bytes| -> Vec<u64> {
        let options = PlanOptions {
            policy: Policy::default(),
            chunk_len_bytes: MIB / 4,
            page_len_bytes: 0x1000,
            force_proc_mem: false,
            keep: Vec::new(),
            batch_len_bytes: Some(8 * MIB),
        };
        let mut lens = Vec::new();
        let mut planner = Planner::new(options, expected_bytes, &Dense, |planned| {
            if let Planned::Batch(batch) = planned {
                let len: u64 = batch.drops.iter().map(|drop| drop.run.len_bytes).sum();
                lens.push(len / MIB);
            }
            Ok::<(), io::Error>(())
        });
        let vma = vma::parse(b"10000000-14000000 rw-p 0 00:00 0").unwrap();
        let unshared = VmaDetails {
            rss_kib: 64 << 10,
            is_private: true,
            ..Default::default()
        };
        planner.add(&vma[0], &unshared).unwrap();
        planner.finish().unwrap();
        lens
    };
    let tail = [8, 4, 2, 2];
    let (to_the_end, longer) = (lens_when_expecting(64 * MIB), lens_when_expecting(96 * MIB));
    assert_eq!(to_the_end, [&[8; 6], &tail[..]].concat());
    assert_eq!(longer, [8; 8]);
    assert_eq!(lens_when_expecting(0), [2; 32]);
}

#[test]
fn huge_pages_are_told_with_the_first_of_them_that_goes() {
    let options = PlanOptions {
        policy: Policy::default(),
        chunk_len_bytes: 8 * 0x1000,
        page_len_bytes: 0x1000,
        force_proc_mem: false,
        keep: Vec::new(),
        batch_len_bytes: Some(4 * 0x1000),
    };
    let (planned, summary) = all_planned(options, "PPPHHHHHHHHPHH", ANON);
    let huge = planned.iter().filter_map(|planned| match planned {
        Planned::Chunk(_) => None,
        Planned::Batch(batch) => Some(pages(batch.huge.clone())),
    });
    let huge: Vec<_> = huge.collect();
    assert_eq!(huge, [vec![(3, 8)], vec![]]);
    assert_eq!(pages(summary.rest.huge), [(12, 2)]);
}

#[test]
fn pages_that_are_needed_stay_and_are_not_stored() {
    let options = PlanOptions {
        policy: Policy::default(),
        chunk_len_bytes: 64 * 0x1000,
        page_len_bytes: 0x1000,
        force_proc_mem: false,
        // The third page, and one beside the mapping.
        keep: vec![run_of(0x3000, 0x4000), run_of(0x9000, 0xa000)],
        batch_len_bytes: None,
    };
    let (chunks, summary) = plan_with(options, "PPPPP", ANON);
    assert_eq!(pages(chunks[0].runs.clone()), [(0, 2), (3, 2)]);
    let drops = pages(summary.rest.drops.iter().map(|drop| drop.run));
    assert_eq!(drops, [(0, 2), (3, 2)]);
    assert_eq!(summary.left_bytes[&LeftBecause::Needed], 0x1000);
}

#[test]
fn no_guard_stands_over_copies_of_file_pages() {
    let policy = Policy {
        guarded: true,
        drop_file_pages: true,
        ..Policy::default()
    };
    let (chunks, summary) = plan("CPC", FILE, policy, 64);
    assert!(chunks.is_empty());
    assert_eq!(summary.left_bytes[&LeftBecause::FileCopy], 0x1000);
    assert!(summary.rest.drops.iter().all(|drop| drop.is_file));
}

#[test]
fn a_guard_stands_over_anonymous_memory_that_is_there() {
    let policy = Policy {
        guarded: true,
        override_protection: true,
        ..Policy::default()
    };
    let of_smaps = [
        ("1000-3000 rw-p 00000000 00:00 0", 8),
        ("3000-5000 r--p 00000000 00:00 0", 4),
        ("5000-6000 rw-p 00000000 08:01 5 /lib/x", 4),
        ("7000-8000 rw-p 00000000 00:00 0", 0),
        ("9000-a000 rw-p 00000000 00:00 0", 4),
    ];
    let text: String = of_smaps
        .iter()
        .map(|(line, kib)| {
            format!("{line}\nRss: {kib} kB\nTHPeligible: 0\nVmFlags: rd wr mr mw me ac\n")
        })
        .collect();
    let details = Details::read(text.as_bytes()).unwrap();
    assert_eq!(pages(mappings(&details, &policy)), [(0, 4), (8, 1)]);
}
