//! The stable interface between memcr and its stage plugins.
//!
//! A plugin is a shared object `libmemcr_stage_NAME.so` that offers one stage. Its
//! author implements one safe trait and names it once:
//!
//! ```
//! use memcr_plugin_api::stage::{Chunk, Encoded, Params, Result, StageInfo, Threads, Transform};
//! use memcr_plugin_api::{Host, abi::capability};
//!
//! struct Plain;
//!
//! impl Transform for Plain {
//!     type Worker = ();
//!     const INFO: StageInfo = StageInfo {
//!         name: "plain",
//!         version: "1.0.0",
//!         summary: "hands on what it gets",
//!         threads: Threads::Parallel,
//!         capabilities: capability::INDEPENDENT_CHUNKS,
//!         params: &[],
//!     };
//!
//!     fn create(_: &Params, _: Host) -> Result<Self> {
//!         Ok(Plain)
//!     }
//!     fn worker(&self) -> Result<()> {
//!         Ok(())
//!     }
//!     fn bound(&self, in_len: usize) -> usize {
//!         in_len
//!     }
//!     fn encode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<Encoded> {
//!         out[..input.len()].copy_from_slice(input);
//!         Ok(Encoded::Len(input.len()))
//!     }
//!     fn decode(&self, _: &mut (), _: &Chunk<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
//!         out[..input.len()].copy_from_slice(input);
//!         Ok(input.len())
//!     }
//! }
//!
//! memcr_plugin_api::register_stage!(transform: Plain);
//! # fn main() {}
//! ```
//!
//! ```text
//!   your trait impl ──register_stage!──▶ memcr_stage_v1()   the C door: a table
//!     stage::Transform                   root module        the Rust door: the same
//!     stage::Checksum       export::     table, its layout checked by abi_stable
//!     sink::Sink
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`abi`] | the C tables, twin of `include/memcr_stage.h` |
//! | [`stage`], [`sink`] | the safe traits |
//! | [`export`] | both doors; the only unsafe code of this crate |
//! | [`testkit`] | the conformance suite, one line in a plugin's tests |
//! | [`order`] | puts per-chunk values back into order, for digests over an image |
//! | [`ram`] | how much RAM can be had, for sinks that store in it |

pub mod abi;
pub mod export;
pub mod order;
pub mod ram;
pub mod sink;
pub mod stage;
pub mod testkit;

pub use export::Host;
