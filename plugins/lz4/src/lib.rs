//! The `lz4` stage of memcr.
