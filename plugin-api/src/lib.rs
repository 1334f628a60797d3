//! The stable interface between memcr and its stage plugins.

pub mod abi;
pub mod sink;
pub mod stage;

/// What the host offers to a stage: its log. Cheap to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {}
