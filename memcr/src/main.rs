//! The memcr program: parse, call, say what went wrong, exit code.

use std::process::ExitCode;

use memcr::cli;
use memcr::cli::exit::Exit;
use memcr::fault;
use memcr::sys;

fn main() -> ExitCode {
    let _watch = fault::Watch::begin();
    sys::ignore_file_size_signal();
    let words: Vec<_> = std::env::args_os().collect();
    let args = match cli::parse(words.iter().cloned()) {
        Ok(args) => args,
        Err(error) => {
            return cli::answer(&error, &words).into();
        }
    };
    match cli::run(&args) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            cli::complain(&failure, args.common.log_format);
            failure.exit.into()
        }
    }
}
