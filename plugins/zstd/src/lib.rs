//! The `zstd` stage of memcr.
