//! The victims program.

fn main() {}
