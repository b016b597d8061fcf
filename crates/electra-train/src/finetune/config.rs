//! Hyper-parameters of fine-tuning, with the names of the published system where it has them.

use crate::setting::{Setting, SettingError, read_object, to_map};
use electra_data::tasks::Metric;
use electra_model::config::ElectraConfig;
use electra_model::heads::HeadStyle;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Weights of classes in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// `"balanced"`: examples / (classes · examples of the class), as in scikit-learn.
    Named(String),
    /// One each, in the order of the labels.
    Each(Vec<f64>),
}

/// Hyper-parameters of a fine-tuning run. What is `None` follows the model's size or the task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Peak learning rate; of small 3e-4, base 1e-4, large 5e-5.
    pub learning_rate: Option<f64>,
    /// Factor on the learning rate from each layer to the one below; large 0.9, else 0.8.
    pub layerwise_lr_decay: Option<f64>,
    /// Share of the steps over which the learning rate warms up.
    pub warmup_proportion: f64,
    /// Weight decay, norms and biases left out.
    pub weight_decay_rate: f64,
    /// Passes over the training data; the task's, of `shots` as many as make 200 steps.
    pub num_train_epochs: Option<f64>,
    /// Examples (windows of a text, questions with their choices) of a batch.
    pub train_batch_size: usize,
    /// Micro-batches that a batch is split into, to save memory.
    pub gradient_accumulation_steps: usize,
    /// Keep of each layer its output alone and compute the rest again for backward: less memory, more
    /// time.
    pub gradient_checkpointing: bool,
    /// Tokens of a sequence; the task's.
    pub max_seq_length: Option<usize>,
    /// Tokens from one window of a question's text to the next; the task's.
    pub doc_stride: Option<usize>,
    /// Dropout of hidden values and of the head; the model's.
    pub hidden_dropout_prob: Option<f64>,
    /// Dropout of attention probabilities; the model's.
    pub attention_probs_dropout_prob: Option<f64>,
    /// Share of the target that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// Weights of classes: "balanced", or a list in the order of the labels, such as `[1,2]`.
    pub class_weights: Option<ClassWeights>,
    /// What the best model is chosen by; the task's.
    pub metric: Option<Metric>,
    /// Evaluations in an epoch; below 1 there is none in some. Of `shots` ten in all, else 1.
    pub evals_per_epoch: Option<f64>,
    /// Evaluations without a better score after which a run ends; 0: never.
    pub early_stopping_patience: u32,
    /// Runs with one seed after the other.
    pub num_trials: u32,
    /// Seed of the first run.
    pub seed: u64,
    /// Times, over all trials, that one which sticks to the majority class is begun again with another
    /// seed.
    pub max_restarts: u32,
    /// Examples of each class to learn from; every run draws its own. All if null.
    pub shots: Option<usize>,
    /// Whose head: `hf` or `google`.
    pub head: HeadStyle,
    /// A conditional random field on top of tagging.
    pub crf: bool,
    /// Whether pairs without an order (MRPC, STS-B) are learned from both ways round; with the
    /// reference's head, as the reference does.
    pub double_unordered: Option<bool>,
    /// `google`: the loss is the sum over the batch, and layerwise decay skips a layer.
    pub compat: Option<String>,
    /// Steps between checkpoints, beside those at evaluations; 0 for none.
    pub save_checkpoints_steps: u64,
    /// Tokens that are computed at once in evaluation.
    pub eval_batch_tokens: usize,
    /// Skipped steps in a row (loss or gradient not finite) after which a run stops.
    pub max_skipped_steps: u32,
}

/// Settings that a resumed run may change: none changes a number of the run.
pub const MAY_CHANGE: &[&str] = &[
    "save_checkpoints_steps",
    "eval_batch_tokens",
    "max_skipped_steps",
    "gradient_checkpointing",
];

impl Default for FinetuneConfig {
    fn default() -> Self {
        FinetuneConfig {
            learning_rate: None,
            layerwise_lr_decay: None,
            warmup_proportion: 0.1,
            weight_decay_rate: 0.01,
            num_train_epochs: None,
            train_batch_size: 32,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            max_seq_length: None,
            doc_stride: None,
            hidden_dropout_prob: None,
            attention_probs_dropout_prob: None,
            label_smoothing: 0.0,
            class_weights: None,
            metric: None,
            evals_per_epoch: None,
            early_stopping_patience: 0,
            num_trials: 1,
            seed: 0,
            max_restarts: 2,
            shots: None,
            head: HeadStyle::Hf,
            crf: false,
            double_unordered: None,
            compat: None,
            save_checkpoints_steps: 500,
            eval_batch_tokens: 4096,
            max_skipped_steps: 10,
        }
    }
}

impl FinetuneConfig {
    /// Sets one hyper-parameter from `key=value`; the value is JSON, or text where it is not.
    ///
    /// # Errors
    /// An unknown name, or a value of the wrong type.
    pub fn set(&mut self, assignment: &str) -> Result<(), SettingError> {
        Setting::parse(assignment)?.assign(self)
    }

    /// Takes hyper-parameters from a JSON file.
    ///
    /// # Errors
    /// A file that cannot be read; an unknown name, or a value of the wrong type.
    pub fn merge_file(&mut self, path: &Path) -> Result<(), SettingError> {
        for (key, value) in read_object(path)? {
            let place = path.display().to_string();
            let key = key.as_str();
            Setting { key, value, place }.assign(self)?;
        }
        Ok(())
    }

    /// The hyper-parameters as a JSON object.
    pub fn to_map(&self) -> Map<String, Value> {
        to_map(self)
    }

    /// Whether pairs without an order are learned from both ways round.
    pub fn doubles_unordered(&self) -> bool {
        self.double_unordered
            .unwrap_or(self.head == HeadStyle::Google)
    }

    /// Whether the reference's flaws are wanted.
    pub fn compat_google(&self) -> bool {
        self.compat.is_some()
    }

    /// Fills in what follows the model's size.
    pub fn resolve(&mut self, network: &ElectraConfig) {
        let (rate, decay) = match network.hidden_size {
            0..=256 => (3e-4, 0.8),
            257..=768 => (1e-4, 0.8),
            _ => (5e-5, 0.9),
        };
        self.learning_rate.get_or_insert(rate);
        self.layerwise_lr_decay.get_or_insert(decay);
    }

    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// The first value that is out of range.
    pub fn validate(&self) -> Result<(), SettingError> {
        let check = SettingError::check;
        let above_zero = |v: f64| v.is_finite() && v > 0.0;
        let share = |v: f64| (0.0..1.0).contains(&v);
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("num_train_epochs", self.num_train_epochs),
            ("evals_per_epoch", self.evals_per_epoch),
        ] {
            check(value.is_none_or(above_zero), key, "must be above 0")?;
        }
        check(
            self.layerwise_lr_decay
                .is_none_or(|v| above_zero(v) && v <= 1.0),
            "layerwise_lr_decay",
            "must be above 0 and at most 1",
        )?;
        check(
            (0.0..=1.0).contains(&self.warmup_proportion),
            "warmup_proportion",
            "must be a share of the steps, from 0 to 1",
        )?;
        check(
            self.weight_decay_rate.is_finite() && self.weight_decay_rate >= 0.0,
            "weight_decay_rate",
            "must not be negative",
        )?;
        check(
            share(self.label_smoothing),
            "label_smoothing",
            "must be at least 0 and below 1",
        )?;
        for (key, value) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
        ] {
            check(
                value.is_none_or(share),
                key,
                "must be at least 0 and below 1",
            )?;
        }
        for (key, value) in [
            ("train_batch_size", self.train_batch_size as u64),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as u64,
            ),
            ("num_trials", self.num_trials.into()),
            ("eval_batch_tokens", self.eval_batch_tokens as u64),
            ("max_skipped_steps", self.max_skipped_steps.into()),
            ("shots", self.shots.unwrap_or(1) as u64),
        ] {
            check(value > 0, key, "must be at least 1")?;
        }
        check(
            self.compat.as_deref().is_none_or(|c| c == "google"),
            "compat",
            "must be \"google\" or null",
        )?;
        if let Some(weights) = &self.class_weights {
            let fine = match weights {
                ClassWeights::Named(name) => name == "balanced",
                ClassWeights::Each(each) => {
                    each.iter().all(|w| w.is_finite() && *w >= 0.0) && each.iter().any(|w| *w > 0.0)
                }
            };
            check(
                fine,
                "class_weights",
                "must be \"balanced\" or a list of weights such as [1,2], none below 0 and one above",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_hyper_parameter() {
        let page = include_str!("../../../../docs/finetuning.md");
        for key in FinetuneConfig::default().to_map().keys() {
            assert!(page.contains(&format!("`{key}`")), "{key}");
        }
    }
}
