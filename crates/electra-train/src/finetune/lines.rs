//! Lines of a fine-tuning run's `metrics.jsonl`.

use crate::metrics_log::{LogLine, nullable};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done over all trials, this one included.
    pub step: u64,
    /// Number of the trial, from 1.
    pub trial: u32,
    /// Its seed.
    pub seed: u64,
    /// Epochs of the trial done.
    pub epoch: f64,
    /// Loss of the batch.
    #[serde(with = "nullable")]
    pub loss: f32,
    /// Learning rate of the head.
    #[serde(with = "nullable")]
    pub lr: f32,
    /// Norm of the gradient before clipping.
    #[serde(with = "nullable")]
    pub grad_norm: f32,
    /// Tokens trained on since the trial's beginning.
    pub tokens: u64,
    /// Tokens a second, over a moving window.
    #[serde(with = "nullable")]
    pub tokens_per_s: f32,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps done over all trials.
    pub step: u64,
    /// Number of the trial, from 1.
    pub trial: u32,
    /// Its seed.
    pub seed: u64,
    /// Epochs of the trial done.
    pub epoch: f64,
    /// Mean loss of the steps since the last evaluation.
    #[serde(with = "nullable")]
    pub train_loss: f32,
    /// `eval_loss` and `eval_METRIC`; of several tasks `eval_TASK_…`.
    #[serde(flatten)]
    pub scores: Map<String, Value>,
}

impl EvalRecord {
    /// The scores that are numbers, without `eval_`.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        self.scores.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix("eval_").unwrap_or(name), value.as_f64()?))
        })
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FinetuneLine {
    /// A step.
    Step(StepRecord),
    /// An evaluation.
    Eval(EvalRecord),
}

impl LogLine for FinetuneLine {
    fn step(&self) -> u64 {
        match self {
            Self::Step(line) => line.step,
            Self::Eval(line) => line.step,
        }
    }
}
