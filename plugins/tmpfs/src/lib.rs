//! The `tmpfs` stage of memcr.
