//! The memcr program: parse, call, say what went wrong, exit code.

use std::process::ExitCode;

use memcr::cli;
use memcr::cli::exit::Exit;
use memcr::fault;

fn main() -> ExitCode {
    let _watch = fault::Watch::begin();
    let args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            return cli::answer(&error).into();
        }
    };
    match cli::run(&args) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            cli::complain(&failure);
            failure.exit.into()
        }
    }
}
