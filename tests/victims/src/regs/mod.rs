//! Registers that are known and watched.
//!
//! ```text
//!   Frame.want ──load──▶ every register ──spin (live, no memory)──▶ store ──▶ Frame.got
//! ```
//!
//! Nearly all of a round is spent in the spin, so that a stop of the thread nearly
//! always hits it there. A wrong register shows as a difference afterwards.

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;

pub(crate) use arch::{Level, Watch, inline_call};
