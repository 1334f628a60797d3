//! Parts of private anonymous memory.
#![allow(unsafe_code)]

use super::{Check, Setup, failed};
use crate::fill::{Content, Rule};
use crate::region::Region;
use crate::sys::{page_len, prctl};
use crate::talk::Wrong;
use std::io;

const READ: i32 = libc::PROT_READ;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// From `linux/prctl.h`.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// A check of a whole region against its rule.
pub(super) fn whole(region: Region, rule: Rule) -> Check {
    Box::new(move || region.check(rule))
}

fn filled(setup: &Setup) -> io::Result<Region> {
    let mut region = Region::anon(setup.len)?;
    region.fill(setup.rule);
    Ok(region)
}

/// Filled memory with one piece of advice given before.
fn advised(setup: &Setup, advice: i32) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.advise(advice)?;
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}

pub(super) fn plain(setup: &Setup) -> io::Result<Check> {
    Ok(whole(filled(setup)?, setup.rule))
}

/// `[anon:NAME]` (needs CONFIG_ANON_VMA_NAME).
pub(super) fn named(setup: &Setup) -> io::Result<Check> {
    let region = filled(setup)?;
    let name = c"memcr test (x) y";
    prctl(
        PR_SET_VMA,
        0,
        region.addr() as u64,
        region.len() as u64,
        name.as_ptr().addr() as u64,
    )?;
    Ok(whole(region, setup.rule))
}

/// Makes the region readable for the time of a check.
fn peeked(region: Region, rule: Rule, prot: i32) -> Check {
    Box::new(move || {
        region
            .protect(READ)
            .map_err(|err| failed("mprotect to read", &err))?;
        let outcome = region.check(rule);
        region
            .protect(prot)
            .map_err(|err| failed("mprotect back", &err))?;
        outcome
    })
}

pub(super) fn prot_none(setup: &Setup) -> io::Result<Check> {
    let region = filled(setup)?;
    region.protect(libc::PROT_NONE)?;
    Ok(peeked(region, setup.rule, libc::PROT_NONE))
}

pub(super) fn prot_read(setup: &Setup) -> io::Result<Check> {
    let region = filled(setup)?;
    region.protect(READ)?;
    Ok(whole(region, setup.rule))
}

/// Code made at run time, in pages that are both writable and executable, while a
/// thread keeps running it: `mov eax, n; ret` in every page.
pub(super) fn jit(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::map(
        setup.len.min(1 << 20),
        READ_WRITE | libc::PROT_EXEC,
        PRIVATE,
        None,
    )?;
    let rule = Rule {
        content: Content::Random,
        seed: setup.rule.seed,
    };
    region.fill(rule);
    for (n, mut page) in region.every(0, 1).enumerate() {
        page.bytes_mut()[..6].copy_from_slice(&code(n as u32));
    }
    let call_all = move || {
        region
            .every(0, 1)
            .enumerate()
            .try_for_each(|(n, page)| call(page, n as u32))
    };
    std::thread::spawn(move || {
        loop {
            if let Err(wrong) = call_all() {
                crate::talk::die(&wrong.to_string());
            }
            std::thread::yield_now();
        }
    });
    Ok(Box::new(move || {
        call_all()?;
        region.every(0, 1).try_fold(0, |sum, page| {
            check_behind_code(page, rule).map(|n| sum + n)
        })
    }))
}

/// x86: `mov eax, n; ret`.
fn code(n: u32) -> [u8; 6] {
    let [a, b, c, d] = n.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

fn call(page: Region, n: u32) -> Result<(), Wrong> {
    // SAFETY: `jit` wrote a function of this type to the start of each page, and the
    // mapping is executable; if the bytes were damaged, a crash is as good a report.
    let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(page.ptr()) };
    let got = function();
    if got == n {
        Ok(())
    } else {
        Err(Wrong {
            addr: page.addr(),
            what: format!("code answers {got}, want {n}"),
        })
    }
}

fn check_behind_code(page: Region, rule: Rule) -> Result<u64, Wrong> {
    let mut want = vec![0; page.len()];
    rule.page(page.addr() as u64, &mut want);
    if page.bytes()[6..] == want[6..] {
        return Ok(page.len() as u64);
    }
    Err(Wrong {
        addr: page.addr(),
        what: "bytes behind the code differ".into(),
    })
}

/// Transparent huge pages, where `madvise` gives them.
pub(super) fn thp(setup: &Setup) -> io::Result<Check> {
    advised(setup, libc::MADV_HUGEPAGE)
}

/// The same, behind small pages of the same mapping, fewer than a huge one has.
pub(super) fn thp_askew(setup: &Setup) -> io::Result<Check> {
    const N_SMALL: usize = 333;
    const HUGE_LEN: usize = 2 << 20;
    let region = Region::anon(setup.len)?;
    region.advise(libc::MADV_NOHUGEPAGE)?;
    let mut small = region.part(0, N_SMALL * page_len());
    small.fill(setup.rule);
    region.advise(libc::MADV_HUGEPAGE)?;
    let mut huge = region.part(HUGE_LEN, setup.len - HUGE_LEN);
    huge.fill(setup.rule);
    let rule = setup.rule;
    Ok(Box::new(move || Ok(small.check(rule)? + huge.check(rule)?)))
}

/// Every other page is there.
pub(super) fn holes(setup: &Setup) -> io::Result<Check> {
    let region = Region::anon(setup.len)?;
    // A huge page would fill the holes.
    region.advise(libc::MADV_NOHUGEPAGE)?;
    region
        .every(0, 2)
        .for_each(|mut page| page.fill(setup.rule));
    let (rule, zero) = (
        setup.rule,
        Rule {
            content: Content::Zero,
            seed: 0,
        },
    );
    Ok(Box::new(move || {
        let even = region
            .every(0, 2)
            .try_fold(0, |sum, page| page.check(rule).map(|n| sum + n))?;
        region
            .every(1, 2)
            .try_fold(even, |sum, page| page.check(zero).map(|n| sum + n))
    }))
}

/// As [`holes`], but with huge pages wanted afterwards: who puts the pages back carelessly
/// gets a huge page for each, and doubles what is resident.
pub(super) fn thp_holes(setup: &Setup) -> io::Result<Check> {
    let region = Region::anon(setup.len)?;
    region.advise(libc::MADV_NOHUGEPAGE)?;
    region
        .every(0, 2)
        .for_each(|mut page| page.fill(setup.rule));
    region.advise(libc::MADV_HUGEPAGE)?;
    let rule = setup.rule;
    Ok(Box::new(move || {
        region
            .every(0, 2)
            .try_fold(0, |sum, page| page.check(rule).map(|n| sum + n))
    }))
}

/// Every other page of it was sent to swap, where there is any.
pub(super) fn paged_out(setup: &Setup) -> io::Result<Check> {
    let region = filled(setup)?;
    for page in region.every(1, 2) {
        page.advise(libc::MADV_PAGEOUT)?;
    }
    Ok(whole(region, setup.rule))
}

/// 5,000 VMAs of one page.
pub(super) fn many(setup: &Setup) -> io::Result<Check> {
    alternating(setup, 5000)
}

/// Nearly as many as `vm.max_map_count` allows by default (65,530).
pub(super) fn sixty_thousand(setup: &Setup) -> io::Result<Check> {
    alternating(setup, 60_000)
}

/// Alternating protection keeps the kernel from merging VMAs.
fn alternating(setup: &Setup, n_vmas: usize) -> io::Result<Check> {
    let mut region = Region::anon(n_vmas * page_len())?;
    region.fill(setup.rule);
    for page in region.every(0, 2) {
        page.protect(READ)?;
    }
    Ok(whole(region, setup.rule))
}

/// 64 GiB that nobody may touch.
pub(super) fn reserve(_: &Setup) -> io::Result<Check> {
    let region = Region::map(
        64 << 30,
        libc::PROT_NONE,
        PRIVATE | libc::MAP_NORESERVE,
        None,
    )?;
    Ok(Box::new(move || {
        let maps =
            std::fs::read_to_string("/proc/self/maps").map_err(|err| failed("read maps", &err))?;
        // A neighbour like it, such as the rest of a heap of a thread's, is one with it.
        let (start, end) = (region.addr(), region.addr() + region.len());
        let holds = |line: &str| -> Option<bool> {
            let (range, rest) = line.split_once(' ')?;
            let (first, last) = range.split_once('-')?;
            let bound = |text| usize::from_str_radix(text, 16).ok();
            Some(bound(first)? <= start && end <= bound(last)? && rest.starts_with("---p"))
        };
        if maps.lines().any(|line| holds(line) == Some(true)) {
            Ok(0)
        } else {
            let what = format!("no mapping `---p` holds {start:x}-{end:x}");
            Err(Wrong::state(what))
        }
    }))
}

/// 1 TiB with a page in every GiB.
pub(super) fn sparse(setup: &Setup) -> io::Result<Check> {
    let region = Region::map(1 << 40, READ_WRITE, PRIVATE | libc::MAP_NORESERVE, None)?;
    region.advise(libc::MADV_NOHUGEPAGE)?;
    let pages = move || region.every(3, (1 << 30) / page_len());
    pages().for_each(|mut page| page.fill(setup.rule));
    let rule = setup.rule;
    Ok(Box::new(move || {
        pages().try_fold(0, |sum, page| page.check(rule).map(|n| sum + n))
    }))
}

/// The heap proper, grown with `sbrk`.
pub(super) fn brk(setup: &Setup) -> io::Result<Check> {
    // SAFETY: growing the break touches nothing that is in use.
    let old = unsafe { libc::sbrk(setup.len as libc::intptr_t) };
    if old.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this range was added by us just now; malloc copes with foreign sbrk calls
    // and leaves the range alone.
    let mut region = unsafe { Region::adopt(old.expose_provenance(), setup.len) };
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}

/// Memory that was only ever read: the shared zero page, which counts in no RSS.
pub(super) fn zero_read(setup: &Setup) -> io::Result<Check> {
    let region = Region::anon(setup.len)?;
    region.advise(libc::MADV_NOHUGEPAGE)?;
    let zero = Rule {
        content: Content::Zero,
        seed: 0,
    };
    region
        .check(zero)
        .map_err(|wrong| io::Error::other(wrong.to_string()))?;
    Ok(whole(region, zero))
}

pub(super) fn dont_dump(setup: &Setup) -> io::Result<Check> {
    advised(setup, libc::MADV_DONTDUMP)
}

pub(super) fn wipe_on_fork(setup: &Setup) -> io::Result<Check> {
    advised(setup, libc::MADV_WIPEONFORK)
}

pub(super) fn dont_fork(setup: &Setup) -> io::Result<Check> {
    advised(setup, libc::MADV_DONTFORK)
}

/// Two equal halves that KSM may merge while we look away.
pub(super) fn mergeable(setup: &Setup) -> io::Result<Check> {
    let mut region = Region::anon(setup.len)?;
    region.advise(libc::MADV_MERGEABLE)?;
    // Keyed from 0 in both halves, so that their pages are equal.
    let half = setup.len / 2;
    let rule = setup.rule;
    region
        .bytes_mut()
        .chunks_mut(half)
        .for_each(|bytes| rule.fill(0, bytes));
    Ok(Box::new(move || {
        let halves = region.bytes().chunks(half).enumerate();
        halves
            .map(|(i, bytes)| rule.check(0, region.addr() + i * half, bytes))
            .sum()
    }))
}

/// A mapping of `/dev/zero`: anonymous memory with the name of a file.
pub(super) fn dev_zero(setup: &Setup) -> io::Result<Check> {
    let file = std::fs::File::open("/dev/zero")?;
    let file = Some((std::os::fd::AsFd::as_fd(&file), 0));
    let mut region = Region::map(setup.len, READ_WRITE, libc::MAP_PRIVATE, file)?;
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}

/// A mapping that grows downwards when the page below is touched, as stacks do.
pub(super) fn grows_down(setup: &Setup) -> io::Result<Check> {
    let flags = PRIVATE | libc::MAP_GROWSDOWN | libc::MAP_STACK;
    let mut region = Region::map(setup.len, READ_WRITE, flags, None)?;
    region.fill(setup.rule);
    Ok(whole(region, setup.rule))
}
