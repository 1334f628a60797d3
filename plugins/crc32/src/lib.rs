//! The `crc32` stage of memcr.
