//! What became of the layout of a target since its image was made: pages that moved or were
//! given up must not get their old bytes at their old place.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::pages::{PageRun, RemoteAddr};

/// A change of the layout since the image was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Pages were moved.
    Moved {
        /// From where.
        from: PageRun,
        /// Where to.
        to: RemoteAddr,
    },
    /// Pages were given up: by the target, or by a drop of ours that is expected, which is
    /// known when it is over.
    Removed(PageRun),
    /// Mappings are gone: what is there later is another one, which may have been moved or have
    /// grown to there. Of one that is moved this is told as well, once its pages are elsewhere.
    Unmapped(PageRun),
}

impl Change {
    fn range(&self) -> PageRun {
        let (Self::Moved { from: range, .. } | Self::Removed(range) | Self::Unmapped(range)) = self;
        *range
    }
}

/// A drop of our own that is under way, of one mapping or of several that touch: of each its
/// event tells when it is its turn.
#[derive(Debug, Clone)]
pub struct OwnDrop {
    /// All that it drops.
    pub run: PageRun,
    /// The first page of it that is there: with its mapping the drop waits, as a rule.
    pub first: RemoteAddr,
    /// The mappings that there are now, ascending.
    pub mappings: Vec<PageRun>,
}

impl OwnDrop {
    /// The part that it waits with, as the mappings are now.
    fn part(&self) -> Option<PageRun> {
        let holds = |mapping: &&PageRun| mapping.addr <= self.first && self.first < mapping.end();
        let mapping = self.mappings.iter().find(holds)?;
        let addr = mapping.addr.max(self.run.addr);
        let len_bytes = mapping.end().min(self.run.end()).0 - addr.0;
        Some(PageRun { addr, len_bytes })
    }

    /// Where the part behind `end` begins: there, or behind memory that was unmapped, which
    /// is told by itself.
    fn next_part(&self, end: RemoteAddr) -> RemoteAddr {
        let behind = self
            .mappings
            .partition_point(|mapping| mapping.end() <= end);
        let next = self.mappings.get(behind);
        next.map_or(end, |mapping| mapping.addr.max(end))
    }
}

/// What happened to the layout, and what is yet to be heard of a drop of our own.
#[derive(Debug, Default)]
pub(super) struct Changes {
    list: Vec<Change>,
    own: Option<OwnDrop>,
    /// How many there were before that.
    n_before: usize,
    /// While pages are read: what was dropped of them already.
    dropped: Option<Vec<PageRun>>,
}

impl Changes {
    /// Those that another memcr has heard of.
    pub(super) fn known(list: Vec<Change>) -> Self {
        Self {
            list,
            ..Self::default()
        }
    }

    /// Those of before a fork, for the child: no drop of ours is under way in it.
    pub(super) fn of_child(&self) -> Self {
        Self {
            list: self.list.clone(),
            ..Self::default()
        }
    }

    /// Pages are read, until they are dropped; `None`: no more.
    pub(super) fn read_until_dropped(&mut self, dropped: Option<Vec<PageRun>>) {
        self.dropped = dropped;
    }

    /// `runs` are not to be read any more.
    pub(super) fn dropping(&mut self, runs: impl Iterator<Item = PageRun>) {
        if let Some(dropped) = &mut self.dropped {
            dropped.extend(runs);
        }
    }

    /// The page at `addr` is missing, but not because it was dropped.
    pub(super) fn is_to_be_read(&self, addr: RemoteAddr) -> bool {
        let holds = |run: &PageRun| run.addr <= addr && addr < run.end();
        let dropped = self.dropped.as_ref();
        dropped.is_some_and(|dropped| !dropped.iter().any(holds))
    }

    /// A drop of ours is under way: the next events that tell of the rest of it, from its part
    /// on, are not the target's.
    pub(super) fn expect_drop(&mut self, own: Option<OwnDrop>) {
        (self.own, self.n_before) = (own, self.list.len());
    }

    /// Whether one is expected.
    pub(super) fn expects_drop(&self) -> bool {
        self.own.is_some()
    }

    /// The target has changed its layout, or not.
    pub(super) fn extend(&mut self, change: Option<Change>) {
        self.list.extend(change);
    }

    /// The drop that was expected is over: what was heard of it is none of the target's. It may
    /// have given up the same pages, so each part counts once. Answers what it did meanwhile.
    pub(super) fn end_drop(&mut self) -> Vec<Change> {
        let Some(own) = self.own.take() else {
            return Vec::new();
        };
        let heard = self.heard_of(&own);
        let mut place = 0;
        self.list.retain(|_| {
            place += 1;
            !heard.contains(&(place - 1))
        });
        self.list[self.n_before..].to_vec()
    }

    /// The places of the events of `own`: each begins where the one before it ended, up to its
    /// end. The first is of the part that it waits with: as it is, or longer or shorter where
    /// mappings were split or merged since. Where none is, that one was read before.
    fn heard_of(&self, own: &OwnDrop) -> Vec<usize> {
        /// An event, how far it and those behind it reach, and the next of them.
        struct Link {
            range: PageRun,
            reach: RemoteAddr,
            next: Option<usize>,
        }
        let (run, part) = (own.run, own.part());
        let mut links: BTreeMap<usize, Link> = BTreeMap::new();
        // By where they begin: those that reach furthest, and of these the first.
        let mut begin: BTreeMap<RemoteAddr, usize> = BTreeMap::new();
        for (place, change) in self.list.iter().enumerate().skip(self.n_before).rev() {
            let range = change.range();
            let within = run.addr <= range.addr && range.end() <= run.end();
            if !within || !matches!(change, Change::Removed(_)) {
                continue;
            }
            let next = begin.get(&range.end());
            let next = next.or_else(|| begin.get(&own.next_part(range.end())));
            let next = next.copied();
            let reach = next.map_or(range.end(), |next| links[&next].reach);
            let better = |other: &usize| links[other].reach <= reach;
            if begin.get(&range.addr).is_none_or(better) {
                begin.insert(range.addr, place);
            }
            links.insert(place, Link { range, reach, next });
        }
        let first = links.iter().min_by_key(|(_, link)| {
            let (range, reach) = (link.range, Reverse(link.reach));
            let is_elsewhere = own.first < range.addr || range.end() <= own.first;
            let differs = (
                Some(range) != part,
                Some(range.addr) != part.map(|it| it.addr),
            );
            (is_elsewhere, reach, differs, range.addr)
        });
        let first = first.map(|(place, _)| *place);
        std::iter::successors(first, |place| links[place].next).collect()
    }

    /// The first of [`Changes::pieces`]: usually no change is about them.
    pub(super) fn first_piece(&self, run: PageRun) -> Option<(PageRun, u64)> {
        let is_changed = |change: &Change| overlap(change.range(), run);
        if !self.list.iter().any(is_changed) {
            return Some((run, 0));
        }
        self.pieces(run).into_iter().next()
    }

    /// Where the pages of `run` are now: each piece with its offset in the run, ascending by
    /// it. Pages that were given up are in none.
    pub(super) fn pieces(&self, run: PageRun) -> Vec<(PageRun, u64)> {
        let mut pieces = vec![(run, 0)];
        for change in &self.list {
            pieces = pieces
                .into_iter()
                .flat_map(|piece| changed(piece, change))
                .collect();
        }
        pieces.sort_by_key(|(_, offset)| *offset);
        pieces
    }
}

fn overlap(a: PageRun, b: PageRun) -> bool {
    a.addr < b.end() && b.addr < a.end()
}

/// What becomes of one piece: the parts before, within and behind the range of a change.
fn changed((run, offset): (PageRun, u64), change: &Change) -> Vec<(PageRun, u64)> {
    let range = change.range();
    let start = run.addr.max(range.addr).min(run.end());
    let end = run.end().min(range.end()).max(start);
    let part = |from: RemoteAddr, to: RemoteAddr| PageRun {
        addr: from,
        len_bytes: to.0 - from.0,
    };
    let mut parts = vec![
        part(run.addr, start),
        part(start, end),
        part(end, run.end()),
    ];
    let offsets: Vec<u64> = parts
        .iter()
        .map(|part| offset + (part.addr.0 - run.addr.0))
        .collect();
    match change {
        Change::Moved { from, to } => {
            parts[1].addr = to.offset(parts[1].addr.0.wrapping_sub(from.addr.0));
        }
        Change::Removed(_) | Change::Unmapped(_) => parts[1].len_bytes = 0,
    }
    let parts = parts.into_iter().zip(offsets);
    parts.filter(|(part, _)| part.len_bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const fn run(addr: u64, len_bytes: u64) -> PageRun {
        PageRun {
            addr: RemoteAddr(addr),
            len_bytes,
        }
    }

    fn of(list: &[Change]) -> Changes {
        Changes::known(list.to_vec())
    }

    #[test]
    fn pages_are_where_they_were_moved_to() {
        let changes = [
            Change::Moved {
                from: run(0x2000, 0x2000),
                to: RemoteAddr(0x9000),
            },
            Change::Removed(run(0xa000, 0x1000)),
        ];
        let now = of(&changes).pieces(run(0x1000, 0x4000));
        assert_eq!(
            now,
            [
                (run(0x1000, 0x1000), 0),
                (run(0x9000, 0x1000), 0x1000),
                (run(0x4000, 0x1000), 0x3000)
            ]
        );
    }

    #[test]
    fn what_comes_to_the_place_of_another_keeps_its_own_pages() {
        let (theirs, ours) = (run(0x2000, 0x2000), run(0x8000, 0x2000));
        let changes = of(&[
            Change::Unmapped(theirs),
            Change::Moved {
                from: ours,
                to: theirs.addr,
            },
            Change::Unmapped(ours),
        ]);
        assert_eq!(changes.first_piece(theirs), None);
        assert_eq!(changes.first_piece(ours), Some((theirs, 0)));
    }

    /// What counts as the target's of `events`, when `own` was under way.
    fn targets(own: &OwnDrop, events: &[PageRun]) -> Vec<PageRun> {
        let mut changes = Changes {
            own: Some(own.clone()),
            ..Changes::default()
        };
        events
            .iter()
            .for_each(|event| changes.extend(Some(Change::Removed(*event))));
        changes.end_drop();
        changes.list.iter().map(Change::range).collect()
    }

    #[test]
    fn a_drop_of_ours_is_none_of_the_target() {
        let own = run(0x2000, 0x4000);
        let targets = |events: &[PageRun]| {
            let drop = OwnDrop {
                run: own,
                first: own.addr,
                mappings: vec![run(0x1000, 0x8000)],
            };
            targets(&drop, events)
        };
        assert_eq!(targets(&[own]), []);
        assert_eq!(targets(&[own, own]), [own], "the target drops the same");
        let page = run(0x2000, 0x1000);
        assert_eq!(targets(&[own, page]), [page]);
        assert_eq!(targets(&[page, own]), [page], "before ours is heard of");
        let (head, tail) = (run(0x2000, 0x3000), run(0x5000, 0x1000));
        assert_eq!(targets(&[head, tail]), [], "ours is heard of in parts");
        assert_eq!(targets(&[head, tail, page]), [page]);
        assert_eq!(targets(&[page, head, tail]), [page]);
        assert_eq!(targets(&[head, page, tail]), [page]);
        // Where the target has unmapped the rest, no more came.
        assert_eq!(targets(&[head]), []);
    }

    /// Waits with the third of four mappings.
    fn of_several(mappings: &[PageRun]) -> OwnDrop {
        OwnDrop {
            run: run(0x2000, 0x8000),
            first: RemoteAddr(0x5000),
            mappings: mappings.to_vec(),
        }
    }

    const BEFORE: PageRun = run(0x2000, 0x3000);
    const PART: PageRun = run(0x5000, 0x1000);
    const NEXT: PageRun = run(0x6000, 0x1000);
    const LAST: PageRun = run(0x7000, 0x3000);

    #[test]
    fn a_drop_of_several_mappings_is_heard_of_from_its_part_on() {
        let own = of_several(&[BEFORE, PART, NEXT, LAST]);
        let ours = [PART, NEXT, LAST];
        assert_eq!(targets(&own, &ours), []);
        // What is gone already the target gives up itself, and what is yet to go.
        let pages_of = |runs: &[PageRun]| -> BTreeSet<u64> {
            let pages = |run: &PageRun| (run.addr.0..run.end().0).step_by(0x1000);
            runs.iter().flat_map(pages).collect()
        };
        let (both, page) = (run(0x6000, 0x4000), run(0x8000, 0x1000));
        for theirs in [BEFORE, PART, NEXT, LAST, both, page] {
            for place in 0..=ours.len() {
                let mut events = ours.to_vec();
                events.insert(place, theirs);
                let given_up = pages_of(&targets(&own, &events));
                assert_eq!(given_up, pages_of(&[theirs]), "{theirs} at {place}");
            }
        }
        let elsewhere = run(0x1000, 0x4000);
        assert_eq!(targets(&own, &[elsewhere, PART, NEXT, LAST]), [elsewhere]);
    }

    #[test]
    fn mappings_may_have_changed_when_a_drop_is_heard_of() {
        // Split since the event was sent, or before that.
        let halves = [run(0x4000, 0x1000), PART];
        let own = of_several(&[run(0x2000, 0x2000), halves[0], halves[1], NEXT, LAST]);
        assert_eq!(targets(&own, &[run(0x4000, 0x2000), NEXT, LAST]), []);
        assert_eq!(targets(&own, &[PART, NEXT, LAST]), []);
        // Merged with the one before, which is gone, and those behind with each other.
        let own = of_several(&[run(0x2000, 0x4000), run(0x6000, 0x4000)]);
        assert_eq!(targets(&own, &[PART, NEXT, LAST]), []);
        // One behind it was unmapped.
        let own = of_several(&[BEFORE, PART, LAST]);
        assert_eq!(targets(&own, &[PART, LAST]), []);
        let mut changes = Changes::default();
        changes.expect_drop(Some(of_several(&[BEFORE, PART, LAST])));
        changes.extend(Some(Change::Unmapped(NEXT)));
        [PART, LAST]
            .iter()
            .for_each(|run| changes.extend(Some(Change::Removed(*run))));
        changes.end_drop();
        assert_eq!(changes.pieces(NEXT), [], "it is told of");
        assert_eq!(changes.pieces(LAST), [(LAST, 0)]);
        // The first page that is there is of something new; or the event was read before.
        let new = OwnDrop {
            first: RemoteAddr(0x2000),
            ..of_several(&[run(0x2000, 0x1000), PART, NEXT, LAST])
        };
        assert_eq!(targets(&new, &[PART, NEXT, LAST]), []);
        let own = of_several(&[BEFORE, PART, NEXT, LAST]);
        assert_eq!(targets(&own, &[NEXT, LAST]), []);
    }

    #[test]
    fn what_is_missing_is_read_as_zeros_until_it_is_dropped() {
        let (mut changes, page) = (Changes::default(), RemoteAddr(0x3000));
        assert!(!changes.is_to_be_read(page), "nobody reads");
        changes.read_until_dropped(Some(Vec::new()));
        assert!(changes.is_to_be_read(page));
        changes.dropping([run(0x1000, 0x1000), run(0x2000, 0x2000)].into_iter());
        assert!(!changes.is_to_be_read(page));
        assert!(changes.is_to_be_read(RemoteAddr(0x4000)));
        changes.read_until_dropped(None);
        assert!(!changes.is_to_be_read(RemoteAddr(0x4000)));
    }

    #[test]
    fn what_is_not_touched_by_a_change_stays() {
        let changes = [Change::Removed(run(0x8000, 0x1000))];
        assert_eq!(
            of(&changes).pieces(run(0x1000, 0x1000)),
            [(run(0x1000, 0x1000), 0)]
        );
        assert_eq!(of(&changes).pieces(run(0x8000, 0x1000)), []);
    }
}
