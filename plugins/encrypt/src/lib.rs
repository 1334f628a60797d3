//! The `encrypt` stage of memcr.
