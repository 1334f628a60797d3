//! The `file` stage of memcr.
