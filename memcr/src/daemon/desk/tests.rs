#![allow(clippy::unwrap_used)]
use super::*;
use crate::cli::args::Args;
use crate::cli::config::{Config, Places, pipeline};
use crate::daemon::link::News;
use crate::pipeline::Priority;
use clap::Parser;

/// A desk, and what it has said.
struct Room {
    desk: Desk,
    now: Instant,
    /// Answers by who waits.
    answers: BTreeMap<Waiter, Value>,
    /// Everything else, in words.
    said: Vec<String>,
}

fn task(pid: i32) -> Checkpoint {
    let args = Args::try_parse_from(["memcr", "-p", "1"]).unwrap();
    let config = Config::load(None, &Places::default()).unwrap();
    Checkpoint {
        pid,
        started: None,
        choice: pipeline(&config, &args.job, &[]).unwrap(),
        args,
        priority: Priority::Low,
        permit: None,
        group: None,
        parks: false,
    }
}

impl Room {
    fn new(n_checkpoints: usize) -> Self {
        let limits = Limits {
            n_checkpoints,
            n_restores: 2,
            n_sessions: 4,
        };
        Self {
            desk: Desk::new(limits),
            now: Instant::now(),
            answers: BTreeMap::new(),
            said: Vec::new(),
        }
    }

    /// What was said since the last time.
    fn said(&mut self) -> Vec<String> {
        while let Some(effect) = self.desk.next_effect() {
            let word = match effect {
                Effect::Start { key, task } => {
                    let what = match task {
                        Task::Checkpoint(task) => format!("checkpoint {}", task.pid),
                        Task::Restore { pid, gated } => format!("restore {pid} {gated}"),
                        Task::Settle { pid } => format!("settle {pid}"),
                        Task::Kill { pid } => format!("kill {pid}"),
                        Task::Stages | Task::Try(_) => "a question".into(),
                    };
                    format!("{key}: {what}")
                }
                Effect::Tell { key, order } => format!("{key}! {order:?}"),
                Effect::Stop { key } => format!("{key}! stop"),
                Effect::Look { group } => format!("look at {group}"),
                Effect::Answer { waiter, answer } => {
                    let again = self.answers.insert(waiter, answer);
                    assert!(again.is_none(), "{waiter} is answered twice");
                    continue;
                }
            };
            self.said.push(word);
        }
        std::mem::take(&mut self.said)
    }

    /// The exit code that `waiter` was answered.
    fn code(&mut self, waiter: Waiter) -> Option<u64> {
        let said = self.said();
        self.said = said;
        self.answers.get(&waiter)?["exit_code"].as_u64()
    }

    fn news(&mut self, key: Key, news: News) {
        self.desk.news(key, news, self.now);
    }

    fn held(&mut self, key: Key) {
        let facts = Facts::default();
        let answer = json!({ "ok": true, "exit_code": 0 });
        self.news(key, News::Held { facts, answer });
    }

    /// A child says its last word and ends.
    fn end(&mut self, key: Key, how: How, exit_code: u8) {
        let answer = json!({ "ok": exit_code == 0, "exit_code": exit_code });
        self.news(key, News::End { how, answer });
        self.desk.child_gone(key, "ended", self.now);
    }

    /// With process 10 held by child 1.
    fn with_held(n_checkpoints: usize) -> Self {
        let mut room = Self::new(n_checkpoints);
        room.desk.checkpoint(task(10), 1, room.now);
        assert_eq!(room.said(), ["1: checkpoint 10"]);
        room.held(1);
        assert_eq!(room.code(1), Some(0));
        room
    }
}

#[test]
fn a_process_is_held_and_restored() {
    let mut room = Room::with_held(1);
    room.desk.checkpoint(task(10), 2, room.now);
    assert_eq!(room.code(2), Some(13));
    room.desk.restore(10, 3, room.now);
    assert_eq!(room.said(), ["1! Restore { gated: false }"]);
    room.desk.restore(10, 4, room.now);
    assert_eq!(room.code(4), None, "answered together");
    room.end(1, How::Restored, 0);
    assert_eq!((room.code(3), room.code(4)), (Some(0), Some(0)));
    room.desk.restore(10, 5, room.now);
    assert_eq!(room.code(5), Some(14));
    assert!(!room.desk.is_busy());
}

#[test]
fn checkpoints_wait_for_each_other_and_restores_for_nobody() {
    let mut room = Room::with_held(1);
    room.desk.checkpoint(task(20), 2, room.now);
    assert_eq!(room.said(), ["2: checkpoint 20"]);
    room.desk.checkpoint(task(30), 3, room.now);
    assert!(room.said().is_empty());
    room.desk.restore(10, 4, room.now);
    assert_eq!(room.said(), ["1! Restore { gated: false }"]);
    room.held(2);
    assert!(room.said().is_empty(), "the restore goes before 30");
    room.end(1, How::Restored, 0);
    assert_eq!(room.said(), ["3: checkpoint 30"]);
}

#[test]
fn a_checkpoint_lets_restores_go_first_only_so_long() {
    let mut room = Room::with_held(2);
    room.desk.restore(10, 2, room.now);
    room.said();
    room.desk.checkpoint(task(20), 3, room.now);
    assert!(room.said().is_empty());
    room.desk.pump(room.now + PATIENCE);
    assert_eq!(room.said(), ["2: checkpoint 20"]);
}

#[test]
fn a_restore_stops_a_checkpoint_and_both_are_answered() {
    let mut room = Room::new(1);
    room.desk.checkpoint(task(10), 1, room.now);
    room.desk.restore(10, 2, room.now);
    assert_eq!(room.said(), ["1: checkpoint 10", "1! stop"]);
    room.end(1, How::Undone, 8);
    assert_eq!((room.code(1), room.code(2)), (Some(8), Some(0)));
}

#[test]
fn a_stop_that_comes_too_late_is_a_restore() {
    for is_abort in [false, true] {
        let mut room = Room::new(1);
        room.desk.checkpoint(task(10), 1, room.now);
        if is_abort {
            room.desk.abort(10, 2);
        } else {
            room.desk.restore(10, 2, room.now);
        }
        room.said();
        room.held(1);
        assert_eq!(room.said(), ["1! Restore { gated: false }"]);
        room.end(1, How::Restored, 0);
        assert_eq!((room.code(1), room.code(2)), (Some(0), Some(0)));
    }
}

#[test]
fn what_was_not_begun_is_taken_from_the_queue() {
    let mut room = Room::new(1);
    room.desk.checkpoint(task(10), 1, room.now);
    room.desk.checkpoint(task(20), 2, room.now);
    room.desk.checkpoint(task(30), 3, room.now);
    room.desk.restore(20, 4, room.now);
    room.desk.abort(30, 5);
    assert_eq!(room.said(), ["1: checkpoint 10"]);
    let codes = [2, 3, 4, 5].map(|waiter| room.code(waiter));
    assert_eq!(codes, [Some(8), Some(8), Some(0), Some(0)]);
    room.desk.abort(40, 6);
    assert_eq!(room.code(6), Some(14));
}

#[test]
fn the_time_in_the_queue_counts() {
    let limited = |pid, seconds| {
        let mut task = task(pid);
        task.args.job.timeout = Some(Duration::from_secs(seconds));
        task
    };
    let mut room = Room::new(1);
    room.desk.checkpoint(task(10), 1, room.now);
    room.desk.checkpoint(limited(20, 5), 2, room.now);
    room.desk.checkpoint(limited(30, 3), 3, room.now);
    room.desk.pump(room.now + Duration::from_secs(3));
    assert_eq!(room.said(), ["1: checkpoint 10"]);
    assert_eq!((room.code(2), room.code(3)), (None, Some(8)));
    room.now += Duration::from_secs(4);
    room.held(1);
    let left = std::iter::from_fn(|| room.desk.next_effect()).find_map(|effect| match effect {
        Effect::Start {
            task: Task::Checkpoint(task),
            ..
        } => task.args.job.timeout,
        _ => None,
    });
    assert_eq!(left, Some(Duration::from_secs(1)));
}

#[test]
fn there_are_no_more_sessions_than_allowed() {
    let mut room = Room::new(1);
    for pid in 1..=5 {
        room.desk
            .checkpoint(task(pid * 10), pid.cast_unsigned().into(), room.now);
    }
    assert_eq!((room.code(4), room.code(5)), (None, Some(15)));
}

#[test]
fn a_child_that_crashes_costs_a_new_one() {
    let mut room = Room::with_held(1);
    room.desk.restore(10, 2, room.now);
    room.said();
    room.desk.child_gone(1, "was ended by signal 11", room.now);
    assert_eq!(room.said(), ["2: settle 10"]);
    room.end(2, How::Parked, 0);
    assert_eq!(room.said(), ["3: restore 10 false"], "somebody waits");
    room.desk.child_gone(3, "was ended by signal 11", room.now);
    assert!(room.said().is_empty(), "not for ever");
    assert_eq!(room.code(2), Some(1), "everybody is told");
    room.desk.restore(10, 3, room.now);
    assert_eq!(room.said(), ["4: restore 10 false"]);
    room.end(4, How::Restored, 0);
    assert_eq!(room.code(3), Some(0));
}

#[test]
fn a_child_that_crashes_while_it_stores_has_its_client_told() {
    let mut room = Room::new(1);
    room.desk.checkpoint(task(10), 1, room.now);
    room.said();
    room.desk.child_gone(1, "was ended by signal 6", room.now);
    assert_eq!(room.said(), ["2: settle 10"]);
    assert_eq!(room.code(1), Some(1));
    room.end(2, How::Restored, 0);
    assert!(!room.desk.has(10));
}

#[test]
fn whoever_comes_while_it_is_settled_is_told_of_the_second_crash() {
    let mut room = Room::new(1);
    room.desk.checkpoint(task(10), 1, room.now);
    room.desk.abort(10, 2);
    room.said();
    room.desk.child_gone(1, "was ended by signal 6", room.now);
    room.desk.restore(10, 3, room.now);
    room.said();
    room.desk.child_gone(2, "was ended by signal 6", room.now);
    let codes = [1, 2, 3].map(|waiter| room.code(waiter));
    assert_eq!(codes, [Some(1), Some(1), Some(1)]);
}

#[test]
fn a_restore_that_fails_may_be_asked_for_again() {
    let mut room = Room::with_held(1);
    room.desk.restore(10, 2, room.now);
    room.said();
    room.news(1, News::Still(json!({ "ok": false, "exit_code": 12 })));
    assert_eq!(room.code(2), Some(12));
    room.desk.restore(10, 3, room.now);
    assert_eq!(room.said(), ["1! Restore { gated: false }"]);
}

#[test]
fn very_many_restores_wait_for_each_other() {
    let mut room = Room::new(1);
    for pid in [10, 20, 30] {
        room.desk
            .adopt(pid, Facts::default(), None, Found::Parked, room.now);
        room.desk.restore(pid, pid.cast_unsigned().into(), room.now);
    }
    assert_eq!(room.said(), ["1: restore 10 false", "2: restore 20 false"]);
    assert_eq!(room.desk.status_of(30)["state"], "restoring");
    room.end(2, How::Restored, 0);
    assert_eq!(room.said(), ["3: restore 30 false"]);
}

#[test]
fn a_target_that_ends_is_forgotten_and_remembered() {
    let mut room = Room::with_held(1);
    room.end(1, How::Exited, 9);
    assert_eq!(room.desk.status_of(10)["state"], "none");
    assert_eq!(room.desk.status_of(10)["ended"]["how"], "exited");
}

#[test]
fn what_a_daemon_left_is_taken_over() {
    let mut room = Room::new(1);
    room.desk
        .adopt(10, Facts::default(), None, Found::Parked, room.now);
    room.desk
        .adopt(20, Facts::default(), None, Found::Interrupted, room.now);
    assert_eq!(room.said(), ["1: settle 20"]);
    room.desk.restore(20, 1, room.now);
    assert!(room.said().is_empty(), "it is not known yet what it is");
    room.end(1, How::Parked, 0);
    assert_eq!(room.said(), ["2: restore 20 false"]);
    room.desk.has_ended(10, room.now);
    assert_eq!(room.said(), ["3: settle 10"]);
    room.end(3, How::Exited, 5);
    assert!(!room.desk.has(10));
}

#[test]
fn what_fails_is_tried_again_after_a_pause_or_when_it_is_asked_for() {
    let mut room = Room::new(1);
    room.desk
        .adopt(10, Facts::default(), None, Found::Parked, room.now);
    room.desk.is_doomed(10, room.now);
    assert_eq!(room.said(), ["1: restore 10 false"]);
    room.end(1, How::Parked, 12);
    room.desk.is_doomed(10, room.now);
    assert!(room.said().is_empty(), "at once");
    room.desk.restore(10, 1, room.now);
    assert_eq!(room.said(), ["2: restore 10 false"]);
    room.end(2, How::Parked, 12);
    room.now += Duration::from_millis(1500);
    room.desk.is_doomed(10, room.now);
    assert!(room.said().is_empty(), "the second pause is longer");
    room.now += Duration::from_secs(1);
    room.desk.is_doomed(10, room.now);
    assert_eq!(room.said(), ["3: restore 10 false"]);
    // Its process crashes, and again that of the look at it.
    room.desk.child_gone(3, "crashed", room.now);
    assert_eq!(room.said(), ["4: settle 10"]);
    room.desk.child_gone(4, "crashed", room.now);
    room.desk.is_doomed(10, room.now);
    assert!(room.said().is_empty());
}

#[test]
fn one_that_has_ended_is_not_kept_because_something_of_it_is_left() {
    let mut room = Room::new(1);
    room.desk
        .adopt(10, Facts::default(), None, Found::Parked, room.now);
    room.desk.has_ended(10, room.now);
    room.desk.restore(10, 1, room.now);
    assert_eq!(room.said(), ["1: settle 10"]);
    room.end(1, How::Parked, 10);
    assert_eq!(room.code(1), Some(10));
    assert!(!room.desk.has(10) && !room.desk.is_working());
    assert_eq!(room.desk.status_of(10)["ended"]["how"], "exited");
    // Its journal is found again at the next request.
    assert!(!room.desk.may_try(10, room.now));
    room.now += Duration::from_secs(1);
    assert!(room.desk.may_try(10, room.now));
    room.desk
        .adopt(10, Facts::default(), None, Found::Gone, room.now);
    assert_eq!(room.said(), ["2: settle 10"]);
    room.end(2, How::Parked, 10);
    room.now += Duration::from_secs(1);
    assert!(
        !room.desk.may_try(10, room.now),
        "the second pause is longer"
    );
    room.desk
        .adopt(10, Facts::default(), None, Found::Gone, room.now);
    room.end(3, How::Exited, 0);
    assert!(room.desk.may_try(10, room.now));
}

#[test]
fn at_the_end_work_is_stopped_and_targets_are_left() {
    let mut room = Room::with_held(1);
    room.desk.checkpoint(task(20), 2, room.now);
    room.desk.checkpoint(task(30), 3, room.now);
    room.said();
    room.desk.stop_all();
    assert_eq!(room.said(), ["2! stop"]);
    room.end(2, How::Undone, 8);
    assert!(!room.desk.is_working());
    room.desk.checkpoint(task(40), 4, room.now);
    let codes = [2, 3, 4].map(|waiter| room.code(waiter));
    assert_eq!(codes, [Some(8), Some(8), Some(15)]);
    room.desk.park_all();
    assert_eq!(room.said(), ["1! Park"]);
    room.end(1, How::Parked, 0);
    assert!(!room.desk.is_busy());
}

#[test]
fn at_the_end_a_restore_that_fails_is_not_begun_again() {
    let mut room = Room::with_held(1);
    room.desk
        .adopt(20, Facts::default(), None, Found::Parked, room.now);
    room.desk.stop_all();
    assert_eq!(room.desk.restore_some(1, room.now), 2);
    assert_eq!(room.said(), ["1! Restore { gated: false }"]);
    room.news(1, News::Still(json!({ "ok": false, "exit_code": 12 })));
    assert_eq!(room.desk.restore_some(1, room.now), 1, "the other one");
    assert_eq!(room.said(), ["2: restore 20 false"]);
    room.end(2, How::Parked, 12);
    assert_eq!(room.desk.restore_some(1, room.now), 0);
    assert!(room.said().is_empty());
    room.desk.park_all();
    room.desk.park_all();
    assert_eq!(room.said(), ["1! Park"], "once");
    room.end(1, How::Parked, 0);
    assert!(!room.desk.is_busy());
}

#[test]
fn a_restore_that_crosses_the_parking_is_done() {
    let mut room = Room::with_held(1);
    room.desk.stop_all();
    room.desk.park_all();
    room.desk.restore(10, 2, room.now);
    room.said();
    room.end(1, How::Parked, 0);
    assert_eq!(room.said(), ["2: restore 10 false"]);
    room.end(2, How::Restored, 0);
    assert_eq!(room.code(2), Some(0));
    assert!(!room.desk.is_busy());
}

mod groups {
    use super::*;
    use crate::session::gate::Step;

    /// Processes 10 and 20, both stored by children 1 and 2.
    fn stored() -> Room {
        let mut room = Room::new(2);
        room.desk
            .checkpoint_group("tree:10", &[10, 20], task(0), 1, room.now);
        assert_eq!(room.said(), ["1: checkpoint 10", "2: checkpoint 20"]);
        for step in [Step::Prepared, Step::Frozen] {
            room.news(1, News::At(step));
            room.news(2, News::At(step));
        }
        assert_eq!(room.said(), ["1! Go", "2! Go", "look at tree:10"]);
        room
    }

    #[test]
    fn all_are_held_then_all_run() {
        let mut room = Room::new(2);
        let name = "tree:10";
        room.desk
            .checkpoint_group(name, &[10, 20], task(0), 1, room.now);
        room.said();
        room.news(1, News::At(Step::Prepared));
        room.news(2, News::At(Step::Prepared));
        assert_eq!(room.said(), ["1! Go"]);
        room.news(1, News::At(Step::Frozen));
        assert_eq!(room.said(), ["2! Go"]);
        room.news(2, News::At(Step::Frozen));
        assert_eq!(room.said(), ["look at tree:10"]);
        room.desk.members(name, &[10, 20]);
        assert_eq!(room.said(), ["1! Go", "2! Go"]);
        room.news(1, News::At(Step::Stored));
        room.news(2, News::At(Step::Stored));
        assert_eq!(room.said(), ["1! Go", "2! Go"]);
        room.held(2);
        assert_eq!(room.code(1), None);
        room.held(1);
        assert_eq!(room.code(1), Some(0));
        assert_eq!(room.answers[&1]["members"][1]["pid"], 20);
        assert_eq!(room.answers[&1]["members"][1]["ok"], true);

        room.desk.restore_group(name, 2, room.now);
        let restore = |key| format!("{key}! Restore {{ gated: true }}");
        assert_eq!(room.said(), [restore(1), restore(2)]);
        room.news(1, News::At(Step::Restored));
        room.news(2, News::At(Step::Restored));
        assert_eq!(room.said(), ["2! Go"], "woken in reverse");
        room.end(2, How::Restored, 0);
        assert_eq!(room.said(), ["1! Go"]);
        room.end(1, How::Restored, 0);
        assert_eq!(room.code(2), Some(0));
        room.desk.restore_group(name, 3, room.now);
        assert_eq!(room.code(3), Some(14));
    }

    #[test]
    fn one_that_is_refused_has_all_run_on() {
        let mut room = Room::new(2);
        room.desk
            .checkpoint_group("tree:10", &[10, 20], task(0), 1, room.now);
        room.said();
        room.end(2, How::Undone, 4);
        assert_eq!(room.said(), ["1! stop"]);
        room.end(1, How::Undone, 8);
        assert_eq!(room.code(1), Some(4), "the reason is that of the first");
        assert!(!room.desk.is_working());
    }

    #[test]
    fn a_crash_has_the_others_stopped() {
        let mut room = stored();
        room.desk.child_gone(2, "was ended by signal 11", room.now);
        assert_eq!(room.said(), ["3: settle 20", "1! stop"]);
        room.end(1, How::Undone, 8);
        room.end(3, How::Restored, 0);
        assert_eq!(room.code(1), Some(1), "both run, and why is told");
    }

    #[test]
    fn a_crash_of_one_that_is_held_is_settled_before_it_is_restored() {
        let mut room = stored();
        room.desk.members("tree:10", &[10, 20]);
        room.news(1, News::At(Step::Stored));
        room.news(2, News::At(Step::Stored));
        room.held(2);
        room.said();
        room.desk.restore(20, 2, room.now);
        room.desk.child_gone(2, "was ended by signal 11", room.now);
        assert_eq!(room.said(), ["3: settle 20"]);
        room.held(1);
        assert!(room.said().is_empty(), "no second one beside it");
        room.end(3, How::Parked, 0);
        assert_eq!(
            room.said(),
            ["1! Restore { gated: true }", "4: restore 20 true"]
        );
        room.news(1, News::At(Step::Restored));
        room.news(4, News::At(Step::Restored));
        room.end(4, How::Restored, 0);
        room.end(1, How::Restored, 0);
        assert_eq!((room.code(1), room.code(2)), (Some(1), Some(0)));
        assert!(!room.desk.is_busy());
    }

    #[test]
    fn who_wants_one_member_back_has_all_run_on() {
        let mut room = stored();
        room.desk.members("tree:10", &[10, 20]);
        room.news(1, News::At(Step::Stored));
        room.news(2, News::At(Step::Stored));
        room.held(1);
        room.said();
        room.desk.restore(10, 2, room.now);
        assert!(room.said().is_empty(), "20 still drops");
        room.held(2);
        let restore = |key| format!("{key}! Restore {{ gated: true }}");
        assert_eq!(room.said(), [restore(1), restore(2)]);
        room.news(1, News::At(Step::Restored));
        room.news(2, News::At(Step::Restored));
        room.end(2, How::Restored, 0);
        room.end(1, How::Restored, 0);
        assert_eq!((room.code(1), room.code(2)), (Some(8), Some(0)));
    }

    #[test]
    fn a_restore_while_it_is_checkpointed_stops_it() {
        let mut room = stored();
        room.desk.restore_group("tree:10", 2, room.now);
        assert_eq!(room.said(), ["1! stop", "2! stop"]);
        room.end(1, How::Undone, 8);
        room.end(2, How::Undone, 8);
        assert_eq!((room.code(1), room.code(2)), (Some(8), Some(0)));
    }

    #[test]
    fn a_restore_that_crosses_the_parking_is_done() {
        let mut room = stored();
        room.desk.members("tree:10", &[10, 20]);
        for key in [1, 2] {
            room.news(key, News::At(Step::Stored));
            room.held(key);
        }
        room.desk.stop_all();
        room.desk.park_all();
        room.said();
        room.desk.restore_group("tree:10", 2, room.now);
        room.said();
        room.end(1, How::Parked, 0);
        room.end(2, How::Parked, 0);
        assert_eq!(room.said(), ["3: restore 10 true", "4: restore 20 true"]);
        for key in [3, 4] {
            room.news(key, News::At(Step::Restored));
        }
        room.end(4, How::Restored, 0);
        room.end(3, How::Restored, 0);
        assert_eq!(room.code(2), Some(0));
    }

    #[test]
    fn who_is_held_already_cannot_be_a_member() {
        let mut room = Room::with_held(2);
        room.desk
            .checkpoint_group("tree:10", &[10, 20], task(0), 2, room.now);
        assert_eq!(room.code(2), Some(13));
    }
}
