//! What became of the layout of a target since its image was made: pages that moved or were
//! given up must not get their old bytes at their old place.

use crate::pages::{PageRun, RemoteAddr};

/// A change of the layout since the image was made.
#[derive(Debug, Clone, Copy)]
enum Change {
    Moved { from: PageRun, to: RemoteAddr },
    Removed(PageRun),
}

impl Change {
    fn range(&self) -> PageRun {
        let (Self::Moved { from: range, .. } | Self::Removed(range)) = self;
        *range
    }
}

/// What happened to the layout, and what is yet to be heard of a drop of our own.
#[derive(Debug, Default)]
pub(super) struct Changes {
    list: Vec<Change>,
    own: Option<PageRun>,
    /// While pages are read: what was dropped of them already.
    dropped: Option<Vec<PageRun>>,
}

impl Changes {
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

    /// A drop of ours is under way: the next event that tells of one of `own` is not the
    /// target's.
    pub(super) fn expect_drop(&mut self, own: Option<PageRun>) {
        self.own = own;
    }

    /// Pages were moved by the target.
    pub(super) fn moved(&mut self, from: PageRun, to: RemoteAddr) {
        self.list.push(Change::Moved { from, to });
    }

    /// Pages were given up: by the target, unless it is the drop that was expected. Each
    /// event counts once; the target may give up the same pages.
    pub(super) fn removed(&mut self, run: PageRun) {
        if self.own == Some(run) {
            self.own = None;
        } else {
            self.list.push(Change::Removed(run));
        }
    }

    /// The drop that was expected is over. If it was not heard of as a whole, its mapping had
    /// been split before: then it came in parts, one behind the other.
    pub(super) fn end_drop(&mut self) {
        let Some(own) = self.own.take() else { return };
        let mut at = own.addr;
        loop {
            let is_next = |change: &Change| {
                let range = change.range();
                matches!(change, Change::Removed(_)) && range.addr == at && range.end() <= own.end()
            };
            let Some(place) = self.list.iter().position(is_next) else {
                return;
            };
            at = self.list.remove(place).range().end();
        }
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
        Change::Removed(_) => parts[1].len_bytes = 0,
    }
    let parts = parts.into_iter().zip(offsets);
    parts.filter(|(part, _)| part.len_bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(addr: u64, len_bytes: u64) -> PageRun {
        PageRun {
            addr: RemoteAddr(addr),
            len_bytes,
        }
    }

    fn of(list: &[Change]) -> Changes {
        Changes {
            list: list.to_vec(),
            ..Changes::default()
        }
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
    fn a_drop_of_ours_is_none_of_the_target() {
        let own = run(0x2000, 0x4000);
        let list_after = |events: &[PageRun]| -> Vec<PageRun> {
            let mut changes = Changes {
                list: Vec::new(),
                own: Some(own),
                ..Changes::default()
            };
            events.iter().for_each(|event| changes.removed(*event));
            changes.end_drop();
            changes.list.iter().map(Change::range).collect()
        };
        assert_eq!(list_after(&[own]), []);
        assert_eq!(list_after(&[own, own]), [own], "the target drops the same");
        let page = run(0x2000, 0x1000);
        assert_eq!(list_after(&[own, page]), [page]);
        assert_eq!(list_after(&[page, own]), [page], "before ours is heard of");
        let (head, tail) = (run(0x2000, 0x3000), run(0x5000, 0x1000));
        assert_eq!(list_after(&[head, tail]), [], "ours is heard of in parts");
        assert_eq!(list_after(&[head, tail, page]), [page]);
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
