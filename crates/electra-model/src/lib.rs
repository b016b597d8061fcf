//! ELECTRA networks, their parameters and their files.

pub mod config;
pub mod files;
pub mod flops;
