//! Vectors through pages → pipeline → sink and back, with no process: real plugins from
//! real files, and C ones that misbehave.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod roundtrip;
mod support;
