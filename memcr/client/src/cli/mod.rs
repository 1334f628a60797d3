//! The command line of memcr-client: what is asked, and what is said about it.

mod args;
mod exit;
mod man;
mod order;
mod show;
mod talk;
mod tell;

use std::ffi::OsString;
use std::fmt;

use clap::Parser;
use memcr_client::Command;

use args::Args;
use exit::Exit;
use memcr_text::{Out, diagnose};
use order::{Job, Order};
use talk::Talk;

/// The command line in `words`, the first of which is the name of the program.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    let args = Args::try_parse_from(words)?;
    order::check(&args)?;
    Ok(args)
}

/// Prints what clap has to say of `words`. Help and version are answers; the rest are usage errors.
pub(crate) fn answer(error: &clap::Error, words: &[OsString]) -> Exit {
    if error.use_stderr() {
        // clap is of no help: it has stopped at the first mistake.
        let mut words = words.iter().take_while(|word| *word != "--");
        return tell::misuse(error, words.any(|word| word == "--json"));
    }
    match error.print() {
        // Who does not read it does not want it.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => tell::unwritten(&error),
        _ => Exit::Done,
    }
}

/// Does what `args` say, and says how it went.
pub(crate) fn run(args: &Args, words: &[OsString]) -> Exit {
    let mut out = Out::default();
    let exit = if args.man {
        man::print(&mut out)
    } else {
        match Order::new(args) {
            Ok(order) => follow(&order, &mut out),
            Err(error) => return answer(&error, words),
        }
    };
    match out.finish() {
        Err(error) if exit == Exit::Done => tell::unwritten(&error),
        _ => exit,
    }
}

fn follow(order: &Order, out: &mut Out) -> Exit {
    let mut talk = Talk::new(order);
    match &order.job {
        Job::Procedures(commands) => procedures(order, commands, &mut talk, out),
        Job::Ask(ask) => {
            let result = talk.ask(ask);
            tell::answer(order, ask, result, out)
        }
    }
}

/// One after the other, up to the first that fails: what cannot be checkpointed needs no
/// restore.
fn procedures(order: &Order, commands: &[Command], talk: &mut Talk<'_>, out: &mut Out) -> Exit {
    for command in commands {
        let result = talk.procedure(*command);
        let exit = tell::procedure(order, *command, result, out);
        if exit != Exit::Done {
            return exit;
        }
    }
    Exit::Done
}

/// Says on stderr what went wrong.
fn complain(what: impl fmt::Display) {
    diagnose(format_args!("memcr-client: {what}"));
}
