//! Tests of both doors, and of plugins that come out of a file.

mod doors;
mod loaded;
