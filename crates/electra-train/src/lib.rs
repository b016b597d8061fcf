//! Training: the pre-training loop, its run directory and its reports.

pub mod config;
pub mod optimizer;
pub mod schedule;
