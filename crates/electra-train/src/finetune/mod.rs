//! Fine-tuning: a model and labelled data to a model for a task.

pub mod answers;
pub mod batch;
pub mod config;
mod evaluation;
pub mod job;
pub mod layerwise;
pub mod lines;
pub mod model;
pub mod outputs;
pub mod plan;
pub mod probe;
pub mod report;
pub mod results;
pub mod run;
pub mod score;
mod state;
pub mod task;
pub mod trainer;
