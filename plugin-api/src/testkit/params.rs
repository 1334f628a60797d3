//! Checks that a handle is made from good parameters and refused for bad ones.

use super::{Subject, table};
use crate::abi::{Param, code, param};

pub(super) fn check(subject: &Subject) {
    // Two at once: nothing that a handle holds may stand in the way of another.
    let _both = (subject.create(), subject.create());
    for of in subject.loaded.params() {
        for value in bad_values(of) {
            debug_assert!(!table::allows(&subject.loaded, of, &value));
            check_refused(subject, of, value);
        }
    }
}

/// The host checks values before a stage sees them, but a stage is also called by tests,
/// tools and hosts to come: it must not do something else than it was told.
fn check_refused(subject: &Subject, of: &Param, value: String) {
    let name = subject.loaded.text(of.name).unwrap_or_default();
    let mut params = subject.params.clone();
    params.retain(|(key, _)| key != name);
    params.push((name.to_owned(), value.clone()));
    match subject.loaded.create(&params) {
        Ok(_) => subject.notice(format!(
            "create takes {name} = {value:?}, which the table does not allow"
        )),
        Err(failed) if failed.code != code::INVALID_CONFIG => subject.notice(format!(
            "create refuses {name} = {value:?} with code {}, not INVALID_CONFIG",
            failed.code
        )),
        Err(failed) if !failed.message.contains(name) => subject.notice(format!(
            "create refuses {name} = {value:?} without naming the parameter: {}",
            failed.message
        )),
        Err(_) => {}
    }
}

/// Values that no parameter of this kind allows; for texts and paths there are none.
fn bad_values(of: &Param) -> Vec<String> {
    let mut values = match of.kind {
        param::INTEGER | param::SIZE => vec!["seven".into(), String::new(), "1.5".into()],
        param::BOOL => vec!["maybe".into(), String::new(), "1".into()],
        param::CHOICE => vec!["no such choice".into(), String::new()],
        param::FD => vec!["-1".into(), "stdin".into()],
        _ => Vec::new(),
    };
    if matches!(of.kind, param::INTEGER | param::SIZE) {
        let beyond = [of.min.checked_sub(1), of.max.checked_add(1)];
        values.extend(beyond.into_iter().flatten().map(|n| n.to_string()));
    }
    values
}
