//! Many processes as one: who may go on when. A state machine that touches nothing; the
//! desk tells it what happened and does what it says.
//!
//! ```text
//!   checkpoint   all prepare ─▶ freeze one after the other, parents first ─▶ look for new
//!                members, until there are none ─▶ store, so many at once ─▶ drop ─▶ all held
//!                └─ one fails ─▶ stop the others; those that are held already are restored
//!
//!   restore      populate, so many at once ─▶ all have their memory ─▶ let go one after the
//!                other, in reverse
//! ```
//!
//! Each member is a session of its own, with its own journal: should all of memcr die in the
//! middle, each of them is finished like any other. That a member ends by itself meanwhile
//! is no failure: the others do not miss what would have ended anyway.

use crate::session::gate::Step;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// Start the session of this process, the member with this index.
    Begin { pid: i32, index: u32 },
    /// Let it go on behind its gate.
    Go { pid: i32 },
    /// Stop its checkpoint.
    Stop { pid: i32 },
    /// Order it to be restored, and to wait for the others.
    Restore { pid: i32 },
    /// Look which processes are members now, and tell [`Group::members`].
    Look,
    /// The work is over.
    Over,
}

/// How far a member is. In this order, but for the last three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    /// Its session was begun; of a restore: something else is done with it first.
    Starting,
    Prepared,
    Freezing,
    Frozen,
    Storing,
    Stored,
    Dropping,
    /// Its session's process has crashed, and another one finds out what has become of it.
    Settling,
    Held,
    Populating,
    /// All its memory is back.
    Ready,
    Releasing,
    /// It runs.
    Released,
    /// It could not be restored and stays held.
    Left,
    /// It has ended, or its checkpoint was undone.
    Out,
}

#[derive(Debug)]
struct Member {
    pid: i32,
    at: At,
    /// Told to stop.
    is_stopped: bool,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Checkpoint,
    /// A checkpoint that failed: whatever was done is taken back.
    Undo,
    Restore,
}

/// A group of processes that are worked on as one.
#[derive(Debug)]
pub(super) struct Group {
    work: Work,
    members: Vec<Member>,
    /// How many move bytes at once.
    n_at_once: usize,
    is_complete: bool,
    is_looking: bool,
    is_over: bool,
}

impl Group {
    /// Begins a checkpoint of `pids`, parents first.
    pub(super) fn checkpoint(pids: &[i32], n_at_once: usize) -> (Self, Vec<Move>) {
        let mut group = Self::new(Work::Checkpoint, n_at_once);
        let mut moves = group.begin(pids);
        group.go_on(&mut moves);
        (group, moves)
    }

    /// Begins a restore of `pids`, in the order of their checkpoint. Those that are not
    /// `is_ready` are worked on still, and it is told when they are held or have ended.
    pub(super) fn restore(
        pids: &[i32],
        is_ready: impl Fn(i32) -> bool,
        n_at_once: usize,
    ) -> (Self, Vec<Move>) {
        let mut group = Self::new(Work::Restore, n_at_once);
        let at = |pid| {
            if is_ready(pid) {
                At::Held
            } else {
                At::Starting
            }
        };
        group.members = pids.iter().map(|&pid| Member::new(pid, at(pid))).collect();
        let mut moves = Vec::new();
        group.go_on(&mut moves);
        (group, moves)
    }

    fn new(work: Work, n_at_once: usize) -> Self {
        Self {
            work,
            members: Vec::new(),
            n_at_once: n_at_once.max(1),
            is_complete: false,
            is_looking: false,
            is_over: false,
        }
    }

    /// Whether this is a restore that was asked for.
    pub(super) fn is_restore(&self) -> bool {
        self.work == Work::Restore
    }

    /// Whether everything was held, or restored, as it was asked for.
    pub(super) fn has_worked(&self) -> bool {
        let wanted = match self.work {
            Work::Checkpoint => At::Held,
            Work::Restore => At::Released,
            Work::Undo => return false,
        };
        let mut has_any = false;
        for member in &self.members {
            match member.at {
                At::Out => {}
                at if at == wanted => has_any = true,
                _ => return false,
            }
        }
        has_any
    }

    /// The members, in the order in which they were frozen.
    pub(super) fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        self.members.iter().map(|member| member.pid)
    }

    /// These processes are members now; asked for by [`Move::Look`].
    pub(super) fn members(&mut self, pids: &[i32]) -> Vec<Move> {
        self.is_looking = false;
        let known: Vec<i32> = self.pids().collect();
        let fresh: Vec<i32> = pids
            .iter()
            .copied()
            .filter(|pid| !known.contains(pid))
            .collect();
        self.is_complete = fresh.is_empty();
        let mut moves = self.begin(&fresh);
        self.go_on(&mut moves);
        moves
    }

    /// Member `pid` waits at `step`.
    pub(super) fn reached(&mut self, pid: i32, step: Step) -> Vec<Move> {
        let at = match step {
            Step::Prepared => At::Prepared,
            Step::Frozen => At::Frozen,
            Step::Stored => At::Stored,
            Step::Restored => At::Ready,
        };
        self.set(pid, at)
    }

    /// Member `pid` is held; after a restore that failed, too.
    pub(super) fn held(&mut self, pid: i32) -> Vec<Move> {
        let was = self.member(pid).map(|member| member.at);
        match was {
            Some(At::Populating | At::Ready | At::Releasing) => self.set(pid, At::Left),
            _ => self.set(pid, At::Held),
        }
    }

    /// The process of member `pid`'s session has crashed, and another one looks at what it has
    /// left. Nothing is begun with it before that is held or has ended: two would be in each
    /// other's way.
    pub(super) fn settles(&mut self, pid: i32) -> Vec<Move> {
        if self.work == Work::Checkpoint {
            self.work = Work::Undo;
        }
        self.set(pid, At::Settling)
    }

    /// The session of member `pid` is over. `is_failure`: not because the process has ended
    /// or runs again.
    pub(super) fn ended(&mut self, pid: i32, is_failure: bool) -> Vec<Move> {
        let was = self.member(pid).map(|member| member.at);
        if is_failure && self.work == Work::Checkpoint {
            self.work = Work::Undo;
        }
        let is_coming_back = matches!(
            was,
            Some(At::Settling | At::Populating | At::Ready | At::Releasing)
        );
        let at = match is_coming_back {
            true if is_failure => At::Left,
            true => At::Released,
            false => At::Out,
        };
        self.set(pid, at)
    }

    /// Member `pid` runs, with all its memory, and its session is over. Of one that is to be
    /// restored nothing may have been missing, which another look had to tell.
    pub(super) fn runs(&mut self, pid: i32) -> Vec<Move> {
        let was = self.member(pid).map(|member| member.at);
        match was {
            Some(At::Starting) if self.work == Work::Restore => self.set(pid, At::Released),
            _ => self.ended(pid, false),
        }
    }

    /// Somebody wants the checkpoint undone, or the time is up.
    pub(super) fn stop(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.work == Work::Checkpoint {
            self.work = Work::Undo;
            self.go_on(&mut moves);
        }
        moves
    }

    fn member(&mut self, pid: i32) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.pid == pid)
    }

    fn set(&mut self, pid: i32, at: At) -> Vec<Move> {
        let mut moves = Vec::new();
        if let Some(member) = self.member(pid) {
            member.at = at;
            self.go_on(&mut moves);
        }
        moves
    }

    fn begin(&mut self, pids: &[i32]) -> Vec<Move> {
        let first = self.members.len();
        let fresh = pids.iter().map(|&pid| Member::new(pid, At::Starting));
        self.members.extend(fresh);
        let begin = |(at, &pid): (usize, &i32)| Move::Begin {
            pid,
            index: (first + at) as u32,
        };
        pids.iter().enumerate().map(begin).collect()
    }

    fn go_on(&mut self, moves: &mut Vec<Move>) {
        if self.is_over {
            return;
        }
        let is_over = match self.work {
            Work::Checkpoint => self.go_on_checkpoint(moves),
            Work::Undo => self.go_on_undo(moves),
            Work::Restore => self.go_on_restore(moves),
        };
        if is_over {
            self.is_over = true;
            moves.push(Move::Over);
        }
    }

    /// True when all are held.
    fn go_on_checkpoint(&mut self, moves: &mut Vec<Move>) -> bool {
        if self.any(At::Starting) || self.any(At::Freezing) {
            return false;
        }
        if self.advance(1, At::Prepared, At::Freezing, moves) > 0 {
            return false;
        }
        if !self.is_complete {
            if !self.is_looking {
                self.is_looking = true;
                moves.push(Move::Look);
            }
            return false;
        }
        let n_free = self.n_at_once.saturating_sub(self.count(At::Storing));
        self.advance(n_free, At::Frozen, At::Storing, moves);
        if self.any(At::Frozen) || self.any(At::Storing) {
            return false;
        }
        self.advance(usize::MAX, At::Stored, At::Dropping, moves);
        !self.any(At::Dropping)
    }

    /// True when none is held or stands still any more.
    fn go_on_undo(&mut self, moves: &mut Vec<Move>) -> bool {
        for member in &mut self.members {
            // One that drops already finishes that first.
            if member.at < At::Dropping && !member.is_stopped {
                member.is_stopped = true;
                moves.push(Move::Stop { pid: member.pid });
            }
        }
        let is_busy = |member: &Member| member.at < At::Held;
        !self.members.iter().any(is_busy) && self.go_on_restore(moves)
    }

    /// True when every member runs, or cannot be helped now.
    fn go_on_restore(&mut self, moves: &mut Vec<Move>) -> bool {
        if self.any(At::Starting) || self.any(At::Settling) {
            return false;
        }
        let mut n_free = self.n_at_once.saturating_sub(self.count(At::Populating));
        for member in &mut self.members {
            if n_free > 0 && member.at == At::Held {
                n_free -= 1;
                member.at = At::Populating;
                moves.push(Move::Restore { pid: member.pid });
            }
        }
        if [At::Held, At::Populating, At::Releasing]
            .into_iter()
            .any(|at| self.any(at))
        {
            return false;
        }
        let last = self
            .members
            .iter_mut()
            .rev()
            .find(|member| member.at == At::Ready);
        let Some(last) = last else {
            return true;
        };
        last.at = At::Releasing;
        moves.push(Move::Go { pid: last.pid });
        false
    }

    /// Lets up to `n` members that are at `from` go on; answers how many.
    fn advance(&mut self, n: usize, from: At, to: At, moves: &mut Vec<Move>) -> usize {
        let before = moves.len();
        for member in self
            .members
            .iter_mut()
            .filter(|member| member.at == from)
            .take(n)
        {
            member.at = to;
            moves.push(Move::Go { pid: member.pid });
        }
        moves.len() - before
    }

    fn any(&self, at: At) -> bool {
        self.members.iter().any(|member| member.at == at)
    }

    fn count(&self, at: At) -> usize {
        self.members.iter().filter(|member| member.at == at).count()
    }
}

impl Member {
    fn new(pid: i32, at: At) -> Self {
        Self {
            pid,
            at,
            is_stopped: false,
        }
    }
}

#[cfg(test)]
mod tests;
