//! Asks memcr's daemon to take the memory of processes away and to give it back.
//!
//! ```text
//!   Client   ──{"memcr":1,"do":…}⏎──▶ daemon     our own protocol: many requests,
//!            ◀─{"memcr":1,"ok":…}⏎──             answers with reasons
//!   legacy   ──64 00 00 00 …────────▶ daemon     that of the C memcr: one request per
//!            ◀─00 00 00 00───────────            connection, answered by a number
//! ```
//!
//! ```no_run
//! use memcr_client::{Choice, Client, Location, Subject};
//!
//! let daemon: Location = "/run/memcr.sock".parse()?;
//! let mut client = Client::connect(&daemon)?;
//! let answer = client.checkpoint(Subject::Pid(4711), Choice::default(), None)?;
//! println!("held: {}", answer.object["checkpoint"]["rss_held_bytes"]);
//! client.restore(Subject::Pid(4711), None)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything here blocks, within deadlines: connecting and sending by default for no
//! more than [`Patience`] says, waiting for an answer for as long as the work takes,
//! unless told otherwise. A deadline that passes ends the wait, not the work.
//!
//! No thread is made, no signal raised (SIGPIPE included), no process touched: this crate
//! does not depend on the one that can.

mod client;
mod error;
pub mod legacy;
pub mod socket;

pub use client::{Client, Patience};
pub use error::ClientError;
pub use memcr_wire::{
    Answer, Ask, Choice, Code, Command, Compress, Location, LocationError, Reason, Subject,
};
