//! Fine-tuning: a model and labelled data to a model for a task.

pub mod layerwise;
