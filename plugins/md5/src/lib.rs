//! The `md5` stage of memcr.
