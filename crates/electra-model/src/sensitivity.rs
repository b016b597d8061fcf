//! What each linear layer's products in bytes do to an encoder's output, by itself.
//!
//! Activations with a few large channels leave all others few steps, so a layer that reads them
//! loses more than bytes need cost. Which layers these are shows only on text.

use crate::encoder::{Encoder, EncoderArrays};
use crate::files::{FileError, ModelDir};
use crate::inference::{BatchError, InputArrays, check, wanted};
use electra_engine::backend::{Backend, LayerParams};
use electra_engine::batch::PackedBatch;
use electra_engine::params::{ParamLayout, ParamView};

/// The relative deviation above which a layer's products are better not computed in bytes.
///
/// A typical product costs 0.001 to 0.002, one that reads a channel much larger than the others several
/// hundredths; `electra export --precision int8 --json` prints what each does to a model.
pub const THRESHOLD: f64 = 0.03;

/// What can keep an encoder from being measured.
#[derive(Debug, thiserror::Error)]
pub enum SensitivityError {
    /// The model's files.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The sample does not fit the model.
    #[error(transparent)]
    Sample(#[from] BatchError),
}

/// What bytes cost in some of an encoder's linear layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The layers that are computed in one product.
    pub modules: Vec<String>,
    /// Of the last hidden states, as [`relative_deviation`] has it.
    pub deviation: f64,
}

/// An encoder whose layers can be put into bytes one by one.
pub struct Probe<B: Backend> {
    encoder: Encoder,
    params: B::Params,
    set_exact: fn(&mut B::Params, ParamView, bool),
    input: InputArrays,
    arrays: EncoderArrays,
    batch: PackedBatch,
}

impl<B: Backend> Probe<B> {
    /// Takes the encoder in `dir` and a sample of text to a backend that computes in bytes, and all
    /// else best in f32. `set_exact` says of a weight whether it is kept out of bytes.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or not finite; a sample that does not fit.
    pub fn new(
        backend: &mut B,
        dir: &ModelDir,
        batch: PackedBatch,
        set_exact: fn(&mut B::Params, ParamView, bool),
    ) -> Result<Self, SensitivityError> {
        check(dir.config(), &batch)?;
        let mut layout = ParamLayout::new();
        let encoder = Encoder::declare(&mut layout, dir.config());
        let tokens = batch.tokens();
        // Each product is packed both ways in turn.
        let mut values = vec![0.0; layout.len()];
        dir.load_into(&wanted(&layout), &mut values)?;
        Ok(Probe {
            params: backend.params(&layout, &values),
            set_exact,
            input: InputArrays::new(backend, [tokens, batch.sequences()]),
            arrays: EncoderArrays::for_inference(backend, &encoder, tokens),
            encoder,
            batch,
        })
    }

    /// The last hidden states `[T, H]` with all layers exact but those for which `in_bytes` holds,
    /// given the number of the layer and the names of its modules.
    pub fn states(&mut self, backend: &mut B, in_bytes: impl Fn(&[String]) -> bool) -> Vec<f32> {
        for (modules, weight) in self.products() {
            (self.set_exact)(&mut self.params, weight, !in_bytes(&modules));
        }
        let input = self.input.upload(backend, &self.batch);
        let out = self
            .encoder
            .forward(backend, &self.params, &input, &mut self.arrays, None);
        let mut states = vec![0.0; out.rows * out.cols];
        backend.read(out, &mut states);
        states
    }

    /// What bytes cost in each product by itself, in the order of the layers.
    pub fn effects(&mut self, backend: &mut B) -> Vec<Effect> {
        let channels = self.encoder.body.spec.hidden;
        let (products, exact) = (self.products(), self.states(backend, |_| false));
        let of_product = |(modules, _): (Vec<String>, ParamView)| {
            let states = self.states(backend, |these| these == modules);
            Effect {
                deviation: relative_deviation(&states, &exact, channels),
                modules,
            }
        };
        products.into_iter().map(of_product).collect()
    }

    /// The products of every layer: the modules that are computed in one, and their weight.
    fn products(&self) -> Vec<(Vec<String>, ParamView)> {
        let of_layer = |(i, layer): (usize, &LayerParams)| {
            let name = |module: &str| format!("electra.encoder.layer.{i}.{module}");
            let qkv = ["query", "key", "value"].map(|n| name(&format!("attention.self.{n}")));
            [
                (qkv.to_vec(), layer.qkv.weight),
                (
                    vec![name("attention.output.dense")],
                    layer.attention_output.weight,
                ),
                (vec![name("intermediate.dense")], layer.intermediate.weight),
                (vec![name("output.dense")], layer.output.weight),
            ]
        };
        self.encoder
            .body
            .layers
            .iter()
            .enumerate()
            .flat_map(of_layer)
            .collect()
    }
}

/// How far rows of `channels` values are from `exact` ones, relative to their size: the root mean
/// square over the channels of each one's relative deviation.
///
/// Each channel is measured by its own size, so that one which is many times larger than the others
/// does not hide what happens to them; one that is hardly ever used by a tenth of the median energy.
pub fn relative_deviation(values: &[f32], exact: &[f32], channels: usize) -> f64 {
    let (mut errors, mut energies) = (vec![0.0; channels], vec![0.0; channels]);
    for (values, exact) in values.chunks(channels).zip(exact.chunks(channels)) {
        for (c, (a, b)) in values.iter().zip(exact).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            errors[c] += (a - b) * (a - b);
            energies[c] += b * b;
        }
    }
    let mut sorted = energies.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let least = (sorted[channels / 2] / 10.0).max(f64::MIN_POSITIVE);
    let ratios = errors
        .iter()
        .zip(&energies)
        .map(|(e, size)| e / size.max(least));
    (ratios.sum::<f64>() / channels as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_channel_hides_nothing_and_an_unused_one_counts_little() {
        let exact = [1.0, 1000.0, 1.0, 0.0, 1.0, -1000.0, 1.0, 0.0];
        let mut values = exact;
        assert_eq!(relative_deviation(&values, &exact, 4), 0.0);
        values[0] = 1.2;
        values[4] = 0.8;
        assert!((relative_deviation(&values, &exact, 4) - 0.1).abs() < 1e-6);
        values = exact;
        values[3] = 1e-3;
        assert!(relative_deviation(&values, &exact, 4) < 2e-3);
    }
}
