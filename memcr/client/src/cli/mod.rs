//! The command line of memcr-client: what is asked, and what is said about it.

mod args;
mod exit;
mod man;
mod order;
mod out;
mod show;
mod talk;
mod tell;

use std::ffi::OsString;

use clap::Parser;
use memcr_client::Command;

use args::Args;
use exit::Exit;
use memcr_text::Out;
use order::{Job, Order};
use talk::Talk;

/// The command line in `words`, the first of which is the name of the program.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    let args = Args::try_parse_from(words)?;
    order::check(&args)?;
    Ok(args)
}

/// Prints what clap has to say. Help and version are answers; the rest are usage errors.
pub(crate) fn answer(error: &clap::Error) -> Exit {
    // Who does not read it does not want it.
    let _ = error.print();
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    }
}

/// Does what `args` say, and says how it went.
pub(crate) fn run(args: &Args) -> Exit {
    let mut out = Out::default();
    let exit = if args.man {
        man::print(&mut out)
    } else {
        match Order::new(args) {
            Ok(order) => follow(&order, &mut out),
            Err(error) => return answer(&error),
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
