//! `checkpoint` and `restore` of many processes as one, without a daemon: for the time of
//! one request memcr is its own.

use memcr_text::{Out, Table, units};
use memcr_wire::Subject;
use serde_json::Value;

use super::args::{Args, Whom};
use super::exit::Exit;
use super::failure::Failure;
use super::{compat, home, load};
use crate::daemon::alone::{self, Wish};

/// `checkpoint --tree PID`, `--cgroup PATH`.
pub(super) fn checkpoint(args: &Args, whom: &Whom, out: &mut Out) -> Result<(), Failure> {
    compat::say_without_effect(&args.job);
    work(args, whom, Wish::Checkpoint, out)
}

/// `restore --tree PID`, `--cgroup PATH`.
pub(super) fn restore(args: &Args, whom: &Whom, out: &mut Out) -> Result<(), Failure> {
    work(args, whom, Wish::Restore, out)
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
