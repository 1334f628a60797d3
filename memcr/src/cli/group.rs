//! `checkpoint` and `restore` of many processes as one, without a daemon: for the time of
//! one request memcr is its own.

use memcr_text::{Out, Table, units};
use memcr_wire::Subject;
use serde_json::Value;

use super::args::{Args, Whom};
use super::exit::Exit;
use super::failure::Failure;
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
        print(&answer, wish, out);
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

fn print(answer: &Value, wish: Wish, out: &mut Out) {
    let members = answer["members"].as_array().map_or(&[][..], Vec::as_slice);
    let group = answer["group"].as_str().unwrap_or_default();
    let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".into(), units::bytes);
    let n = members.len();
    match wish {
        Wish::Checkpoint => {
            out.line(format_args!("{group} is held: {n} processes"));
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
            out.line(table);
        }
        Wish::Restore => {
            out.line(format_args!("{group} is restored: {n} processes"));
            let mut table = Table::new(["PID", "RSS AFTER"]);
            for member in members {
                let report = &member["restore"];
                table.row([member["pid"].to_string(), bytes(&report["rss_after_bytes"])]);
            }
            out.line(table);
        }
    }
}
