//! memcr takes the memory of a live process away and gives it back.

pub mod cli;
pub mod maps;
pub mod pages;
pub mod pipeline;
pub mod sink;
pub mod sys;
