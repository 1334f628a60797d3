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
    match cli::parse(std::env::args_os()) {
        Ok(args) => cli::run(&args).into(),
        Err(error) => cli::answer(&error).into(),
    }
}
