//! The `passthrough` stage of memcr.
