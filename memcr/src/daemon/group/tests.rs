use super::*;

fn go(pid: i32) -> Move {
    Move::Go { pid }
}

/// A checkpoint of processes 1 and 2, which a third one joins, up to all frozen.
fn frozen() -> Group {
    let (mut group, moves) = Group::checkpoint(&[1, 2], 2);
    assert_eq!(
        moves,
        [
            Move::Begin { pid: 1, index: 0 },
            Move::Begin { pid: 2, index: 1 }
        ]
    );
    assert!(group.reached(2, Step::Prepared).is_empty(), "1 is first");
    assert_eq!(group.reached(1, Step::Prepared), [go(1)]);
    assert_eq!(group.reached(1, Step::Frozen), [go(2)]);
    assert_eq!(group.reached(2, Step::Frozen), [Move::Look]);
    assert_eq!(
        group.members(&[1, 2, 3]),
        [Move::Begin { pid: 3, index: 2 }]
    );
    assert_eq!(group.reached(3, Step::Prepared), [go(3)]);
    assert_eq!(group.reached(3, Step::Frozen), [Move::Look]);
    group
}

/// The same, up to all stored but 3, which is being stored.
fn storing() -> Group {
    let mut group = frozen();
    assert_eq!(group.members(&[1, 2, 3]), [go(1), go(2)], "two at once");
    assert_eq!(group.reached(1, Step::Stored), [go(3)]);
    assert!(group.reached(2, Step::Stored).is_empty());
    group
}

#[test]
fn nothing_moves_before_all_are_frozen_nothing_goes_before_all_are_stored() {
    let mut group = storing();
    assert_eq!(group.reached(3, Step::Stored), [go(1), go(2), go(3)]);
    assert!(group.held(2).is_empty());
    assert!(group.held(1).is_empty());
    assert_eq!(group.held(3), [Move::Over]);
    assert!(group.has_worked());
}

#[test]
fn one_that_fails_takes_the_others_back() {
    let mut group = storing();
    let stop = |pid| Move::Stop { pid };
    assert_eq!(group.ended(3, true), [stop(1), stop(2)]);
    assert!(group.ended(1, true).is_empty());
    assert_eq!(group.ended(2, true), [Move::Over]);
    assert!(!group.has_worked());
}

#[test]
fn one_that_cannot_drop_has_the_held_ones_restored_in_reverse() {
    let mut group = storing();
    group.reached(3, Step::Stored);
    assert!(group.held(1).is_empty());
    assert!(group.ended(2, true).is_empty(), "3 still drops");
    let restore = |pid| Move::Restore { pid };
    assert_eq!(group.held(3), [restore(1), restore(3)]);
    assert!(group.reached(3, Step::Restored).is_empty());
    assert_eq!(group.reached(1, Step::Restored), [go(3)]);
    assert_eq!(group.ended(3, false), [go(1)]);
    assert_eq!(group.ended(1, false), [Move::Over]);
    assert!(!group.has_worked());
}

#[test]
fn one_that_ends_by_itself_is_not_missed() {
    let mut group = frozen();
    group.members(&[1, 2, 3]);
    assert_eq!(group.ended(2, false), [go(3)]);
    group.reached(1, Step::Stored);
    assert_eq!(group.reached(3, Step::Stored), [go(1), go(3)]);
    group.held(1);
    assert_eq!(group.held(3), [Move::Over]);
    assert!(group.has_worked());
}

#[test]
fn a_group_of_which_nothing_is_left_has_not_worked() {
    let (mut group, _) = Group::checkpoint(&[1], 2);
    assert_eq!(group.ended(1, false), [Move::Look]);
    assert_eq!(group.members(&[]), [Move::Over]);
    assert!(!group.has_worked());
}

#[test]
fn a_restore_that_fails_leaves_one_held_and_wakes_the_others() {
    let (mut group, moves) = Group::restore(&[1, 2], |_| true, 8);
    assert_eq!(moves, [Move::Restore { pid: 1 }, Move::Restore { pid: 2 }]);
    assert!(group.held(2).is_empty());
    assert_eq!(group.reached(1, Step::Restored), [go(1)]);
    assert_eq!(group.ended(1, false), [Move::Over]);
    assert!(!group.has_worked());
}

#[test]
fn a_restore_waits_for_what_is_not_known_yet() {
    let (mut group, moves) = Group::restore(&[1, 2, 3], |pid| pid == 1, 8);
    assert_eq!(moves, []);
    assert_eq!(group.ended(3, false), []);
    let restore = |pid| Move::Restore { pid };
    assert_eq!(group.held(2), [restore(1), restore(2)]);
}

#[test]
fn one_that_crashes_is_waited_for() {
    let mut group = storing();
    group.reached(3, Step::Stored);
    group.held(1);
    assert!(group.settles(1).is_empty());
    assert!(group.held(2).is_empty());
    assert!(group.held(3).is_empty(), "1 is looked at still");
    let restore = |pid| Move::Restore { pid };
    assert_eq!(group.held(1), [restore(1), restore(2)]);
}

#[test]
fn one_that_crashes_while_it_is_restored_is_tried_again() {
    let (mut group, _) = Group::restore(&[1, 2], |_| true, 8);
    assert!(group.settles(2).is_empty());
    assert!(group.reached(1, Step::Restored).is_empty());
    assert_eq!(group.held(2), [Move::Restore { pid: 2 }]);
    assert_eq!(group.reached(2, Step::Restored), [go(2)]);
    assert!(group.settles(2).is_empty(), "it may have run before");
    assert_eq!(group.ended(2, false), [go(1)]);
    assert_eq!(group.ended(1, false), [Move::Over]);
    assert!(group.has_worked());
}

#[test]
fn stopped_while_some_drop_all_come_back() {
    let mut group = storing();
    assert_eq!(group.stop(), [1, 2, 3].map(|pid| Move::Stop { pid }));
    group.ended(1, true);
    group.ended(2, true);
    assert_eq!(group.ended(3, true), [Move::Over]);
}

#[test]
fn one_that_lacked_nothing_was_restored() {
    let (mut group, moves) = Group::restore(&[1, 2], |_| false, 8);
    assert_eq!(moves, []);
    assert_eq!(group.ended(1, false), [], "by itself");
    assert_eq!(group.runs(2), [Move::Over]);
    assert!(group.has_worked());
}
