//! Connections of which something is to be read, written or done: each in its turn, and the
//! users in theirs, so that nobody waits for all that somebody else has to say.

use std::collections::{BTreeMap, VecDeque};

/// Connections that wait for their turn, by the user.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: BTreeMap<u32, VecDeque<u64>>,
    /// Whose turn it was last.
    last: u32,
}

impl Backlog {
    /// Connection `number` of this user waits for its turn, if it does not already.
    pub(super) fn add(&mut self, uid: u32, number: u64) {
        let own = self.waiting.entry(uid).or_default();
        if !own.contains(&number) {
            own.push_back(number);
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<u64> {
        let behind = self.last.checked_add(1);
        let behind = behind.and_then(|first| self.waiting.range(first..).next());
        let (&uid, _) = behind.or_else(|| self.waiting.iter().next())?;
        let own = self.waiting.get_mut(&uid)?;
        let number = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&uid);
        }
        self.last = uid;
        number
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_many_connections_has_no_more_turns() {
        let mut backlog = Backlog::default();
        for number in [1, 2, 3, 2] {
            backlog.add(1000, number);
        }
        assert_eq!(backlog.next(), Some(1));
        backlog.add(1000, 1);
        backlog.add(0, 4);
        backlog.add(u32::MAX, 5);
        let turns: Vec<u64> = std::iter::from_fn(|| backlog.next()).collect();
        assert_eq!(turns, [5, 4, 2, 3, 1]);
        assert!(backlog.is_empty());
    }
}
