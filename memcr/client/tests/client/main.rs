//! The client, as a library and as a program, against a daemon that says what a test
//! tells it to.
#![allow(clippy::unwrap_used)]

mod fake;
mod library;
mod program;
