//! Vectors through pages → pipeline → sink and back, with no process: real plugins from
//! real files, and C ones that misbehave.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod damage;
mod faults;
mod keys;
mod lies;
mod loading;
mod orphan;
mod partial;
mod parts;
#[path = "../../../tests/fuzz/src/reseal.rs"]
#[allow(unreachable_pub)]
mod reseal;
mod roundtrip;
mod stalls;
mod support;
