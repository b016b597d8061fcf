//! One layer of a preset and its vocabulary, with made-up values.

use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout};
use electra_model::config::ElectraConfig;

/// Parameters of one layer and of the vocabulary.
#[derive(Debug)]
pub struct OneLayer {
    /// Of all of them.
    pub layout: ParamLayout,
    /// The layer.
    pub layer: LayerParams,
    /// `[V, E]`, the vocabulary's product.
    pub vocabulary: Linear,
}

impl OneLayer {
    /// Declares them at the sizes of `config`.
    pub fn new(config: &ElectraConfig) -> Self {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let mut layout = ParamLayout::new();
        let mut linear = |name: &str, rows: usize, cols: usize| {
            let weight = layout.push(&format!("{name}.weight"), &[rows, cols], Init::Zeros, 0);
            let bias = layout.push(&format!("{name}.bias"), &[rows], Init::Zeros, 0);
            layout.register_linear(weight);
            Linear { weight, bias }
        };
        let qkv = linear("qkv", 3 * hidden, hidden);
        let attention_output = linear("attention_output", hidden, hidden);
        let intermediate = linear("intermediate", wide, hidden);
        let output = linear("output", hidden, wide);
        let vocabulary = linear("vocabulary", config.vocab_size, config.embedding_size);
        let norm = Norm {
            weight: layout.push("norm.weight", &[hidden], Init::Ones, 0),
            bias: layout.push("norm.bias", &[hidden], Init::Zeros, 0),
            eps: 1e-12,
        };
        OneLayer {
            layout,
            layer: LayerParams {
                qkv,
                attention_output,
                attention_norm: norm,
                intermediate,
                output,
                output_norm: norm,
            },
            vocabulary,
        }
    }
}

/// The sizes of a layer of `config`.
pub fn layer_spec(config: &ElectraConfig) -> LayerSpec {
    LayerSpec {
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        activation: config.hidden_act.into(),
    }
}

/// A small value, another for each place.
pub fn wave(i: usize) -> f32 {
    (i as f32 * 0.37).sin() * 0.05
}

/// A new array `[rows, cols]` of such values.
pub fn filled<B: Backend>(backend: &mut B, rows: usize, cols: usize) -> Array {
    let array = backend.array(rows, cols);
    backend.write(array, &(0..rows * cols).map(wave).collect::<Vec<_>>());
    array
}

/// Integers on the device.
pub fn uploaded<B: Backend>(backend: &mut B, values: &[u32]) -> Ints {
    let ints = backend.ints(values.len());
    backend.write_ints(ints, values);
    ints
}

/// Sequences of these lengths, one after the other.
pub fn sequences<B: Backend>(backend: &mut B, lengths: &[usize]) -> Sequences {
    let (mut cu_seqlens, mut example, mut position) = (vec![0], Vec::new(), Vec::new());
    for (number, &length) in lengths.iter().enumerate() {
        example.resize(example.len() + length, number as u32);
        position.extend(0..length as u32);
        cu_seqlens.push(example.len() as u32);
    }
    Sequences {
        cu_seqlens: uploaded(backend, &cu_seqlens),
        keys: RowKeys {
            example: uploaded(backend, &example),
            position: uploaded(backend, &position),
        },
        longest: lengths.iter().copied().max().unwrap_or(0),
    }
}
