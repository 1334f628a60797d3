//! What the programs print for people: the same in memcr and in its client, which share
//! nothing else that is not the protocol.

mod err;
mod harmless;
mod out;
mod table;
pub mod units;
pub mod usage;

pub use err::diagnose;
pub use harmless::harmless;
pub use out::Out;
pub use table::Table;
