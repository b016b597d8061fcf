//! Training: the pre-training loop, its run directory and its reports.

pub mod atomic_file;
pub mod checkpoint;
pub mod config;
pub mod interrupt;
pub mod metrics_log;
pub mod optimizer;
pub mod progress;
pub mod report;
pub mod run_dir;
pub mod schedule;
pub mod tensorboard;
