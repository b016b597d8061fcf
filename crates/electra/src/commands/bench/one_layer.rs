//! One layer of a preset and its vocabulary, with made-up values.

use electra_engine::backend::*;
use electra_engine::params::{Init, ParamLayout};
use electra_model::config::ElectraConfig;
use electra_model::encoder::Body;

/// Parameters of one layer of a network, and of the vocabulary.
#[derive(Debug)]
pub struct OneLayer {
    /// Of all of them.
    pub layout: ParamLayout,
    /// The network's body, cut down to its first layer.
    pub body: Body,
    /// `[V, E]`, the vocabulary's product.
    pub vocabulary: Linear,
}

impl OneLayer {
    /// Declares them at the sizes of `config`.
    pub fn new(config: &ElectraConfig) -> Self {
        let cut = ElectraConfig {
            num_hidden_layers: 1,
            ..config.clone()
        };
        let mut layout = ParamLayout::new();
        let body = Body::declare(&mut layout, "", &cut);
        let shape = [config.vocab_size, config.embedding_size];
        let weight = layout.push("vocabulary.weight", &shape, Init::Zeros, 0);
        let bias = layout.push("vocabulary.bias", &shape[..1], Init::Zeros, 0);
        layout.register_linear(weight);
        OneLayer {
            layout,
            body,
            vocabulary: Linear { weight, bias },
        }
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
