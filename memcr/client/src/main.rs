//! memcr-client: asks memcr's daemon from a shell.
//!
//! ```text
//!   words ──args──▶ Order ──talk──▶ memcr_client ──▶ daemon
//!                     │               Said │ ClientError
//!                     └──── tell, show ◀───┘ ──▶ stdout, stderr, Exit
//! ```

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    match cli::parse(words.iter().cloned()) {
        Ok(args) => cli::run(&args, &words).into(),
        Err(error) => cli::answer(&error, &words).into(),
    }
}
