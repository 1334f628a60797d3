//! libmemcrclient: what a C program needs to ask memcr's daemon, in four functions.
//!
//! The names, the arguments and the bytes on the wire (version 1 of the old protocol) are
//! those that programs written for the C memcr expect. `include/libmemcrclient.h` says how
//! they are used.
//!
//! ```text
//!   memcr_client_connect ─▶ descriptor ─▶ memcr_client_checkpoint │ memcr_client_restore
//!                               └───────▶ memcr_client_disconnect
//! ```

pub mod export;
mod request;
