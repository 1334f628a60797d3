//! memcr takes the memory of a live process away and gives it back.

pub mod checkpoint;
pub mod cli;
pub mod freeze;
pub mod inject;
pub mod maps;
pub mod pages;
pub mod pipeline;
pub mod restore;
pub mod session;
pub mod sink;
pub mod sys;
