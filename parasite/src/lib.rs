#![no_std]
//! The code that runs inside the target.
