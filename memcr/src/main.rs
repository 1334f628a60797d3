//! The memcr program.

fn main() {}
