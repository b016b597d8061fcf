//! Training: the pre-training loop, its run directory and its reports.

pub mod config;
pub mod optimizer;
pub mod schedule;
pub mod atomic_file;
pub mod checkpoint;
pub mod interrupt;
pub mod metrics_log;
pub mod progress;
pub mod report;
pub mod run_dir;
pub mod tensorboard;
