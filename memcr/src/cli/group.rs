//! `checkpoint` and `restore` of many processes as one, without a daemon: for the time of
//! one request memcr is its own.

use memcr_text::{Out, Table, units};
use memcr_wire::Subject;
use serde_json::Value;

use super::args::{Args, Whom};
use super::exit::Exit;
use super::failure::Failure;
use super::sessions::CLEANED;
use super::{compat, config, home, load, search};
use crate::daemon::alone::{self, Wish};
use crate::pipeline::{ParamType, Plugin};

/// `checkpoint --tree PID`, `--cgroup PATH`.
pub(super) fn checkpoint(args: &Args, whom: &Whom, out: &mut Out) -> Result<(), Failure> {
    compat::say_without_effect(&args.job);
    no_descriptors(args)?;
    work(args, whom, Wish::Checkpoint, out)
}

/// `restore --tree PID`, `--cgroup PATH`.
pub(super) fn restore(args: &Args, whom: &Whom, out: &mut Out) -> Result<(), Failure> {
    if let Some(set) = args.common.set.first() {
        let what = format!("--set {set}: members of a group take no parameters when restored");
        let hint = format!("`memcr restore PID --set {set}` restores one of them alone");
        return Err(Failure::new(Exit::Usage, what).with_hint(Some(&hint)));
    }
    work(args, whom, Wish::Restore, out)
}

/// Each member has a process of memcr's, which has none of our descriptors.
fn no_descriptors(args: &Args) -> Result<(), Failure> {
    let config = load(args)?;
    let search = search(&config);
    let choice = config::pipeline(&config, &args.job, &args.common.set)?;
    for stage in choice.spec.stages.iter().filter(|it| !it.params.is_empty()) {
        let plugin = Plugin::load(&stage.plugin, &search)?;
        let known = &plugin.description().params;
        let is_fd = |key: &str| {
            let param = known.iter().find(|param| param.name == key);
            param.is_some_and(|param| matches!(param.ty, ParamType::Fd))
        };
        let Some((key, _)) = stage.params.iter().find(|(key, _)| is_fd(key)) else {
            continue;
        };
        let origin = choice.origin(&stage.alias, key);
        let what = format!(
            "{}parameter `{key}` of stage `{}` is a descriptor of memcr, which the processes \
             that checkpoint the members of a group do not have",
            origin.map(|it| format!("{it}: ")).unwrap_or_default(),
            stage.alias
        );
        let hint = format!(
            "`memcr --stage-help {}` shows what else there is",
            stage.alias
        );
        return Err(Failure::new(Exit::Usage, what).with_hint(Some(&hint)));
    }
    Ok(())
}

fn work(args: &Args, whom: &Whom, wish: Wish, out: &mut Out) -> Result<(), Failure> {
    let config = load(args)?;
    let home = home(args, &config);
    let answer = alone::run(&subject(whom)?, wish, args, &config, home)?;
    if let Some(failure) = Failure::of_answer(&answer) {
        return Err(failure.with_detail("members", answer["members"].clone()));
    }
    if args.common.json {
        out.json(&answer);
    } else {
        out.line(describe(&answer, wish));
    }
    Ok(())
}

fn subject(whom: &Whom) -> Result<Subject, Failure> {
    match (whom.tree, &whom.cgroup) {
        (Some(pid), _) => Ok(Subject::Tree(pid.cast_signed())),
        (None, Some(path)) if path.starts_with('/') && path.len() > 1 => {
            Ok(Subject::Cgroup(path.clone()))
        }
        (None, path) => {
            let path = path.as_deref().unwrap_or_default();
            let what = format!("`{path}` is not the path of a cgroup, as in /app.slice/x");
            Err(Failure::new(Exit::Usage, what))
        }
    }
}

/// The answer for people.
fn describe(answer: &Value, wish: Wish) -> String {
    let members = answer["members"].as_array().map_or(&[][..], Vec::as_slice);
    let group = answer["group"].as_str().unwrap_or_default();
    let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".into(), units::bytes);
    match wish {
        Wish::Checkpoint => {
            let mut table = Table::new(["PID", "RSS BEFORE", "RSS HELD", "IMAGE"]);
            for member in members {
                let report = &member["checkpoint"];
                table.row([
                    member["pid"].to_string(),
                    bytes(&report["rss_before_bytes"]),
                    bytes(&report["rss_held_bytes"]),
                    report["image"].as_str().unwrap_or("-").to_owned(),
                ]);
            }
            format!("{group} is held: {}\n{table}", processes(members.len()))
        }
        Wish::Restore => {
            let mut table = Table::new(["PID", "RSS AFTER"]);
            for member in members {
                let after = match has_ended(member) {
                    true => "ended".into(),
                    false => bytes(&member["restore"]["rss_after_bytes"]),
                };
                table.row([member["pid"].to_string(), after]);
            }
            let n_ended = members.iter().filter(|member| has_ended(member)).count();
            let restored = processes(members.len() - n_ended);
            let ended = match n_ended {
                0 => String::new(),
                n => format!("; {} ended while held", processes(n)),
            };
            format!("{group} is restored: {restored}{ended}\n{table}")
        }
    }
}

fn processes(n: usize) -> String {
    format!("{n} process{}", if n == 1 { "" } else { "es" })
}

/// A member that ended while it was held is no failure: the others run.
fn has_ended(member: &Value) -> bool {
    let is = |exit: Exit| member["exit_code"] == exit.code();
    is(Exit::TargetGone) || is(Exit::NoProcess) || member["outcome"] == CLEANED
}

#[cfg(test)]
mod tests {
    use super::{Wish, describe};
    use serde_json::json;

    #[test]
    fn one_is_a_process_and_two_are_processes() {
        let member = |pid: i32| json!({ "pid": pid, "ok": true, "exit_code": 0 });
        for (pids, want) in [(&[7][..], "1 process\n"), (&[7, 8], "2 processes\n")] {
            let members: Vec<_> = pids.iter().copied().map(member).collect();
            let answer = json!({ "group": "tree:7", "members": members });
            let said = describe(&answer, Wish::Checkpoint);
            assert!(
                said.starts_with(&format!("tree:7 is held: {want}")),
                "{said}"
            );
        }
    }

    #[test]
    fn who_has_ended_is_not_restored() {
        let report = json!({ "rss_after_bytes": 4096 });
        let answer = json!({ "group": "tree:7", "members": [
            { "pid": 7, "ok": true, "exit_code": 0, "outcome": "restored", "restore": report },
            { "pid": 8, "ok": false, "exit_code": 9 },
            { "pid": 9, "ok": true, "exit_code": 0, "outcome": "nothing missing" },
            { "pid": 10, "ok": true, "exit_code": 0, "outcome": "cleaned" },
        ]});
        assert_eq!(
            describe(&answer, Wish::Restore),
            "tree:7 is restored: 2 processes; 2 processes ended while held\n\
             PID  RSS AFTER\n7    4.0 KiB\n8    ended\n9    -\n10   ended"
        );
    }
}
