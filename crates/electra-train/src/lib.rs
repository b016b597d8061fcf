//! Training: the pre-training loop, its run directory and its reports.

pub mod checkpoint;
pub mod config;
pub mod evaluation;
pub mod export;
pub mod finetune;
pub mod informed;
pub mod interrupt;
pub mod job;
pub mod metrics_log;
pub mod optimizer;
mod preset;
pub mod pretrain;
pub mod progress;
pub mod replacements;
pub mod report;
pub mod run_dir;
pub mod schedule;
pub mod setting;
pub mod tensorboard;
pub mod trainer;
