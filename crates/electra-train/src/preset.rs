//! Sizes and hyper-parameters that belong together. `base` and `large` carry the values that the
//! reference code has only in comments; `tiny` is ours.

use crate::config::PretrainConfigError;

/// What a preset sets.
pub(crate) struct Preset {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    /// Width of the embeddings where it is not that of the layers.
    pub(crate) embedding: Option<usize>,
    pub(crate) generator_hidden_size: f64,
    pub(crate) mask_prob: f64,
    pub(crate) learning_rate: f64,
    pub(crate) warmup: u64,
    pub(crate) batch: usize,
    pub(crate) max_seq_length: usize,
    pub(crate) steps: u64,
}

/// The preset called `name`.
pub(crate) fn preset(name: &str) -> Result<Preset, PretrainConfigError> {
    let small = Preset {
        layers: 12,
        hidden: 256,
        embedding: Some(128),
        generator_hidden_size: 1.0 / 4.0,
        mask_prob: 0.15,
        learning_rate: 5e-4,
        warmup: 10_000,
        batch: 128,
        max_seq_length: 128,
        steps: 1_000_000,
    };
    Ok(match name {
        "tiny" => Preset {
            layers: 4,
            hidden: 128,
            generator_hidden_size: 1.0 / 2.0,
            learning_rate: 1e-3,
            warmup: 1_000,
            batch: 32,
            max_seq_length: 64,
            steps: 10_000,
            ..small
        },
        "small" => small,
        "base" => Preset {
            hidden: 768,
            embedding: None,
            generator_hidden_size: 1.0 / 3.0,
            learning_rate: 2e-4,
            batch: 256,
            max_seq_length: 512,
            steps: 766_000,
            ..small
        },
        "large" => Preset {
            layers: 24,
            hidden: 1024,
            embedding: None,
            mask_prob: 0.25,
            learning_rate: 2e-4,
            batch: 2048,
            max_seq_length: 512,
            steps: 400_000,
            ..small
        },
        other => return Err(PretrainConfigError::UnknownPreset(other.to_owned())),
    })
}
